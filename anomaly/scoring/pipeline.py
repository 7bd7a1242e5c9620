"""Score many images: read and decode in threads, infer in batches, give rows in the order of the input.

Which images share a batch follows from the list and the images' sizes alone, never from timing: the list is cut into
windows, and in each window images of one size go together, first come first served.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from anomaly.calibration import p_values
from anomaly.errors import ImageError, UsageError
from anomaly.image import decode_image, read_file
from anomaly.image_header import Frame
from anomaly.overlay import enlarge_map
from anomaly.scoring.regions import find_regions
from anomaly.scoring.rows import Row
from anomaly.scoring.scorer import SESSION_ERRORS, OnnxScorer, Scores

WINDOW_BATCHES = 4
"""Batches in a window: within it images may wait for others of their size"""


@dataclass(frozen=True)
class Scored:
    """A row, and what an overlay needs: image and map are empty arrays where the image could not be scored."""

    row: Row
    image: NDArray[np.uint8]
    anomaly_map: NDArray[np.float32]
    """(h, w) at the network's resolution"""


@dataclass(frozen=True)
class Settings:
    """How a run scores.

    Args:
        limit: of the verdict, in calibrated units.
        batch_size: images per inference.
        max_pixels: largest width × height that is decoded.
        num_threads: of reading and decoding.
        frame: of files with several frames or pages: `only` refuses them, `first` takes the first.

    Raises:
        UsageError: a limit that is no number, or a batch without images.
    """

    limit: float
    batch_size: int
    max_pixels: int
    num_threads: int
    frame: Frame = "only"

    def __post_init__(self) -> None:
        if not math.isfinite(self.limit):
            raise UsageError(f"limit {self.limit} is no number to compare scores with: 1 is the model's own")
        if self.batch_size < 1:
            raise UsageError(f"batch size {self.batch_size}: at least 1 image goes through the model at a time")


@dataclass(frozen=True)
class _Loaded:
    path: str
    sha256: str
    image: NDArray[np.uint8]
    error: ImageError | None


_NOTHING: NDArray[np.uint8] = np.zeros((0, 0, 3), dtype=np.uint8)
_NO_MAP: NDArray[np.float32] = np.zeros((0, 0), dtype=np.float32)


def score_images(
    paths: Sequence[str], *, scorer: OnnxScorer, settings: Settings, seconds: dict[str, float]
) -> Iterator[Scored]:
    """Score images one after the other, each giving a row: a bad file becomes an error row and the run goes on.

    Args:
        paths: of the images.
        scorer: the model.
        settings: of the run.
        seconds: filled with the time spent waiting for images (`decode`) and in inference (`infer`).

    Yields:
        One `Scored` per path, in their order.
    """
    size = settings.batch_size * WINDOW_BATCHES
    windows = [paths[at : at + size] for at in range(0, len(paths), size)]
    cv2.setNumThreads(0)  # one image per thread; OpenCV's own threads would fight them
    seconds.setdefault("decode", 0.0)
    seconds.setdefault("infer", 0.0)
    white = scorer.metadata.white
    with ThreadPoolExecutor(settings.num_threads) as pool:

        def begin(window: Sequence[str]) -> list[Future[_Loaded]]:
            return [pool.submit(_load, path, white=white, settings=settings) for path in window]

        coming = begin(windows[0]) if windows else []
        for number in range(len(windows)):
            waiting, coming = coming, begin(windows[number + 1]) if number + 1 < len(windows) else []
            try:
                start = time.perf_counter()
                loaded = [future.result() for future in waiting]
                seconds["decode"] += time.perf_counter() - start
                yield from _score_window(loaded, scorer, settings, seconds)
            except BaseException:
                for future in coming:
                    future.cancel()
                raise


def batches_by_size(shapes: Sequence[tuple[int, ...]], *, batch_size: int) -> list[list[int]]:
    """Group positions by shape, in order of first appearance, in batches of at most `batch_size`."""
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for position, shape in enumerate(shapes):
        by_shape.setdefault(shape, []).append(position)
    return [group[at : at + batch_size] for group in by_shape.values() for at in range(0, len(group), batch_size)]


def _load(path: str, *, white: int, settings: Settings) -> _Loaded:
    """Read, hash and decode one image; a failure is a value, for the row."""
    sha256 = ""
    try:
        data = read_file(path, max_pixels=settings.max_pixels)
        sha256 = hashlib.sha256(data).hexdigest()
        image = decode_image(data, name=path, white=white, max_pixels=settings.max_pixels, frame=settings.frame)
        return _Loaded(path, sha256, image, None)
    except ImageError as error:
        return _Loaded(path, sha256, _NOTHING, error)
    except Exception as error:  # the quarantine of one image: whatever its bytes provoke, the others go on
        return _Loaded(path, sha256, _NOTHING, ImageError("internal", f"{path}: {type(error).__name__}: {error}"))


def _score_window(
    loaded: Sequence[_Loaded], scorer: OnnxScorer, settings: Settings, seconds: dict[str, float]
) -> Iterator[Scored]:
    usable = [n for n, item in enumerate(loaded) if item.error is None]
    results: dict[int, Scores | ImageError] = {}
    for batch in batches_by_size([loaded[n].image.shape for n in usable], batch_size=settings.batch_size):
        members = [usable[position] for position in batch]
        start = time.perf_counter()
        try:
            scores = scorer.score(np.stack([loaded[n].image for n in members]))
        except SESSION_ERRORS as error:
            for n in members:
                message = f"{loaded[n].path}: inference failed ({error}); take a smaller batch or another device"
                results[n] = ImageError("internal", message)
        else:
            for n, score, anomaly_map in zip(members, scores.score, scores.anomaly_map, strict=True):
                results[n] = Scores(score, anomaly_map)
                if not (np.isfinite(score) and np.isfinite(anomaly_map).all()):  # a nan would pass for good
                    message = f"{loaded[n].path}: its score ({score}) or map is not finite; take another device"
                    results[n] = ImageError("internal", message)
        seconds["infer"] += time.perf_counter() - start
    held_out = np.asarray(scorer.metadata.calibration.scores)
    for n, item in enumerate(loaded):
        outcome = item.error or results[n]
        if isinstance(outcome, ImageError):
            yield _failed(item, outcome, scorer, settings)
        else:
            yield _scored(item, outcome, held_out, scorer, settings)


def _failed(item: _Loaded, error: ImageError, scorer: OnnxScorer, settings: Settings) -> Scored:
    row = Row(
        path=item.path, sha256=item.sha256, status=error.code, verdict="", score=None, limit=settings.limit,
        p_value=None, width=None, height=None, regions=[], model=scorer.sha256[:16], message=str(error),
    )  # fmt: skip
    return Scored(row, _NOTHING, _NO_MAP)


def _scored(item: _Loaded, scores: Scores, held_out: NDArray[Any], scorer: OnnxScorer, settings: Settings) -> Scored:
    score, anomaly_map = float(scores.score), scores.anomaly_map
    height, width = item.image.shape[:2]
    rejected = score > settings.limit
    regions = []
    if rejected or float(anomaly_map.max()) > settings.limit:
        enlarged = enlarge_map(anomaly_map, height=height, width=width, resize=scorer.metadata.resize)
        regions = find_regions(enlarged, limit=settings.limit, rejected=rejected)
    row = Row(
        path=item.path, sha256=item.sha256, status="ok", verdict="defect" if rejected else "good", score=score,
        limit=settings.limit, p_value=float(p_values(np.array([score]), held_out=held_out)[0]),
        width=width, height=height, regions=regions, model=scorer.sha256[:16], message="",
    )  # fmt: skip
    return Scored(row, item.image, anomaly_map)
