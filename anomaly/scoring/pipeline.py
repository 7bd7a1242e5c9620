"""Score many images: read and decode in threads, infer in batches, yield rows in the order of the input.

The batches depend only on the list and the image sizes, never on timing. The list is cut into windows; within a window,
images of one model and size share batches in their order. At most three windows are in memory: one is written, the next is
inferred, and a third is decoded.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import cv2

from anomaly.inference.scorer import OnnxScorer
from anomaly.scoring.loading import LoadedImage, load_item
from anomaly.scoring.settings import Settings
from anomaly.scoring.sources import Item
from anomaly.scoring.windows import ScoredImage, Window, begin_window, finish_window, num_lanes


class Engine(Protocol):
    """A function with the arguments and results of `score_images`."""

    def __call__(
        self,
        items: Iterable[Item | None],
        *,
        scorers: Mapping[str, OnnxScorer],
        settings: Settings,
        seconds: dict[str, float],
    ) -> Iterator[ScoredImage]:
        """Score images one after the other."""
        ...


def score_images(
    items: Iterable[Item | None], *, scorers: Mapping[str, OnnxScorer], settings: Settings, seconds: dict[str, float]
) -> Iterator[ScoredImage]:
    """Score images one after the other; an invalid file becomes an error row and the run continues.

    Args:
        items: images to score; a None between them announces a pause and ends the window.
        scorers: product -> its model; images without a product name have the product `DEFAULT_PRODUCT`.
        settings: settings of the run.
        seconds: stage -> seconds, filled with the waiting times for images (`decode`) and scores (`infer`).

    Yields:
        One `ScoredImage` per item, in their order.
    """
    remaining = iter(items)
    cv2.setNumThreads(0)  # one image per thread; OpenCV's own threads would compete
    seconds.setdefault("decode", 0.0)
    seconds.setdefault("infer", 0.0)
    models = {product: scorer.metadata for product, scorer in scorers.items()}
    with ThreadPoolExecutor(settings.num_threads) as pool, ThreadPoolExecutor(num_lanes(scorers)) as lanes:

        def begin_loading() -> tuple[list[Future[LoadedImage]], bool]:
            """Begin to load the next window; the second value is whether a pause ended it."""
            futures: list[Future[LoadedImage]] = []
            for item in remaining:
                if item is None:
                    if futures:
                        return futures, True
                    continue
                futures.append(pool.submit(load_item, item, models=models, settings=settings))
                if len(futures) == settings.window:
                    break
            return futures, False

        windows: list[Window] = []  # at most one: the previous window
        loading, paused = begin_loading()
        while loading:
            following, then_paused = ([], False) if paused else begin_loading()
            try:
                start = time.perf_counter()
                loaded = [future.result() for future in loading]
                seconds["decode"] += time.perf_counter() - start
                windows.append(begin_window(loaded, scorers=scorers, settings=settings, lanes=lanes))
                while len(windows) > 1 or (windows and not following):
                    yield from finish_window(windows[0], scorers=scorers, settings=settings, seconds=seconds)
                    del windows[0]
            except BaseException:
                for future in following:
                    future.cancel()
                for window in windows:
                    window.cancel()
                raise
            loading, paused = begin_loading() if paused else (following, then_paused)
