"""Figures of anomaly maps: the ranking of defect pixels above normal pixels. Exact, in two passes and bounded memory.

All figures depend only on the rank of each defect pixel among the normal pixels of all test images. Good images count too.
The first pass keeps the defect pixels. The second pass counts the normal pixels above and at each of their values, and
keeps no pixels.

    v_j                 the distinct values of defect pixels, falling
    num_equal[j]        defect pixels = v_j
    share[j]            sum over those of 1 / (number of regions * size of the pixel's region), so that the mean
                        overlap of the regions with the pixels >= v_j is share[0] + ... + share[j]
    num_above[j]        normal pixels > v_j
    num_at_least[j]     normal pixels >= v_j
    F_gt, F_ge          the last two divided by the number of normal pixels

Per-region overlap: Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 129 (2021), section 5. Regions are
8-connected. The false positive rate is global. The area up to the limit is divided by the limit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from anomaly.errors import DataError, UsageError
from anomaly.metrics.curves import FloatArray, average_precision_at, f1_at
from anomaly.metrics.intervals import Estimate, check_num_resamples
from anomaly.metrics.pixel_bootstrap import NUM_QUANTILES, BinnedImages, NormalSample, choose_thresholds

ImagePixels = tuple[NDArray[np.float32], NDArray[np.bool_]]
Images = Callable[[], Iterator[ImagePixels]]

_RUN = 1 << 24  # normal pixels ranked together; a longer sorted run is faster
_BLOCK = 1 << 20  # defect values with areas summed together
_MAX_CURVE_POINTS = 2000


@dataclass(frozen=True)
class PixelCurve:
    """At most 2,000 exact points of the ROC and PRO curves from (0, 0) to (1, 1); rising arrays (n,)."""

    fpr: FloatArray
    tpr: FloatArray
    pro: FloatArray


@dataclass(frozen=True)
class PixelMetrics:
    """Ranking of the pixels of all images together.

    The figures are exact; their 95 % intervals come from resampled images and binned counts. The keys of `aupro` are the
    limits. `f1_threshold` is the highest threshold t with the highest F1 for value >= t.
    """

    num_images: int
    num_normal: int
    num_defect: int
    num_regions: int
    auroc: Estimate
    average_precision: Estimate
    f1_max: Estimate
    f1_threshold: float
    aupro: dict[float, Estimate]
    curve: PixelCurve


def pixel_metrics(
    images: Images, *, limits: Sequence[float] = (0.30, 0.05), seed: int, num_resamples: int = 1000
) -> PixelMetrics:
    """Measure the ranking of the pixels of all images together. Each of two passes reads one image at a time.

    Memory: at most 100 bytes per defect pixel, 120 kB per image and 1 GB; normal pixels are not kept.

    Args:
        images: function called twice; each call gives the same pairs of anomaly map and mask in the same order. A map is
            (H, W) float32, enlarged to its mask; higher is more anomalous, and infinities are allowed. A mask is (H, W)
            bool, all False for a good image. Sizes may differ between images.
        limits: upper limits of the false positive rate for the area under the PRO curve, each in (0, 1].
        seed: seed of the resampling and of the choice of bins.
        num_resamples: number of bootstrap resamples of whole images, at least 1; resamples without a class are skipped.

    Raises:
        DataError: a map holds NaN, is not float32 or does not fit its mask; normal or defect pixels are missing; the
            second pass gives other images than the first.
        UsageError: a limit is outside (0, 1], or there are no resamples.
    """
    for limit in limits:
        if not 0 < limit <= 1:
            raise UsageError(f"the limit {limit} of the false positive rate is outside (0, 1]: give e.g. 0.30 or 0.05")
    check_num_resamples(num_resamples)

    sample = NormalSample(seed=seed)
    defects = _read_defects(images, sample)
    values, num_equal, share = _group(defects)
    tp = np.cumsum(num_equal)
    quantiles = values[np.searchsorted(tp, np.linspace(1, tp[-1], NUM_QUANTILES))]
    binned = BinnedImages(
        choose_thresholds(sample.values, defect_quantiles=quantiles),
        num_normal=defects.num_normal,
        num_regions=defects.num_regions,
    )
    for index, (pixels, region_sizes) in enumerate(zip(defects.values, defects.region_sizes, strict=True)):
        binned.add_defect(index, pixels, region_sizes)
    defects.values.clear()
    defects.region_sizes.clear()
    num_above, num_at_least = _count_normal(images, values, binned, num_normal=defects.num_normal)

    intervals = binned.intervals(limits, seed=seed, num_resamples=num_resamples)
    precision = float(average_precision_at(num_at_least, tp))
    f1 = f1_at(num_at_least, tp)
    best = int(f1.argmax())
    num_normal, num_defect = sum(defects.num_normal), int(tp[-1])
    above, at_least = num_above / num_normal, num_at_least / num_normal
    return PixelMetrics(
        num_images=len(defects.num_normal),
        num_normal=num_normal,
        num_defect=num_defect,
        num_regions=sum(defects.num_regions),
        auroc=Estimate(_area(above, at_least, num_equal, limit=1.0) / num_defect, intervals.auroc),
        average_precision=Estimate(precision, intervals.average_precision),
        f1_max=Estimate(float(f1[best]), intervals.f1_max),
        f1_threshold=float(values[best]),
        aupro={x: Estimate(_area(above, at_least, share, limit=x), intervals.aupro[x]) for x in limits},
        curve=_curve(above, at_least, num_equal / num_defect, share),
    )


@dataclass(frozen=True)
class _Defects:
    """Of each image: defect pixels, the size of each pixel's region, and the number of regions and normal pixels."""

    values: list[NDArray[np.float32]]
    region_sizes: list[NDArray[np.int32]]
    num_regions: list[int]
    num_normal: list[int]


def _checked(images: Images) -> Iterator[ImagePixels]:
    for index, (anomaly_map, mask) in enumerate(images()):
        if anomaly_map.ndim != 2 or anomaly_map.shape != mask.shape:
            raise DataError(
                f"image {index}: anomaly map {anomaly_map.shape}, mask {mask.shape}: enlarge the map to the mask"
            )
        if anomaly_map.dtype != np.float32 or mask.dtype != np.bool_:
            raise DataError(f"image {index}: map {anomaly_map.dtype}, mask {mask.dtype}: give float32 and bool")
        if np.isnan(anomaly_map).any():
            raise DataError(f"image {index}: the anomaly map holds NaN: check the model, and score the image again")
        yield anomaly_map, mask


def _read_defects(images: Images, sample: NormalSample) -> _Defects:
    """Make the first pass over the images."""
    defects = _Defects([], [], [], [])
    for anomaly_map, mask in _checked(images):
        num_labels, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8, ltype=cv2.CV_32S)
        regions = labels[mask]
        defects.values.append(anomaly_map[mask])
        defects.region_sizes.append(np.bincount(regions, minlength=1).astype(np.int32)[regions])
        defects.num_regions.append(num_labels - 1)
        normal = anomaly_map[~mask]
        defects.num_normal.append(normal.size)
        sample.add(normal)
    num_images, num_normal = len(defects.num_normal), sum(defects.num_normal)
    if sum(defects.num_regions) == 0:
        raise DataError(f"no defect pixel in {num_images} images: pixel metrics need a mask with defect pixels")
    if num_normal == 0:
        raise DataError(f"no normal pixel in {num_images} images: pixel metrics need a mask with normal pixels")
    return defects


def _group(defects: _Defects) -> tuple[NDArray[np.float32], FloatArray, FloatArray]:
    """Compute v_j, num_equal and share."""
    pixels = np.concatenate(defects.values)
    order = np.argsort(pixels)[::-1]
    pixels = pixels[order]
    starts = np.flatnonzero(np.concatenate([[True], pixels[1:] != pixels[:-1]]))
    share = np.add.reduceat(1 / np.concatenate(defects.region_sizes)[order], starts) / sum(defects.num_regions)
    return pixels[starts], np.diff(starts, append=pixels.size).astype(np.float64), share


def _count_normal(
    images: Images, values: NDArray[np.float32], binned: BinnedImages, *, num_normal: Sequence[int]
) -> tuple[FloatArray, FloatArray]:
    """Make the second pass over the images; compute num_above and num_at_least."""
    rising = np.ascontiguousarray(values[::-1])
    num_in_gap = np.zeros(values.size + 1)  # [k]: rising[k - 1] < x <= rising[k], unbounded at both ends
    num_tied = np.zeros(values.size)  # [k]: x = rising[k]
    for run in _runs(_read_normal(images, binned, num_normal=num_normal)):
        gaps = np.searchsorted(rising, run)
        np.add.at(num_in_gap, gaps, 1.0)
        np.add.at(num_tied, gaps[rising.take(gaps, mode="clip") == run], 1.0)
    num_above = np.cumsum(num_in_gap[:0:-1])
    return num_above, num_above + num_tied[::-1]


def _read_normal(images: Images, binned: BinnedImages, *, num_normal: Sequence[int]) -> Iterator[NDArray[np.float32]]:
    """Yield the sorted normal pixels of each image, and count them in the bins."""
    num_images = 0
    for anomaly_map, mask in _checked(images):
        rising = np.sort(anomaly_map[~mask])
        if num_images == len(num_normal) or rising.size != num_normal[num_images]:
            raise DataError(
                f"image {num_images} of the second pass differs from the first pass: give the same images twice"
            )
        binned.add_normal(num_images, rising)
        num_images += 1
        yield rising
    if num_images < len(num_normal):
        raise DataError(
            f"{num_images} images in the second pass, {len(num_normal)} in the first: give a new iterator in each call"
        )


def _runs(parts: Iterator[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
    """Join the parts into sorted runs of about `_RUN` values."""
    waiting: list[NDArray[np.float32]] = []
    num_waiting = 0
    for part in parts:
        waiting.append(part)
        num_waiting += part.size
        if num_waiting >= _RUN:
            yield np.sort(np.concatenate(waiting))
            waiting, num_waiting = [], 0
    if waiting:
        yield np.sort(np.concatenate(waiting))


def _area(above: FloatArray, at_least: FloatArray, rise: FloatArray, *, limit: float) -> float:
    """Integrate a curve up to `limit` and divide by it.

    The curve rises linearly by rise[j] from F_gt[j] to F_ge[j], or in one step if both are equal. Each rise adds itself times
    the mean width between it and the limit.
    """
    area = 0.0
    for start in range(0, rise.size, _BLOCK):
        block = slice(start, start + _BLOCK)
        low, high = above[block], at_least[block]
        width = high - low
        kept = np.clip(limit - low, 0, width)
        ramp = np.divide(kept**2, 2 * width, out=np.zeros_like(width), where=width > 0)
        area += float(np.sum(rise[block] * (ramp + np.maximum(limit - high, 0))))
    return area / limit


def _curve(above: FloatArray, at_least: FloatArray, rise: FloatArray, share: FloatArray) -> PixelCurve:
    """Pick points evenly along both axes, more at low rates; each rise has a point below and above."""
    tpr, pro = np.cumsum(rise), np.cumsum(share)
    levels = np.linspace(0, 1, (_MAX_CURVE_POINTS - 2) // 4)
    picked = np.union1d(
        np.searchsorted(at_least, at_least[-1] * levels**2),
        np.searchsorted(tpr, tpr[-1] * levels),
    )

    def points(below: FloatArray, reached: FloatArray) -> FloatArray:
        inner = np.stack([below, reached], axis=1).ravel()
        return np.concatenate([[0.0], np.minimum(inner, 1.0), [1.0]])

    return PixelCurve(
        fpr=points(above[picked], at_least[picked]),
        tpr=points(np.where(picked > 0, tpr[picked - 1], 0.0), tpr[picked]),
        pro=points(np.where(picked > 0, pro[picked - 1], 0.0), pro[picked]),
    )
