"""The promise: a limit set on held-out good images, and what it guarantees about false alarms.

Split conformal prediction: V. Vovk, A. Gammerman, G. Shafer, "Algorithmic Learning in a Random World", 2005; the
exact distribution of the rate is that of an order statistic: H. David and H. Nagaraja, "Order Statistics", 2003, §2.

Notation: n -> held-out good images; k -> rank of the score that becomes the limit, k = ceil((n + 1)(1 - alpha));
the false-alarm rate of that limit is Beta(n + 1 - k, k) distributed, whatever the detector; its mean is
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

Promise = Literal["expected", "bound"]
CONFIDENCE = 0.95
DEFAULT_ALPHA = 0.01
UNIT_MARGIN = 1e-3
"""Share of itself by which the unit is widened, so that the image which sets the limit stays below it everywhere"""


@dataclass(frozen=True)
class Guarantee:
    """What a limit at rank `rank` of `num_images` held-out good scores promises."""

    num_images: int
    rank: int
    alpha: float
    promise: Promise

    @property
    def expected_rate(self) -> float:
        """Expected share of good parts above the limit, in [0, 1]."""
        return (self.num_images + 1 - self.rank) / (self.num_images + 1)

    @property
    def rate_bound(self) -> float:
        """Upper bound of that share which holds with 95 % confidence over the draw of the held-out images."""
        return beta_quantile(CONFIDENCE, self.num_images + 1 - self.rank, self.rank)


@dataclass(frozen=True)
class Scale:
    """The affine scale `(raw - zero) / unit` of one output."""

    zero: float
    unit: float


def rank_for(num_images: int, *, alpha: float, promise: Promise) -> int:
    """Find the rank k of the smallest sorted held-out score that keeps the promise.

    Args:
        num_images: held-out good images, n.
        alpha: share of good parts that may be rejected, in (0, 1).
        promise: `expected` bounds the mean of the rate by alpha, `bound` its 95 % upper quantile.

    Raises:
        CalibrationError: alpha outside (0, 1), or n too small for it.
    """
    if not 0 < alpha < 1:
        raise CalibrationError(f"alpha {alpha} is no share of good parts: give a number between 0 and 1, e.g. 0.01")
    if promise == "expected":
        rank = math.ceil((num_images + 1) * (1 - alpha) - 1e-9)
    else:  # the bound falls as the rank grows: bisect for the first rank that keeps it
        rank = 1 + bisect.bisect_left(
            range(1, num_images + 1),
            True,
            key=lambda k: beta_quantile(CONFIDENCE, num_images + 1 - k, k) <= alpha + 1e-9,
        )
    if rank > num_images:
        kind = "" if promise == "expected" else " with 95 % confidence"
        raise CalibrationError(
            f"{num_images} good images cannot bound false alarms at {alpha:g}{kind}:"
            f" hold out at least {images_needed(alpha, promise=promise)}"
        )
    return rank


def images_needed(alpha: float, *, promise: Promise) -> int:
    """Count the held-out good images that a promise of `alpha` needs at least."""
    if promise == "expected":
        return math.ceil(1 / alpha - 1 - 1e-9)
    # with the largest score as limit the rate is Beta(1, n): P(rate > alpha) = (1 - alpha)^n
    return math.ceil(math.log(1 - CONFIDENCE) / math.log1p(-alpha) - 1e-9)


def tightest_alpha(num_images: int, *, promise: Promise) -> float:
    """Give the smallest alpha that `num_images` held-out good images can promise.

    Raises:
        CalibrationError: no images at all.
    """
    if num_images < 1:
        raise CalibrationError("0 good images promise nothing: hold out at least 10")
    if promise == "expected":
        return 1 / (num_images + 1)
    return -math.expm1(math.log(1 - CONFIDENCE) / num_images)


def resolve_alpha(alpha: float | Literal["default"], *, num_images: int, promise: Promise) -> float:
    """Give the alpha to certify: the one asked for, or by default 1 % or the tightest that the images support."""
    if alpha != "default":
        return alpha
    return max(DEFAULT_ALPHA, tightest_alpha(num_images, promise=promise))


def guarantee(num_images: int, *, alpha: float, promise: Promise) -> Guarantee:
    """State the promise for `num_images` held-out images; raises `CalibrationError` where it cannot be kept."""
    rank = rank_for(num_images, alpha=alpha, promise=promise)
    return Guarantee(num_images=num_images, rank=rank, alpha=alpha, promise=promise)


def fit_scale(raw: NDArray[Any], *, alpha: float, promise: Promise) -> Scale:
    """Fit zero (the median) and unit (the limit minus zero, widened by `UNIT_MARGIN`) on held-out good values.

    Args:
        raw: (n,) raw scores, or per-image maxima of raw maps.
        alpha: share of good parts that may be rejected.
        promise: what alpha bounds.

    Raises:
        CalibrationError: too few values for alpha, an alpha that puts the limit at the median or below, a value that is
            not finite, or values without spread.
    """
    values = np.sort(np.asarray(raw, dtype=np.float64))
    if not np.isfinite(values).all():
        bad = int((~np.isfinite(values)).sum())
        raise CalibrationError(
            f"{bad} of {len(values)} held-out scores are not finite: the training diverged, lower its rate"
        )
    rank = rank_for(len(values), alpha=alpha, promise=promise)
    if 2 * rank <= len(values) + 1:
        raise CalibrationError(
            f"alpha {alpha:g} puts the limit of {len(values)} good images at their median or below:"
            " give a smaller alpha, or more images"
        )
    zero = float(np.median(values))
    unit = (float(values[rank - 1]) - zero) * (1 + UNIT_MARGIN)
    # below single precision's resolution of the values there is no scale to speak of
    if unit <= 1e-6 * max(abs(zero), abs(float(values[-1])), 1e-30):
        raise CalibrationError(
            f"the {len(values)} held-out good images score alike (median {zero:g}, limit {values[rank - 1]:g}):"
            " are they copies of one photograph? hold out different ones"
        )
    return Scale(zero=zero, unit=unit)


def limit_for(sorted_scores: NDArray[Any], *, alpha: float, promise: Promise) -> float:
    """Give the limit, in calibrated units, that another alpha would have set on the same held-out scores.

    Args:
        sorted_scores: (n,) calibrated held-out scores, ascending.
        alpha: share of good parts that may be rejected.
        promise: what alpha bounds.
    """
    rank = rank_for(len(sorted_scores), alpha=alpha, promise=promise)
    value = float(sorted_scores[rank - 1])
    # the same margin as the unit has, so that the alpha of the file itself gives 1
    return value * (1 + UNIT_MARGIN) if value > 0 else value + UNIT_MARGIN


def raised_limit(sorted_scores: NDArray[Any], *, marked: NDArray[Any], alpha: float, promise: Promise) -> float:
    """Give the limit on held-out scores to which goods that a person marked are added: it is never below that without them.

    The larger of two limits of the same alpha: that of the n held-out scores, and that of these and the m marked ones
    together. Held-out goods are exchangeable with goods to come; marked ones need not be, for a person looks at what was
    rejected. Whatever chose them, a limit at or above that of the n rejects no more than it, so the promise of the n holds
    as it stands: it is the one to certify, with n and not with n + m. Without the larger of the two, goods chosen for low
    scores would lower the limit: n = 99 at alpha 1 % stops at the largest score, with 100 low ones more at the second.

    How far it can rise: of n + m goods about alpha (n + m) may lie above the limit, so where m hard goods are far fewer
    than the n it goes to one of the hardest. It rejects fewer goods than promised then, and more defects pass; only goods
    that were drawn without regard to their score give a limit that is no higher than it need be.

    Args:
        sorted_scores: (n,) calibrated held-out scores, ascending.
        marked: (m,) calibrated scores of the goods that were marked.
        alpha: share of good parts that may be rejected.
        promise: what alpha bounds.

    Returns:
        The limit in calibrated units, as `limit_for`.

    Raises:
        CalibrationError: an alpha that the n held-out scores do not support; marked ones make no promise.
    """
    together = np.sort(np.concatenate([sorted_scores, marked]))
    return max(limit_for(scores, alpha=alpha, promise=promise) for scores in (sorted_scores, together))


def p_values(scores: NDArray[Any], *, held_out: NDArray[Any]) -> NDArray[np.float32]:
    """Conformal p-value of each score among the held-out good ones: (1 + #{s_i >= s}) / (n + 1).

    Args:
        scores: (m,) calibrated scores.
        held_out: (n,) calibrated held-out scores, ascending.

    Returns:
        (m,) float32 in (0, 1].
    """
    at_least = len(held_out) - np.searchsorted(held_out, scores, side="left")
    return ((1 + at_least) / (len(held_out) + 1)).astype(np.float32)
