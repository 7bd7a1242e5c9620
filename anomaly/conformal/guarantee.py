"""The guarantee on false alarms: its rank, its expected rate and its 95 % bound.

Sources:

* Split conformal prediction: V. Vovk, A. Gammerman, G. Shafer, "Algorithmic Learning in a Random World", 2005.
* Distribution of an order statistic: H. David and H. Nagaraja, "Order Statistics", 2003, §2.
* Conformal nearest neighbours: R. Laxhammar and G. Falkman, "Online learning and sequential anomaly detection in
  trajectories", 2014.
* Groups: Y. Lee, R. Barber, R. Willett, "Distribution-free inference with hierarchical data", 2023, arXiv:2306.06342.

Notation: n -> number of calibration images; K -> number of part groups, K = n without groups; k -> rank,
k = ceil((K + 1)(1 - alpha)); s(z; S) -> score of image z by a detector trained on the images S.

Construction `split`: the calibration images do not train. For any detector, the false-alarm rate of the k-th smallest of
n scores has the distribution Beta(n + 1 - k, k). Its mean is (n + 1 - k)/(n + 1).

Construction `leave_one_out`: every image trains and calibrates. Full conformal prediction compares the score s(z; S) of a
new image z with a_i = s(z_i; S ∪ {z} ∖ {i}), and the n + 1 numbers are exchangeable. The detector computes b_i =
s(z_i; S ∖ {i}) instead. If further training images never raise a score, then a_i <= b_i. Rejecting above the k-th smallest
b_i therefore rejects at most what full conformal prediction rejects, and the expected rate stays at most 1 - k/(n + 1). No
theorem gives a 95 % bound. With groups, the whole group of an image is left out. Where further images can raise a score,
the rate is approximate.

Construction `cross`: every image is scored by a model of another part of the images. The rate is approximate.

Groups: each of K groups has the mass 1/(K + 1), shared equally by its images. The threshold is the smallest score with a
cumulated mass of at least 1 - alpha. An image of a new group is then rejected with probability at most alpha.
"""

from __future__ import annotations

import bisect
import functools
import math
from dataclasses import dataclass
from typing import Literal, get_args

from anomaly.conformal.beta_distribution import beta_quantile
from anomaly.errors import CalibrationError, UsageError

GuaranteeKind = Literal["expected", "bound"]
Construction = Literal["split", "leave_one_out", "cross"]
"""Origin of the calibration scores: images outside the training set; training images, each scored without itself; or
training images, each scored by a model of another part of the images"""
CONFIDENCE = 0.95
DEFAULT_ALPHA = 0.01
_WORDS = {"split": "split", "leave_one_out": "leave-one-out", "cross": "cross"}


@dataclass(frozen=True)
class Guarantee:
    """Guarantee of a threshold: the share of good parts above it."""

    num_images: int
    num_groups: int
    """number of part groups; every image is its own group unless groups are given"""
    rank: int
    """number of the calibration score that becomes the threshold, ascending from 1"""
    alpha: float
    guarantee: GuaranteeKind
    expected_rate: float
    """expected share of good parts above the threshold, in [0, 1]; for an image of a new group"""
    rate_bound: float | None
    """upper bound of this share with 95 % confidence over the draw of the calibration images; None without a theorem"""
    construction: Construction = "split"
    exact: bool = True
    """whether a theorem gives the expected rate; False for an approximate one"""

    @property
    def basis(self) -> str:
        """Construction and numbers in words, such as `leave-one-out, exact, 60 images of 6 part groups`."""
        construction = _WORDS[self.construction]
        if self.construction != "split" or not self.exact:
            construction += f", {'exact' if self.exact else 'approximate'}"
        groups = f" of {self.num_groups} part groups" if self.num_groups < self.num_images else ""
        return f"{construction}, {self.num_images} images{groups}"

    @property
    def bound_text(self) -> str:
        """The 95 % bound in words, or the way to get one."""
        if self.rate_bound is not None:
            return f"at most {self.rate_bound:.2%} with 95 % confidence"
        option = "--calibration split" if self.construction != "split" else "--guarantee bound"
        return f"95 % bound: only with {option}"

    def __str__(self) -> str:
        approximately = "" if self.exact else "approximately "
        return f"false alarms: {approximately}{self.expected_rate:.2%} expected, {self.bound_text} ({self.basis})"


@functools.lru_cache(maxsize=1024)
def order_statistic_bound(num_scores: int, rank: int) -> float:
    """Compute the 95 % upper bound of the rate above the score at `rank` of `num_scores` independent scores."""
    return beta_quantile(CONFIDENCE, num_scores + 1 - rank, rank)


@functools.lru_cache(maxsize=1024)
def rank_for(num_groups: int, *, alpha: float, guarantee: GuaranteeKind) -> int:
    """Find the rank k that keeps the guarantee among one score of each part group.

    Args:
        num_groups: number of part groups, K; the number of calibration images where every image is its own group.
        alpha: share of good parts that may be rejected, in (0, 1).
        guarantee: quantity bounded by alpha: the mean of the rate (`expected`) or its 95 % upper quantile (`bound`).

    Returns:
        The smallest such rank k, 1 to K, in ascending order.

    Raises:
        CalibrationError: alpha is outside (0, 1), or K is too small for it.
    """
    if guarantee not in get_args(GuaranteeKind):
        raise UsageError(f"guarantee {guarantee!r}: give {' or '.join(map(repr, get_args(GuaranteeKind)))}")
    if not 0 < alpha < 1:
        raise CalibrationError(f"alpha {alpha} is not a share of good parts: give a number between 0 and 1, e.g. 0.01")
    if guarantee == "expected":
        rank = math.ceil((num_groups + 1) * (1 - alpha) - 1e-9)
    else:  # the bound falls as the rank grows: bisect for the first rank that keeps it
        rank = 1 + bisect.bisect_left(
            range(1, num_groups + 1),
            True,
            key=lambda k: order_statistic_bound(num_groups, k) <= alpha + 1e-9,
        )
    if rank > num_groups:
        kind = "" if guarantee == "expected" else " with 95 % confidence"
        raise CalibrationError(
            f"images of {num_groups} good parts cannot bound false alarms at {alpha:g}{kind}:"
            f" give calibration images of at least {images_needed(alpha, guarantee=guarantee)} different parts"
        )
    return rank


def images_needed(alpha: float, *, guarantee: GuaranteeKind) -> int:
    """Find the smallest number of calibration images of different parts for a guarantee of `alpha`."""
    if guarantee == "expected":
        return math.ceil(1 / alpha - 1 - 1e-9)
    # with the largest score as threshold the rate is Beta(1, K): P(rate > alpha) = (1 - alpha)^K
    return math.ceil(math.log(1 - CONFIDENCE) / math.log1p(-alpha) - 1e-9)


def tightest_alpha(num_groups: int, *, guarantee: GuaranteeKind) -> float:
    """Find the smallest alpha that calibration images of `num_groups` parts can guarantee.

    Raises:
        CalibrationError: there are no images.
    """
    if num_groups < 1:
        raise CalibrationError("0 good images give no guarantee: give at least 10 calibration images")
    if guarantee == "expected":
        return 1 / (num_groups + 1)
    return -math.expm1(math.log(1 - CONFIDENCE) / num_groups)


def resolve_alpha(alpha: float | None, *, num_groups: int, guarantee: GuaranteeKind) -> float:
    """Find the alpha to certify: the given one, or by default 1 % or the smallest possible one."""
    if alpha is not None:
        return alpha
    return max(DEFAULT_ALPHA, tightest_alpha(num_groups, guarantee=guarantee))


def check_guarantee(
    num_groups: int, *, alpha: float, guarantee: GuaranteeKind, construction: Construction = "split"
) -> None:
    """Refuse a guarantee that no calibration images of `num_groups` parts can give, before they are scored.

    Raises:
        CalibrationError: a single part group, an alpha that is too small for K, or a 95 % bound without a theorem.
    """
    if guarantee == "bound" and construction != "split":
        raise CalibrationError(
            f"no theorem gives a 95 % bound for calibration {construction}: give --calibration split, or"
            " --guarantee expected"
        )
    rank_for(num_groups, alpha=alpha, guarantee=guarantee)
    if num_groups == 1:
        raise CalibrationError(
            "all calibration images belong to one part group, and one part says nothing about the next: give images of"
            f" different parts; {images_needed(DEFAULT_ALPHA, guarantee=guarantee)} parts certify {DEFAULT_ALPHA:.0%}"
        )


def guarantee_for(
    num_images: int, *, alpha: float, guarantee: GuaranteeKind, construction: Construction = "split", exact: bool = True
) -> Guarantee:
    """State the guarantee of calibration images that all show different parts.

    Args:
        num_images: number of calibration images, n.
        alpha: share of good parts that may be rejected, in (0, 1).
        guarantee: quantity bounded by alpha, see `rank_for`.
        construction: origin of the calibration scores.
        exact: whether a theorem gives the expected rate.

    Raises:
        CalibrationError: see `check_guarantee`.
    """
    check_guarantee(num_images, alpha=alpha, guarantee=guarantee, construction=construction)
    rank = rank_for(num_images, alpha=alpha, guarantee=guarantee)
    proved = construction == "split" and exact
    return Guarantee(
        num_images=num_images,
        num_groups=num_images,
        rank=rank,
        alpha=alpha,
        guarantee=guarantee,
        expected_rate=(num_images + 1 - rank) / (num_images + 1),
        rate_bound=order_statistic_bound(num_images, rank) if proved else None,
        construction=construction,
        exact=exact,
    )
