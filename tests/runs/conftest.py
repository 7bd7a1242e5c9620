"""Images, a fake model and uninterrupted runs, made once for the room."""

from __future__ import annotations

import multiprocessing
from multiprocessing.context import ForkServerContext
from pathlib import Path

import numpy as np
import pytest

from anomaly.imaging.image_file import write_png
from anomaly.runs.sinks import Format
from tests.runs.fake_scoring import score_fake_run

NUM_IMAGES = 90
FORMATS: tuple[Format, ...] = ("csv", "jsonl", "parquet")


@pytest.fixture(scope="session")
def mixed_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of two sizes and three grey levels, an invalid file, and a name with a line break; read only."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for n in range(NUM_IMAGES):
        size = (8, 8) if n % 3 else (6, 10)
        level = 200 if n % 17 == 0 else 110 if n % 5 == 0 else 60
        image = np.clip(rng.normal(level, 20, (*size, 3)), 0, 255).astype(np.uint8)
        write_png(folder / f"{n:04d}.png", image)
    (folder / "0077.png").write_bytes(b"not an image")
    (folder / "0090 with\nnewline.png").write_bytes((folder / "0001.png").read_bytes())
    return folder


@pytest.fixture(scope="session")
def fake_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file in the place of a model; read only."""
    path = tmp_path_factory.mktemp("model") / "fake.onnx"
    path.write_bytes(b"weights")
    return path


@pytest.fixture(scope="session")
def whole(mixed_images: Path, fake_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Format -> an uninterrupted run; read only."""
    found = {}
    for kind in FORMATS:
        found[kind] = tmp_path_factory.mktemp("whole") / kind
        score_fake_run(mixed_images, fake_model, found[kind], kind)
    return found


@pytest.fixture(scope="session")
def child_processes() -> ForkServerContext:
    """Context of child processes that have imported the scoring code before."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.runs.fake_scoring"])
    return context
