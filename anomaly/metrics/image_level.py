"""Figures of one score per image: the ranking of defects above good parts. Ties count as in scikit-learn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly.errors import DataError, UsageError
from anomaly.metrics.curves import FloatArray, area_under_curve, average_precision_at, f1_at
from anomaly.metrics.intervals import Estimate, check_num_resamples, percentile_interval, resample_weights

Scores = NDArray[np.floating[Any]]
Labels = NDArray[np.bool_]

_BLOCK = 64  # resamples evaluated together


@dataclass(frozen=True)
class ImageMetrics:
    """Ranking of images, each figure with its 95 % bootstrap interval; `f1_threshold` selects score >= threshold."""

    num_good: int
    num_defect: int
    auroc: Estimate
    average_precision: Estimate
    f1_max: Estimate
    f1_threshold: float


def image_metrics(scores: Scores, labels: Labels, *, seed: int, num_resamples: int = 1000) -> ImageMetrics:
    """Measure the ranking of images, with percentile intervals from resampled images.

    Images are drawn with replacement, good and defect together. Resamples without one of the classes are skipped.

    Args:
        scores: (n,), higher is more anomalous.
        labels: (n,) bool, True for a defect.
        seed: seed of the resampling.
        num_resamples: number of bootstrap resamples, at least 1.

    Raises:
        DataError: a class is missing, or a score is NaN.
        UsageError: the shapes or types do not fit, or there are no resamples.
    """
    check_num_resamples(num_resamples)
    ranking = _Ranking(scores, labels)
    weights = resample_weights(scores.size, num_resamples=num_resamples, seed=seed)
    num_defect = weights @ labels.astype(np.int64)
    weights = weights[(num_defect > 0) & (num_defect < scores.size)]
    resampled = np.empty((3, len(weights)))
    for start in range(0, len(weights), _BLOCK):
        block = slice(start, start + _BLOCK)
        fp, tp = ranking.counts(weights[block])
        resampled[:, block] = _roc_area(fp, tp), average_precision_at(fp, tp), f1_at(fp, tp).max(axis=-1)
    f1, threshold = f1_max(scores, labels)
    return ImageMetrics(
        num_good=int((~labels).sum()),
        num_defect=int(labels.sum()),
        auroc=Estimate(auroc(scores, labels), percentile_interval(resampled[0])),
        average_precision=Estimate(average_precision(scores, labels), percentile_interval(resampled[1])),
        f1_max=Estimate(f1, percentile_interval(resampled[2])),
        f1_threshold=threshold,
    )


def auroc(scores: Scores, labels: Labels) -> float:
    """Compute the probability that a defect scores above a good image; a tie counts one half.

    Args:
        scores: (n,), higher is more anomalous.
        labels: (n,) bool, True for a defect.

    Returns:
        The area under the ROC curve, in [0, 1].

    Raises:
        DataError: a class is missing, or a score is NaN.
        UsageError: the shapes or types do not fit.
    """
    return float(_roc_area(*_Ranking(scores, labels).counts(np.ones(scores.size))))


def average_precision(scores: Scores, labels: Labels) -> float:
    """Average the precision over the steps of recall, without interpolation.

    Args and errors: see `auroc`. Returns a value in (0, 1].
    """
    return float(average_precision_at(*_Ranking(scores, labels).counts(np.ones(scores.size))))


def f1_max(scores: Scores, labels: Labels) -> tuple[float, float]:
    """Find the highest F1 of all thresholds, and the highest threshold t with this F1 for score >= t.

    Args and errors: see `auroc`. The threshold is chosen on the labels that it is evaluated on. It describes the ranking; do
    not use it in a factory.
    """
    ranking = _Ranking(scores, labels)
    values = f1_at(*ranking.counts(np.ones(scores.size)))
    best = int(values.argmax())
    return float(values[best]), float(ranking.thresholds[best])


def roc_curve(scores: Scores, labels: Labels) -> tuple[FloatArray, FloatArray]:
    """Compute the points (fpr, tpr) of the ROC curve at all distinct scores, from (0, 0) to (1, 1).

    Args and errors: see `auroc`. Returns two rising arrays of shape (number of distinct scores + 1,).
    """
    fp, tp = _Ranking(scores, labels).counts(np.ones(scores.size))
    return np.concatenate([[0.0], fp / fp[-1]]), np.concatenate([[0.0], tp / tp[-1]])


def check_scores(scores: Scores, labels: Labels) -> None:
    """Refuse scores and labels that do not fit together.

    Raises:
        DataError: a score is NaN.
        UsageError: the shapes or types do not fit.
    """
    if scores.ndim != 1 or scores.shape != labels.shape or labels.dtype != np.bool_:
        raise UsageError(
            f"scores of shape {scores.shape} with labels of shape {labels.shape} and type {labels.dtype}: "
            "give one score and one bool label per image"
        )
    nan = np.flatnonzero(np.isnan(scores))
    if nan.size:
        raise DataError(f"the score of image {nan[0]} is NaN: leave out images that could not be scored")


class _Ranking:
    """Order of the images by falling score; equal scores form one step."""

    def __init__(self, scores: Scores, labels: Labels) -> None:
        check_scores(scores, labels)
        num_defect = int(labels.sum())
        if num_defect in (0, scores.size):
            raise DataError(
                f"{scores.size - num_defect} good and {num_defect} defect images: a ranking needs at least one of each"
            )
        self._order = np.argsort(scores)[::-1]
        falling = scores[self._order]
        self._is_defect = labels[self._order]
        self._step_ends = np.append(np.flatnonzero(falling[1:] != falling[:-1]), scores.size - 1)
        self.thresholds = falling[self._step_ends]

    def counts(self, weights: NDArray[Any]) -> tuple[FloatArray, FloatArray]:
        """Count good and defect images at or above each threshold; image i counts `weights[..., i]` times."""
        ordered = weights[..., self._order].astype(np.float64)
        fp = np.cumsum(ordered * ~self._is_defect, axis=-1)[..., self._step_ends]
        tp = np.cumsum(ordered * self._is_defect, axis=-1)[..., self._step_ends]
        return fp, tp


def _roc_area(fp: FloatArray, tp: FloatArray) -> FloatArray:
    return area_under_curve(fp / fp[..., -1:], tp / tp[..., -1:], limit=1.0)
