"""The review of a run for tests: a client of its application, and a finished run over test images."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from anomaly.commands.main import run as cli
from anomaly.runs.sinks import read_rows
from anomaly.service.auth import Guard
from anomaly.service.review.app import create_review_app
from anomaly.service.review.serve import open_review
from tests.service.running_service import BASE


def client_of(run: Path, *, token: str | None = None, images: str | None = None, by: str | None = None) -> TestClient:
    service = open_review(run, by=by, images=images, device="cpu")
    log: list[Any] = []
    app = create_review_app(service, guard=Guard(token=token, loopback=True), log=log.append)
    return TestClient(app, base_url=BASE)


def score_test_images(model: Path, category: Path, folder: Path) -> Path:
    """Score a copy of the test images and one file that is not an image; returns the folder of the run."""
    images = folder / "images"
    shutil.copytree(category / "test", images)
    (images / "bad.png").write_bytes(b"not an image")
    assert cli(["score", str(model), str(images), "--run", str(folder / "finished_run"), "--device", "cpu"]) == 3
    return folder / "finished_run"


def row_numbers(run: Path, *, folder: str) -> list[int]:
    return [n for n, row in enumerate(read_rows(run)) if Path(row["path"]).parent.name == folder]
