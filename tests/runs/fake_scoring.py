"""Runs with a scorer that needs no model, in small commits; a child process can die or wait at a chosen moment."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from anomaly.conformal.calibration import CalibrationScores
from anomaly.inference.scorer import Scores
from anomaly.runs import score_run as run_module
from anomaly.runs import sinks
from anomaly.runs.run_files import LEDGER, MANIFEST
from anomaly.runs.score_run import RunOptions
from anomaly.runs.sinks import Format
from anomaly.scoring.pipeline import score_images
from anomaly.scoring.settings import DEFAULT_PRODUCT, Settings
from anomaly.scoring.sources import open_source
from anomaly.scoring.tables import ScoreSummary
from anomaly.system.files import sha256_of

SETTINGS = Settings(threshold=1.0, batch_size=4, max_pixels=10**6, num_threads=2, review_threshold=0.8, measure=True)


class FakeScorer:
    """A scorer without a model: the map is the first channel, the score its mean.

    Args:
        model: file whose hash identifies the model.
        on_score: function that is called before each inference.
    """

    def __init__(self, model: Path, *, on_score: Callable[[], None] = lambda: None) -> None:
        self.calibration = CalibrationScores(np.linspace(0, 1, 20))
        names = ("brightness", "contrast", "sharpness", "colour")
        self.metadata = SimpleNamespace(
            white=255,
            resize="stretch",
            calibration=SimpleNamespace(scores=list(self.calibration.scores)),
            image_stats={name: {"mean": 60.0, "deviation": 20.0} for name in names},
            check_size=lambda *_, **__: None,
        )
        self.num_in_flight = 1
        self.sha256, self.device = sha256_of(model), "cpu"
        self._on_score = on_score

    def score(self, images: NDArray[np.uint8]) -> Scores:
        self._on_score()
        maps = images[..., 0].astype(np.float32) / 128
        return Scores(maps.mean(axis=(1, 2)), maps)


def score_fake_run(
    images: Path,
    model: Path,
    folder: Path,
    kind: Format,
    *,
    resume: bool = False,
    shard: str | None = None,
    on_score: Callable[[], None] = lambda: None,
) -> ScoreSummary:
    """Score into a run, with many small commits and parts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "COMMIT_IMAGES", 16)
        patch.setattr(sinks, "PART_ROWS", 48)
        patch.setattr(sinks, "GROUP_ROWS", 16)
        return run_module.score_run(
            open_source(images), name=str(images), models={DEFAULT_PRODUCT: model},
            scorers={DEFAULT_PRODUCT: FakeScorer(model, on_score=on_score)},  # type: ignore[dict-item]
            settings=SETTINGS, folder=folder, options=RunOptions(format=kind, shard=shard), resume=resume,
            engine=score_images,
        )  # fmt: skip


def die_at(number: int, *run: Any, in_inference: bool = False, **options: Any) -> None:
    """Score, and die (SIGKILL) at the `number`-th step: a flush to the disk, a rename, a deletion.

    Args:
        number: step of the death, from 1.
        run: arguments of `score_fake_run`.
        in_inference: whether inferences count as steps, too.
        options: keyword arguments of `score_fake_run`.
    """
    lock, steps = threading.Lock(), iter(range(1, 10**6))

    def step() -> None:
        with lock:
            if next(steps) == number:
                os.kill(os.getpid(), signal.SIGKILL)

    def stepped(original: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            step()
            return original(*arguments, **named)

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", stepped(os.fsync))
        patch.setattr(Path, "replace", stepped(Path.replace))
        patch.setattr(Path, "unlink", stepped(Path.unlink))
        score_fake_run(*run, on_score=step if in_inference else lambda: None, **options)


def wait_in_inference(reached: Any, *run: Any) -> None:
    """Score, set an event in the first inference, and wait there forever."""

    def wait() -> None:
        reached.set()
        threading.Event().wait()

    score_fake_run(*run, on_score=wait)


def contents(folder: Path) -> dict[str, bytes]:
    """Name -> bytes of all files of a run that must not depend on interruptions."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name not in (LEDGER, MANIFEST, ".lock")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
