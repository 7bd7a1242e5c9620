"""The review of a run for tests: a client of its application, and a finished run over test images."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from anomaly.commands.main import run as cli
from anomaly.commands.review import make_review
from anomaly.runs.sinks import read_rows
from anomaly.service.auth import Guard
from anomaly.service.review.app import create_review_app
from tests.service.served import BASE


def client_of(run: Path, *, token: str = "", images: str = "", by: str = "") -> TestClient:
    made = make_review(run, by=by, images=images, device="cpu")
    log: list[Any] = []
    return TestClient(create_review_app(made, guard=Guard(token=token, loopback=True), log=log.append), base_url=BASE)


def score_night(model: Path, category: Path, folder: Path) -> Path:
    """Score a copy of the test images, and one file that is no image."""
    images = folder / "images"
    shutil.copytree(category / "test", images)
    (images / "bad.png").write_bytes(b"no image")
    assert cli(["score", str(model), str(images), "--run", str(folder / "night"), "--device", "cpu"]) == 3
    return folder / "night"


def row_numbers(run: Path, *, folder: str) -> list[int]:
    return [n for n, row in enumerate(read_rows(run)) if Path(row["path"]).parent.name == folder]
