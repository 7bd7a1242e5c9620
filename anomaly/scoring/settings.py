"""Settings of a scoring run."""

from __future__ import annotations

import math
from dataclasses import dataclass

from anomaly.errors import UsageError
from anomaly.imaging.header import Frame

DEFAULT_PRODUCT = ""
"""Product of images without a product name"""
WINDOW_BATCHES = 4
"""Batches per window: the images of a window are grouped by size"""


@dataclass(frozen=True)
class Settings:
    """Settings of a scoring run.

    Args:
        threshold: calibrated score above which the verdict is `defect`.
        batch_size: images per inference.
        max_pixels: largest width × height that is decoded.
        num_threads: threads that read and decode images.
        frame: rule for files with several frames or pages: `only` refuses them, `first` scores the first frame.
        review_threshold: calibrated score above which the verdict is `review`, below `threshold`; None without this verdict.
        measure: whether image statistics are computed, for the drift monitor.
        large: whether a tiled model is used; each window then holds one image.

    Raises:
        UsageError: a threshold that is not finite, a review threshold not below it, or a batch size below 1.
    """

    threshold: float
    batch_size: int
    max_pixels: int
    num_threads: int
    frame: Frame = "only"
    review_threshold: float | None = None
    measure: bool = False
    large: bool = False

    @property
    def window(self) -> int:
        """Number of images in a window."""
        return 1 if self.large else self.batch_size * WINDOW_BATCHES

    def verdict(self, score: float) -> str:
        """Turn a calibrated score into `good`, `review` or `defect`."""
        if score > self.threshold:
            return "defect"
        return "review" if self.review_threshold is not None and score > self.review_threshold else "good"

    def __post_init__(self) -> None:
        if self.review_threshold is not None and not self.review_threshold < self.threshold:
            raise UsageError(
                f"review threshold {self.review_threshold} is not below the threshold {self.threshold}: give a smaller one"
            )
        if not math.isfinite(self.threshold):
            raise UsageError(f"threshold {self.threshold} is not finite: give a number; the model's own threshold is 1")
        if self.batch_size < 1:
            raise UsageError(f"batch size {self.batch_size}: give at least 1")
