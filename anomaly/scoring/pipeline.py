"""Score many images: read and decode in threads, infer in batches, give rows in the order of the input.

Which images share a batch follows from the list and the images' sizes alone, never from timing: the list is cut into
windows, and in each window images of one model and size go together, first come first served. At most three windows are in
memory: while the rows of one are written the next is inferred and one more decoded, and nothing further is read.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from anomaly.conformal.calibration import p_values
from anomaly.errors import ImageError, UsageError
from anomaly.imaging.header import Frame
from anomaly.imaging.image_file import decode_image
from anomaly.imaging.overlay import enlarge_map
from anomaly.imaging.regions import find_regions
from anomaly.imaging.statistics import image_statistics
from anomaly.inference.artifact import Metadata
from anomaly.inference.batching import batches_by_size
from anomaly.inference.scorer import OnnxScorer, Scores
from anomaly.inference.session import SESSION_ERRORS
from anomaly.scoring.rows import Row
from anomaly.scoring.sources import Item, read_item

WINDOW_BATCHES = 4
"""Batches in a window: within it images may wait for others of their size"""
ONLY = ""
"""The product of images that name none"""


@dataclass(frozen=True)
class Scored:
    """A row, and what an overlay needs: image and map are empty arrays where the image could not be scored."""

    row: Row
    item: Item
    image: NDArray[np.uint8]
    anomaly_map: NDArray[np.float32]
    """(h, w) at the network's resolution"""
    statistics: dict[str, float] | None
    """of the image, where they were asked for and it could be read"""


@dataclass(frozen=True)
class Settings:
    """How a run scores.

    Args:
        threshold: of the verdict, in calibrated units.
        batch_size: images per inference.
        max_pixels: largest width × height that is decoded.
        num_threads: of reading and decoding.
        frame: of files with several frames or pages: `only` refuses them, `first` takes the first.
        measure: whether image statistics are taken, for the drift watch.
        large: whether images may be large: then one is scored at a time, whatever the batch, while the next is decoded.
        review_threshold: above it, up to the threshold, the verdict is `review`; by default there is no such verdict.

    Raises:
        UsageError: a threshold that is no number, a review threshold that is not below it, or a batch without images.
    """

    threshold: float
    batch_size: int
    max_pixels: int
    num_threads: int
    frame: Frame = "only"
    review_threshold: float = math.inf
    measure: bool = False
    large: bool = False

    @property
    def window(self) -> int:
        """Images in a window."""
        return 1 if self.large else self.batch_size * WINDOW_BATCHES

    def verdict(self, score: float) -> str:
        """Judge a calibrated score: `good`, `defect`, or `review` between the two limits where there are two."""
        if score > self.threshold:
            return "defect"
        return "review" if score > self.review_threshold else "good"

    def __post_init__(self) -> None:
        if self.review_threshold != math.inf and not self.review_threshold < self.threshold:
            raise UsageError(
                f"review threshold {self.review_threshold} is not below the threshold {self.threshold}: between them lies what is reviewed"
            )
        if not math.isfinite(self.threshold):
            raise UsageError(f"threshold {self.threshold} is no number to compare scores with: 1 is the model's own")
        if self.batch_size < 1:
            raise UsageError(f"batch size {self.batch_size}: at least 1 image goes through the model at a time")


@dataclass(frozen=True)
class Loaded:
    """An image that was read and decoded, or why it could not be."""

    item: Item
    sha256: str
    image: NDArray[np.uint8]
    statistics: dict[str, float] | None
    error: ImageError | None


NO_IMAGE: NDArray[np.uint8] = np.zeros((0, 0, 3), dtype=np.uint8)
_NO_MAP: NDArray[np.float32] = np.zeros((0, 0), dtype=np.float32)


class Engine(Protocol):
    """What reads, decodes and infers: gives one `Scored` per image, in their order; arguments as `score_images` has them."""

    def __call__(
        self,
        items: Iterable[Item | None],
        *,
        scorers: Mapping[str, OnnxScorer],
        settings: Settings,
        seconds: dict[str, float],
    ) -> Iterator[Scored]:
        """Score images one after the other."""
        ...


def score_images(
    items: Iterable[Item | None], *, scorers: Mapping[str, OnnxScorer], settings: Settings, seconds: dict[str, float]
) -> Iterator[Scored]:
    """Score images one after the other, each giving a row: a bad file becomes an error row and the run goes on.

    Args:
        items: the images; a None between them says that the next may be long in coming, and ends the window.
        scorers: product -> its model; images that name no product have the product `ONLY`.
        settings: of the run.
        seconds: filled with the time spent waiting for images (`decode`) and for their scores (`infer`).

    Yields:
        One `Scored` per item, in their order.
    """
    coming = iter(items)
    cv2.setNumThreads(0)  # one image per thread; OpenCV's own threads would fight them
    seconds.setdefault("decode", 0.0)
    seconds.setdefault("infer", 0.0)
    models = {product: scorer.metadata for product, scorer in scorers.items()}
    with ThreadPoolExecutor(settings.num_threads) as pool, ThreadPoolExecutor(_num_lanes(scorers)) as lanes:

        def begin() -> tuple[list[Future[Loaded]], bool]:
            """Begin to load a window; whether a pause ended it."""
            futures: list[Future[Loaded]] = []
            for item in coming:
                if item is None:
                    if futures:
                        return futures, True
                    continue
                futures.append(pool.submit(load_item, item, models=models, settings=settings))
                if len(futures) == settings.window:
                    break
            return futures, False

        inferred: list[_Inferred] = []  # at most one: the window before
        waiting, paused = begin()
        while waiting:
            following, then_paused = ([], False) if paused else begin()
            try:
                start = time.perf_counter()
                loaded = [future.result() for future in waiting]
                seconds["decode"] += time.perf_counter() - start
                inferred.append(_infer(loaded, scorers=scorers, settings=settings, lanes=lanes))
                while len(inferred) > 1 or (inferred and not following):
                    yield from _judged(inferred[0], scorers=scorers, settings=settings, seconds=seconds)
                    del inferred[0]
            except BaseException:
                for future in following:
                    future.cancel()
                for _, scores in (batch for one in inferred for batch in one.batches):
                    scores.cancel()
                raise
            waiting, paused = begin() if paused else (following, then_paused)


def _num_lanes(scorers: Mapping[str, OnnxScorer]) -> int:
    return min((scorer.num_in_flight for scorer in scorers.values()), default=1)


def load_item(item: Item, *, models: Mapping[str, Metadata], settings: Settings) -> Loaded:
    """Read, hash and decode one image; a failure is a value, for the row.

    Args:
        item: the image.
        models: product -> what its model takes.
        settings: of the run.
    """
    sha256, path = "", item.path
    try:
        data = read_item(item, max_pixels=settings.max_pixels)
        sha256 = hashlib.sha256(data).hexdigest()
        if item.product not in models:
            known = ", ".join(sorted(models)) or "none"
            raise ImageError("no_model", f"{path}: no model for the product {item.product!r}; --models has {known}")
        model = models[item.product]
        image = decode_image(data, name=path, white=model.white, max_pixels=settings.max_pixels, frame=settings.frame)
        model.check_size(image, name=path)
        return Loaded(item, sha256, image, image_statistics(image) if settings.measure else None, None)
    except ImageError as error:
        return Loaded(item, sha256, NO_IMAGE, None, error)
    except Exception as error:  # the quarantine of one image: whatever its bytes provoke, the others go on
        return Loaded(item, sha256, NO_IMAGE, None, ImageError("internal", f"{path}: {type(error).__name__}: {error}"))


def score_window(
    loaded: Sequence[Loaded], *, scorers: Mapping[str, OnnxScorer], settings: Settings, seconds: dict[str, float]
) -> Iterator[Scored]:
    """Score the images of one window in batches of one model and size; gives them in their order.

    Args:
        loaded: the window.
        scorers: product -> its model.
        settings: of the run.
        seconds: its `infer` grows by the time spent waiting for scores.
    """
    with ThreadPoolExecutor(_num_lanes(scorers)) as lanes:
        inferred = _infer(loaded, scorers=scorers, settings=settings, lanes=lanes)
        yield from _judged(inferred, scorers=scorers, settings=settings, seconds=seconds)


@dataclass(frozen=True)
class _Inferred:
    """A window whose batches are being inferred: positions in it, and the scores to come."""

    loaded: Sequence[Loaded]
    batches: list[tuple[list[int], Future[Scores]]]


def _infer(
    loaded: Sequence[Loaded], *, scorers: Mapping[str, OnnxScorer], settings: Settings, lanes: ThreadPoolExecutor
) -> _Inferred:
    """Begin to infer a window, in batches of one model and size."""

    def score(members: list[int]) -> Scores:
        scorer = scorers[loaded[members[0]].item.product]
        return scorer.score(np.stack([loaded[n].image for n in members]))

    usable = [n for n, one in enumerate(loaded) if one.error is None]
    kinds = [(loaded[n].item.product, loaded[n].image.shape) for n in usable]
    batches = [[usable[at] for at in batch] for batch in batches_by_size(kinds, batch_size=settings.batch_size)]
    return _Inferred(loaded, [(members, lanes.submit(score, members)) for members in batches])


def _judged(
    inferred: _Inferred, *, scorers: Mapping[str, OnnxScorer], settings: Settings, seconds: dict[str, float]
) -> Iterator[Scored]:
    """Wait for the scores of a window and give its images in their order."""
    loaded = inferred.loaded
    results: dict[int, Scores | ImageError] = {}
    start = time.perf_counter()
    for members, future in inferred.batches:
        try:
            said = future.result()
        except SESSION_ERRORS as error:
            for n in members:
                message = f"{loaded[n].item.path}: inference failed ({error}); take a smaller batch or another device"
                results[n] = ImageError("internal", message)
            continue
        for n, score, anomaly_map in zip(members, said.score, said.anomaly_map, strict=True):
            results[n] = Scores(score, anomaly_map)
            if not (np.isfinite(score) and np.isfinite(anomaly_map).all()):  # a nan would pass for good
                message = f"{loaded[n].item.path}: its score ({score}) or map is not finite; take another device"
                results[n] = ImageError("internal", message)
    seconds["infer"] += time.perf_counter() - start
    for n, one in enumerate(loaded):
        outcome = one.error or results[n]
        scorer_of = scorers.get(one.item.product)
        if isinstance(outcome, ImageError) or scorer_of is None:
            assert isinstance(outcome, ImageError)
            yield _failed(one, outcome, scorer_of.sha256[:16] if scorer_of else "", settings)
        else:
            yield _scored(one, outcome, scorer_of, settings)


def _failed(one: Loaded, error: ImageError, model: str, settings: Settings) -> Scored:
    row = error_row(one.item, error, sha256=one.sha256, model=model, settings=settings)
    return Scored(row, one.item, NO_IMAGE, _NO_MAP, None)


def _scored(one: Loaded, scores: Scores, scorer: OnnxScorer, settings: Settings) -> Scored:
    row = scored_row(one.item, scores, sha256=one.sha256, image=one.image, scorer=scorer, settings=settings)
    return Scored(row, one.item, one.image, scores.anomaly_map, one.statistics)


def error_row(item: Item, error: ImageError, *, sha256: str, model: str, settings: Settings) -> Row:
    """Give the row of an image that could not be scored; `model` is that of the row, empty where there is none."""
    return Row(
        path=item.path, sha256=sha256, status=error.code, verdict="", score=None, threshold=settings.threshold,
        p_value=None, width=None, height=None, regions=[], model=model, message=str(error), extra=item.extra,
    )  # fmt: skip


def scored_row(
    item: Item, scores: Scores, *, sha256: str, image: NDArray[np.uint8], scorer: OnnxScorer, settings: Settings
) -> Row:
    """Judge one image: verdict, p-value and the regions above the threshold.

    Args:
        item: the image's name.
        scores: of this image alone, score () and anomaly_map (h, w), both finite.
        sha256: of the image file's bytes.
        image: (H, W, 3) uint8 RGB, as it was scored.
        scorer: that scored it.
        settings: of the run.
    """
    score, anomaly_map = float(scores.score), scores.anomaly_map
    height, width = image.shape[:2]
    rejected = score > settings.threshold
    regions = []
    if rejected or float(anomaly_map.max()) > settings.threshold:
        enlarged = enlarge_map(anomaly_map, height=height, width=width, resize=scorer.metadata.resize)
        regions = find_regions(enlarged, threshold=settings.threshold, rejected=rejected)
    return Row(
        path=item.path, sha256=sha256, status="ok", verdict=settings.verdict(score), score=score,
        threshold=settings.threshold, p_value=float(p_values(np.array([score]), calibration_images=scorer.calibration_images)[0]),
        width=width, height=height, regions=regions, model=scorer.sha256[:16], message="", extra=item.extra,
    )  # fmt: skip
