"""Intervals of pixel metrics: whole images are resampled, and each image is reduced to counts at fixed thresholds.

A resample of images needs the curves of all its pixels. Every image is reduced once to its counts at up to 4,096
thresholds. So a resample is a weighted sum of rows, and all resamples are a few matrix products. Between two thresholds the
curves are interpolated; for average precision they are steps. The thresholds are quantiles of the defect pixels and of a
sample of the normal pixels. They are dense at low false positive rates. The binning moves a value by about 1e-4. An
interval from a few hundred images is far wider. Point values are computed elsewhere, without bins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anomaly.metrics.curves import area_under_curve, average_precision_at, f1_at
from anomaly.metrics.intervals import Interval, percentile_interval, resample_weights

FloatMap = NDArray[np.float32]

NUM_QUANTILES = 2048  # of each class
_MAX_SAMPLE = 1 << 21
_BLOCK = 64  # resamples evaluated together


@dataclass(frozen=True)
class PixelIntervals:
    """95 % percentile intervals; the keys of `aupro` are the limits."""

    auroc: Interval
    average_precision: Interval
    f1_max: Interval
    aupro: dict[float, Interval]


class NormalSample:
    """Random sample of at most two million normal pixels from a stream of images; all pixels are equally likely."""

    def __init__(self, *, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._pixels_per_draw = 1
        self.values: FloatMap = np.empty(0, np.float32)

    def add(self, normal: FloatMap) -> None:
        """Draw from the normal pixels (n,) of one image."""
        if normal.size == 0:
            return
        drawn = self._rng.choice(normal, size=math.ceil(normal.size / self._pixels_per_draw), replace=False)
        self.values = np.concatenate([self.values, drawn])
        while self.values.size > _MAX_SAMPLE:
            self.values = self.values[::2].copy()
            self._pixels_per_draw *= 2


def choose_thresholds(normal: FloatMap, *, defect_quantiles: FloatMap) -> FloatMap:
    """Merge quantiles of normal pixels, half of them above the 75 % quantile, with quantiles of defect pixels.

    Args:
        normal: (n,) sample of normal pixels, n > 0.
        defect_quantiles: (m,) quantiles of defect pixels, including the lowest pixel.

    Returns:
        At most `NUM_QUANTILES` + m distinct thresholds, falling.
    """
    fpr = np.linspace(0, 1, NUM_QUANTILES) ** 2
    falling = np.sort(normal)[::-1]
    thresholds = falling[(fpr * (falling.size - 1)).astype(np.int64)]
    return np.unique(np.concatenate([thresholds, defect_quantiles]))[::-1]


class BinnedImages:
    """Counts per image and threshold: normal pixels, defect pixels and region overlap at or above the threshold.

    Args:
        thresholds: falling thresholds, the last one at or below every defect pixel.
        num_normal: number of normal pixels in each image.
        num_regions: number of regions in each image.
    """

    def __init__(self, thresholds: FloatMap, *, num_normal: Sequence[int], num_regions: Sequence[int]) -> None:
        self._thresholds = thresholds
        self._num_normal = np.array(num_normal, np.float64)
        self._num_regions = np.array(num_regions, np.float64)
        shape = (len(num_normal), thresholds.size)
        self._normal, self._defect, self._overlap = np.zeros(shape), np.zeros(shape), np.zeros(shape)

    def add_normal(self, index: int, rising: FloatMap) -> None:
        """Count the sorted normal pixels of image `index`."""
        self._normal[index] = rising.size - np.searchsorted(rising, self._thresholds)

    def add_defect(self, index: int, values: FloatMap, region_sizes: NDArray[np.int32]) -> None:
        """Count the defect pixels of image `index`; `region_sizes` holds the size of each pixel's region."""
        order = np.argsort(values)
        num_selected = values.size - np.searchsorted(values[order], self._thresholds)
        overlap = np.concatenate([[0.0], np.cumsum(1 / region_sizes[order[::-1]])])
        self._defect[index] = num_selected
        self._overlap[index] = overlap[num_selected]

    def intervals(self, limits: Sequence[float], *, seed: int, num_resamples: int) -> PixelIntervals:
        """Resample the images; resamples without normal or without defect pixels are skipped.

        Raises:
            DataError: no resample has both.
        """
        weights = resample_weights(self._num_normal.size, num_resamples=num_resamples, seed=seed).astype(np.float64)
        weights = weights[(weights @ self._num_normal > 0) & (weights @ self._num_regions > 0)]
        resampled = np.empty((3 + len(limits), len(weights)))
        for start in range(0, len(weights), _BLOCK):
            block = slice(start, start + _BLOCK)
            fp, tp = weights[block] @ self._normal, weights[block] @ self._defect
            fpr = fp / (weights[block] @ self._num_normal)[:, None]
            overlap = weights[block] @ self._overlap / (weights[block] @ self._num_regions)[:, None]
            resampled[:, block] = (
                area_under_curve(fpr, tp / tp[:, -1:], limit=1.0),
                average_precision_at(fp, tp),
                f1_at(fp, tp).max(axis=-1),
                *(area_under_curve(fpr, overlap, limit=limit) for limit in limits),
            )
        auroc, precision, f1, *aupro = (percentile_interval(row) for row in resampled)
        return PixelIntervals(auroc, precision, f1, dict(zip(limits, aupro, strict=True)))
