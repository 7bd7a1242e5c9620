"""The guarantee: a threshold fitted on calibration images, and its bound on false alarms.

Split conformal prediction: V. Vovk, A. Gammerman, G. Shafer, "Algorithmic Learning in a Random World", 2005; the
rate has the exact distribution of an order statistic: H. David and H. Nagaraja, "Order Statistics", 2003, §2.

Notation: n -> number of calibration images; k -> rank of the score that becomes the threshold, k = ceil((n + 1)(1 - alpha)).
For any detector, the false-alarm rate of this threshold has the distribution Beta(n + 1 - k, k). Its mean is
(n + 1 - k)/(n + 1).
"""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from anomaly.conformal.beta_distribution import beta_quantile
from anomaly.errors import CalibrationError, UsageError

GuaranteeKind = Literal["expected", "bound"]
Construction = Literal["split", "leave_one_out", "cross"]
"""Origin of the calibration scores: images outside the training set; training images, each scored without itself; or
training images, each scored by a model of another part of the images"""
CONFIDENCE = 0.95
DEFAULT_ALPHA = 0.01
SCALE_MARGIN = 1e-3
"""Relative widening of the scale; it keeps the image that sets the threshold below it in every runtime"""


@dataclass(frozen=True)
class Guarantee:
    """Guarantee of a threshold at rank `rank` of `num_images` calibration scores."""

    num_images: int
    rank: int
    alpha: float
    guarantee: GuaranteeKind

    @property
    def expected_rate(self) -> float:
        """Expected share of good parts above the threshold, in [0, 1]."""
        return (self.num_images + 1 - self.rank) / (self.num_images + 1)

    @property
    def rate_bound(self) -> float:
        """Upper bound of this share, with 95 % confidence over the draw of the calibration images."""
        return beta_quantile(CONFIDENCE, self.num_images + 1 - self.rank, self.rank)


@dataclass(frozen=True)
class Scale:
    """Affine scale of one output: calibrated = (raw - offset) / scale."""

    offset: float
    scale: float


def rank_for(num_images: int, *, alpha: float, guarantee: GuaranteeKind) -> int:
    """Find the rank k of the smallest calibration score that keeps the guarantee.

    Args:
        num_images: number of calibration images, n.
        alpha: share of good parts that may be rejected, in (0, 1).
        guarantee: quantity bounded by alpha: the mean of the rate (`expected`) or its 95 % upper quantile (`bound`).

    Returns:
        The rank k, 1 to n, in ascending order.

    Raises:
        CalibrationError: alpha is outside (0, 1), or n is too small for it.
    """
    if guarantee not in get_args(GuaranteeKind):
        raise UsageError(f"guarantee {guarantee!r}: give {' or '.join(map(repr, get_args(GuaranteeKind)))}")
    if not 0 < alpha < 1:
        raise CalibrationError(f"alpha {alpha} is not a share of good parts: give a number between 0 and 1, e.g. 0.01")
    if guarantee == "expected":
        rank = math.ceil((num_images + 1) * (1 - alpha) - 1e-9)
    else:  # the bound falls as the rank grows: bisect for the first rank that keeps it
        rank = 1 + bisect.bisect_left(
            range(1, num_images + 1),
            True,
            key=lambda k: beta_quantile(CONFIDENCE, num_images + 1 - k, k) <= alpha + 1e-9,
        )
    if rank > num_images:
        kind = "" if guarantee == "expected" else " with 95 % confidence"
        raise CalibrationError(
            f"{num_images} good images cannot bound false alarms at {alpha:g}{kind}:"
            f" give at least {images_needed(alpha, guarantee=guarantee)} calibration images"
        )
    return rank


def images_needed(alpha: float, *, guarantee: GuaranteeKind) -> int:
    """Find the smallest number of calibration images for a guarantee of `alpha`."""
    if guarantee == "expected":
        return math.ceil(1 / alpha - 1 - 1e-9)
    # with the largest score as threshold the rate is Beta(1, n): P(rate > alpha) = (1 - alpha)^n
    return math.ceil(math.log(1 - CONFIDENCE) / math.log1p(-alpha) - 1e-9)


def tightest_alpha(num_images: int, *, guarantee: GuaranteeKind) -> float:
    """Find the smallest alpha that `num_images` calibration images can guarantee.

    Raises:
        CalibrationError: there are no images.
    """
    if num_images < 1:
        raise CalibrationError("0 good images give no guarantee: give at least 10 calibration images")
    if guarantee == "expected":
        return 1 / (num_images + 1)
    return -math.expm1(math.log(1 - CONFIDENCE) / num_images)


def resolve_alpha(alpha: float | None, *, num_images: int, guarantee: GuaranteeKind) -> float:
    """Find the alpha to certify: the given one, or by default 1 % or the smallest possible one."""
    if alpha is not None:
        return alpha
    return max(DEFAULT_ALPHA, tightest_alpha(num_images, guarantee=guarantee))


def guarantee_for(num_images: int, *, alpha: float, guarantee: GuaranteeKind) -> Guarantee:
    """State the guarantee for `num_images` calibration images.

    Raises:
        CalibrationError: see `rank_for`.
    """
    rank = rank_for(num_images, alpha=alpha, guarantee=guarantee)
    return Guarantee(num_images=num_images, rank=rank, alpha=alpha, guarantee=guarantee)


def fit_scale(raw: NDArray[Any], *, alpha: float, guarantee: GuaranteeKind) -> Scale:
    """Fit an affine scale on the raw values of the calibration images.

    The offset is the median. The scale is the threshold minus the offset, widened by `SCALE_MARGIN`.

    Args:
        raw: (n,) raw scores, or maxima of raw maps.
        alpha: share of good parts that may be rejected.
        guarantee: quantity bounded by alpha, see `rank_for`.

    Raises:
        CalibrationError: too few values for alpha, a value that is not finite, equal values, or a threshold not above
            the median.
    """
    values = np.sort(np.asarray(raw, dtype=np.float64))
    if not np.isfinite(values).all():
        bad = int((~np.isfinite(values)).sum())
        raise CalibrationError(
            f"{bad} of {len(values)} calibration scores are not finite: the training diverged, lower its learning rate"
        )
    rank = rank_for(len(values), alpha=alpha, guarantee=guarantee)
    if 2 * rank <= len(values) + 1:
        raise CalibrationError(
            f"alpha {alpha:g} puts the threshold of {len(values)} good images at their median or below:"
            " give a smaller alpha, or more images"
        )
    offset = float(np.median(values))
    scale = (float(values[rank - 1]) - offset) * (1 + SCALE_MARGIN)
    # a scale below the values' resolution in single precision is useless
    if scale <= 1e-6 * max(abs(offset), abs(float(values[-1])), 1e-30):
        raise CalibrationError(
            f"the {len(values)} calibration images have almost the same score (median {offset:g}, threshold"
            f" {values[rank - 1]:g}): they may be copies of one image; give different ones"
        )
    return Scale(offset=offset, scale=scale)


def threshold_for(sorted_scores: NDArray[Any], *, alpha: float, guarantee: GuaranteeKind) -> float:
    """Find the threshold of another alpha on the same calibration scores.

    Args:
        sorted_scores: (n,) calibrated scores of the calibration images, ascending.
        alpha: share of good parts that may be rejected.
        guarantee: quantity bounded by alpha, see `rank_for`.

    Returns:
        The threshold in calibrated units.

    Raises:
        CalibrationError: see `rank_for`.
    """
    rank = rank_for(len(sorted_scores), alpha=alpha, guarantee=guarantee)
    value = float(sorted_scores[rank - 1])
    # the margin of the scale: the alpha of the file gives 1
    return value * (1 + SCALE_MARGIN) if value > 0 else value + SCALE_MARGIN


def raised_threshold(
    sorted_scores: NDArray[Any], *, labelled: NDArray[Any], alpha: float, guarantee: GuaranteeKind
) -> float:
    """Find the threshold on calibration scores and the scores of images that a person labelled good.

    It is the larger of two thresholds of the same alpha: on the n calibration scores, and on all n + m scores together.

    Calibration images are exchangeable with future good images. Labelled images need not be: a person looks at rejected
    images. A higher threshold never rejects more images. The guarantee of the n calibration scores therefore holds for any
    choice of labelled images. The certificate states this guarantee. Labelled images with low scores alone would lower the
    threshold: with n = 99 and alpha 1 % it is the largest score; after 100 low scores it would be the second largest.

    Of n + m good images about alpha (n + m) may lie above the threshold. If m is far smaller than n, the threshold rises to
    one of the highest labelled scores. Then fewer good images are rejected than guaranteed, and more defects pass. Only good
    images drawn without regard to their score avoid this.

    Args:
        sorted_scores: (n,) calibrated scores of the calibration images, ascending.
        labelled: (m,) calibrated scores of the labelled good images.
        alpha: share of good parts that may be rejected.
        guarantee: quantity bounded by alpha, see `rank_for`.

    Returns:
        The threshold in calibrated units.

    Raises:
        CalibrationError: the n calibration scores do not support alpha; labelled scores do not count here.
    """
    together = np.sort(np.concatenate([sorted_scores, labelled]))
    return max(threshold_for(scores, alpha=alpha, guarantee=guarantee) for scores in (sorted_scores, together))


def p_values(scores: NDArray[Any], *, calibration_scores: NDArray[Any]) -> NDArray[np.float32]:
    """Compute the conformal p-value of each score among the calibration scores: (1 + #{s_i >= s}) / (n + 1).

    Args:
        scores: (m,) calibrated scores.
        calibration_scores: (n,) calibrated scores of the calibration images, ascending.

    Returns:
        (m,) float32 in (0, 1].
    """
    at_least = len(calibration_scores) - np.searchsorted(calibration_scores, scores, side="left")
    return ((1 + at_least) / (len(calibration_scores) + 1)).astype(np.float32)
