"""The guarantee: a threshold set on calibration images, and what it guarantees about false alarms.

Split conformal prediction: V. Vovk, A. Gammerman, G. Shafer, "Algorithmic Learning in a Random World", 2005; the
exact distribution of the rate is that of an order statistic: H. David and H. Nagaraja, "Order Statistics", 2003, §2.

Notation: n -> calibration images; k -> rank of the score that becomes the threshold, k = ceil((n + 1)(1 - alpha));
the false-alarm rate of that threshold is Beta(n + 1 - k, k) distributed, whatever the detector; its mean is
(n + 1 - k)/(n + 1).
"""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from anomaly.conformal.beta_distribution import beta_quantile
from anomaly.errors import CalibrationError

GuaranteeKind = Literal["expected", "bound"]
CONFIDENCE = 0.95
DEFAULT_ALPHA = 0.01
SCALE_MARGIN = 1e-3
"""Share of itself by which the scale is widened, so that the image which sets the threshold stays below it everywhere"""


@dataclass(frozen=True)
class Guarantee:
    """What a threshold at rank `rank` of `num_images` calibration good scores guarantees."""

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
        """Upper bound of that share which holds with 95 % confidence over the draw of the calibration images."""
        return beta_quantile(CONFIDENCE, self.num_images + 1 - self.rank, self.rank)


@dataclass(frozen=True)
class Scale:
    """The affine scale `(raw - offset) / scale` of one output."""

    offset: float
    scale: float


def rank_for(num_images: int, *, alpha: float, guarantee: GuaranteeKind) -> int:
    """Find the rank k of the smallest sorted calibration score that keeps the guarantee.

    Args:
        num_images: calibration images, n.
        alpha: share of good parts that may be rejected, in (0, 1).
        guarantee: `expected` bounds the mean of the rate by alpha, `bound` its 95 % upper quantile.

    Raises:
        CalibrationError: alpha outside (0, 1), or n too small for it.
    """
    if not 0 < alpha < 1:
        raise CalibrationError(f"alpha {alpha} is no share of good parts: give a number between 0 and 1, e.g. 0.01")
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
            f" hold out at least {images_needed(alpha, guarantee=guarantee)}"
        )
    return rank


def images_needed(alpha: float, *, guarantee: GuaranteeKind) -> int:
    """Count the calibration images that a guarantee of `alpha` needs at least."""
    if guarantee == "expected":
        return math.ceil(1 / alpha - 1 - 1e-9)
    # with the largest score as threshold the rate is Beta(1, n): P(rate > alpha) = (1 - alpha)^n
    return math.ceil(math.log(1 - CONFIDENCE) / math.log1p(-alpha) - 1e-9)


def tightest_alpha(num_images: int, *, guarantee: GuaranteeKind) -> float:
    """Give the smallest alpha that `num_images` calibration images can guarantee.

    Raises:
        CalibrationError: no images at all.
    """
    if num_images < 1:
        raise CalibrationError("0 good images guarantee nothing: hold out at least 10")
    if guarantee == "expected":
        return 1 / (num_images + 1)
    return -math.expm1(math.log(1 - CONFIDENCE) / num_images)


def resolve_alpha(alpha: float | Literal["default"], *, num_images: int, guarantee: GuaranteeKind) -> float:
    """Give the alpha to certify: the one asked for, or by default 1 % or the tightest that the images support."""
    if alpha != "default":
        return alpha
    return max(DEFAULT_ALPHA, tightest_alpha(num_images, guarantee=guarantee))


def guarantee_for(num_images: int, *, alpha: float, guarantee: GuaranteeKind) -> Guarantee:
    """State the guarantee for `num_images` calibration images; raises `CalibrationError` where it cannot be kept."""
    rank = rank_for(num_images, alpha=alpha, guarantee=guarantee)
    return Guarantee(num_images=num_images, rank=rank, alpha=alpha, guarantee=guarantee)


def fit_scale(raw: NDArray[Any], *, alpha: float, guarantee: GuaranteeKind) -> Scale:
    """Fit offset (the median) and scale (the threshold minus offset, widened by `SCALE_MARGIN`) on calibration good values.

    Args:
        raw: (n,) raw scores, or per-image maxima of raw maps.
        alpha: share of good parts that may be rejected.
        guarantee: what alpha bounds.

    Raises:
        CalibrationError: too few values for alpha, an alpha that puts the threshold at the median or below, a value that is
            not finite, or values without spread.
    """
    values = np.sort(np.asarray(raw, dtype=np.float64))
    if not np.isfinite(values).all():
        bad = int((~np.isfinite(values)).sum())
        raise CalibrationError(
            f"{bad} of {len(values)} calibration scores are not finite: the training diverged, lower its rate"
        )
    rank = rank_for(len(values), alpha=alpha, guarantee=guarantee)
    if 2 * rank <= len(values) + 1:
        raise CalibrationError(
            f"alpha {alpha:g} puts the threshold of {len(values)} good images at their median or below:"
            " give a smaller alpha, or more images"
        )
    offset = float(np.median(values))
    scale = (float(values[rank - 1]) - offset) * (1 + SCALE_MARGIN)
    # below single precision's resolution of the values there is no scale to speak of
    if scale <= 1e-6 * max(abs(offset), abs(float(values[-1])), 1e-30):
        raise CalibrationError(
            f"the {len(values)} calibration images score alike (median {offset:g}, threshold {values[rank - 1]:g}):"
            " are they copies of one image? hold out different ones"
        )
    return Scale(offset=offset, scale=scale)


def threshold_for(sorted_scores: NDArray[Any], *, alpha: float, guarantee: GuaranteeKind) -> float:
    """Give the threshold, in calibrated units, that another alpha would have set on the same calibration scores.

    Args:
        sorted_scores: (n,) calibrated calibration scores, ascending.
        alpha: share of good parts that may be rejected.
        guarantee: what alpha bounds.
    """
    rank = rank_for(len(sorted_scores), alpha=alpha, guarantee=guarantee)
    value = float(sorted_scores[rank - 1])
    # the same margin as the scale has, so that the alpha of the file itself gives 1
    return value * (1 + SCALE_MARGIN) if value > 0 else value + SCALE_MARGIN


def raised_threshold(
    sorted_scores: NDArray[Any], *, labelled: NDArray[Any], alpha: float, guarantee: GuaranteeKind
) -> float:
    """Give the threshold on calibration scores to which good images that a person labelled are added: it is never below that without them.

    The larger of two limits of the same alpha: that of the n calibration scores, and that of these and the m labelled ones
    together. Calibration images are exchangeable with good images to come; labelled ones need not be, for a person looks at what was
    rejected. Whatever chose them, a threshold at or above that of the n rejects no more than it, so the guarantee of the n holds
    as it stands: it is the one to certify, with n and not with n + m. Without the larger of the two, good images chosen for low
    scores would lower the threshold: n = 99 at alpha 1 % stops at the largest score, with 100 low ones more at the second.

    How far it can rise: of n + m good images about alpha (n + m) may lie above the threshold, so where m hard good images are far fewer
    than the n it goes to one of the hardest. It rejects fewer good images than guaranteed then, and more defects pass; only good images
    that were drawn without regard to their score give a threshold that is no higher than it need be.

    Args:
        sorted_scores: (n,) calibrated calibration scores, ascending.
        labelled: (m,) calibrated scores of the good images that were labelled.
        alpha: share of good parts that may be rejected.
        guarantee: what alpha bounds.

    Returns:
        The threshold in calibrated units, as `threshold_for`.

    Raises:
        CalibrationError: an alpha that the n calibration scores do not support; labelled ones make no guarantee.
    """
    together = np.sort(np.concatenate([sorted_scores, labelled]))
    return max(threshold_for(scores, alpha=alpha, guarantee=guarantee) for scores in (sorted_scores, together))


def p_values(scores: NDArray[Any], *, calibration_images: NDArray[Any]) -> NDArray[np.float32]:
    """Conformal p-value of each score among the calibration images: (1 + #{s_i >= s}) / (n + 1).

    Args:
        scores: (m,) calibrated scores.
        calibration_images: (n,) calibrated calibration scores, ascending.

    Returns:
        (m,) float32 in (0, 1].
    """
    at_least = len(calibration_images) - np.searchsorted(calibration_images, scores, side="left")
    return ((1 + at_least) / (len(calibration_images) + 1)).astype(np.float32)
