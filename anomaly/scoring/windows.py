"""Score one window of loaded images: batches of one model and one size, results in the order of the images."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anomaly.errors import ImageError
from anomaly.inference.batching import batches_by_size
from anomaly.inference.scorer import OnnxScorer, Scores
from anomaly.inference.session import SESSION_ERRORS
from anomaly.scoring.image_verdicts import error_row, scored_row
from anomaly.scoring.loading import NO_IMAGE, LoadedImage
from anomaly.scoring.rows import Row
from anomaly.scoring.settings import Settings
from anomaly.scoring.sources import Item

_NO_MAP: NDArray[np.float32] = np.zeros((0, 0), dtype=np.float32)


@dataclass(frozen=True)
class ScoredImage:
    """A row with its image and map; both are empty arrays for an error row."""

    row: Row
    item: Item
    image: NDArray[np.uint8]
    anomaly_map: NDArray[np.float32]
    """(h, w) at the network's resolution"""
    statistics: dict[str, float] | None
    """image statistics; None unless `Settings.measure`"""


@dataclass(frozen=True)
class Window:
    """A window whose batches are being scored: positions of each batch and its future scores."""

    loaded: Sequence[LoadedImage]
    batches: list[tuple[list[int], Future[Scores]]]

    def cancel(self) -> None:
        """Cancel the batches that have not begun."""
        for _, scores in self.batches:
            scores.cancel()


def num_lanes(scorers: Mapping[str, OnnxScorer]) -> int:
    """Number of batches that may be scored at a time."""
    return min((scorer.num_in_flight for scorer in scorers.values()), default=1)


def score_window(
    loaded: Sequence[LoadedImage],
    *,
    scorers: Mapping[str, OnnxScorer],
    settings: Settings,
    seconds: dict[str, float],
) -> Iterator[ScoredImage]:
    """Score the images of one window.

    Args:
        loaded: images of the window.
        scorers: product -> its model.
        settings: settings of the run.
        seconds: stage -> seconds; `infer` grows by the time spent waiting for scores.

    Yields:
        One `ScoredImage` per image, in their order.
    """
    with ThreadPoolExecutor(num_lanes(scorers)) as lanes:
        window = begin_window(loaded, scorers=scorers, settings=settings, lanes=lanes)
        yield from finish_window(window, scorers=scorers, settings=settings, seconds=seconds)


def begin_window(
    loaded: Sequence[LoadedImage], *, scorers: Mapping[str, OnnxScorer], settings: Settings, lanes: ThreadPoolExecutor
) -> Window:
    """Submit the batches of a window to the lanes; arguments as in `score_window`."""

    def score(members: list[int]) -> Scores:
        scorer = scorers[loaded[members[0]].item.product]
        return scorer.score(np.stack([loaded[n].image for n in members]))

    usable = [n for n, one in enumerate(loaded) if one.error is None]
    kinds = [(loaded[n].item.product, loaded[n].image.shape) for n in usable]
    batches = [[usable[at] for at in batch] for batch in batches_by_size(kinds, batch_size=settings.batch_size)]
    return Window(loaded, [(members, lanes.submit(score, members)) for members in batches])


def finish_window(
    window: Window, *, scorers: Mapping[str, OnnxScorer], settings: Settings, seconds: dict[str, float]
) -> Iterator[ScoredImage]:
    """Wait for the scores of a window and yield its images in their order; arguments as in `score_window`."""
    start = time.perf_counter()
    results = _results(window)
    seconds["infer"] += time.perf_counter() - start
    for n, one in enumerate(window.loaded):
        scorer = scorers.get(one.item.product)
        result = one.error or results[n]
        if isinstance(result, ImageError):
            model = scorer.sha256[:16] if scorer else ""
            row = error_row(one.item, result, sha256=one.sha256, model=model, settings=settings)
            yield ScoredImage(row, one.item, NO_IMAGE, _NO_MAP, None)
        else:
            assert scorer is not None
            row = scored_row(one.item, result, sha256=one.sha256, image=one.image, scorer=scorer, settings=settings)
            yield ScoredImage(row, one.item, one.image, result.anomaly_map, one.statistics)


def _results(window: Window) -> dict[int, Scores | ImageError]:
    """Position -> scores of the image, or the error of its inference."""
    results: dict[int, Scores | ImageError] = {}
    for members, future in window.batches:
        paths = {n: window.loaded[n].item.path for n in members}
        try:
            scores = future.result()
        except SESSION_ERRORS as error:
            for n, path in paths.items():
                message = f"{path}: inference failed ({error}); use a smaller batch or another device"
                results[n] = ImageError("internal", message)
            continue
        for n, score, anomaly_map in zip(members, scores.score, scores.anomaly_map, strict=True):
            results[n] = Scores(score, anomaly_map)
            if not (np.isfinite(score) and np.isfinite(anomaly_map).all()):  # NaN would pass as good
                message = f"{paths[n]}: the score ({score}) or the map is not finite; use another device"
                results[n] = ImageError("internal", message)
    return results
