"""Calibration scores with their part groups: the threshold, its guarantee, and the p-value of an image.

The theory and its sources stand in `anomaly.conformal.guarantee`.

95 % bound with groups: let the threshold be the score with exactly K - k scores above it. At most K - k groups then have
an image above the threshold. One image of each group, drawn at random, gives K independent scores of images of new
groups, and at least k of them are not above the threshold. The rate is therefore at most that of the k-th smallest of K
independent scores, whose distribution is Beta(K + 1 - k, k). This holds for any sizes and for a rank k fixed in advance.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly.conformal.guarantee import (
    Construction,
    Guarantee,
    GuaranteeKind,
    check_guarantee,
    guarantee_for,
    order_statistic_bound,
    rank_for,
    tightest_alpha,
)
from anomaly.errors import CalibrationError

SCALE_MARGIN = 1e-3
"""Relative widening of the scale; it keeps the image that sets the threshold below it in every runtime"""

REPORTED_ALPHAS = (0.01, 0.02, 0.05)
"""Shares of good parts whose thresholds stand beside the file's own"""


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold and its guarantee at one alpha."""

    alpha: float
    threshold: float
    """threshold in calibrated units; 1 at the alpha of the file"""
    expected_rate: float
    rate_bound: float | None


@dataclass(frozen=True, eq=False)
class CalibrationScores:
    """Scores of the calibration images, each with the size of its part group.

    Args:
        scores: (n,) scores, ascending.
        group_sizes: (n,) calibration images in the part group of each score; empty where every image is its own group.
        construction: origin of the scores.
        exact: whether a theorem gives the expected rate.

    Raises:
        CalibrationError: group sizes that do not belong to the scores.
    """

    scores: NDArray[np.float64]
    group_sizes: NDArray[np.int64] | Sequence[int] = ()
    construction: Construction = "split"
    exact: bool = True

    def __post_init__(self) -> None:
        if not len(self.group_sizes):
            return
        if len(self.group_sizes) != len(self.scores):
            raise CalibrationError(
                f"{len(self.group_sizes)} group sizes for {len(self.scores)} calibration scores: give one for each score"
            )
        for size, num in Counter(np.asarray(self.group_sizes).tolist()).items():
            if size < 1 or num % size:
                raise CalibrationError(
                    f"{num} calibration images claim to be in part groups of {size} images: count the images of each group"
                )

    @property
    def num_images(self) -> int:
        """Number of calibration images, n."""
        return len(self.scores)

    @cached_property
    def num_groups(self) -> int:
        """Number of part groups, K; the number of images where every image is its own group."""
        if not self._is_grouped:
            return len(self.scores)
        return sum(num // size for size, num in Counter(np.asarray(self.group_sizes).tolist()).items())

    @cached_property
    def _is_grouped(self) -> bool:
        return bool(np.any(np.asarray(self.group_sizes) > 1))

    @cached_property
    def _cumulated(self) -> NDArray[np.float64]:
        """Groups up to each number of scores, (n + 1,): a group of m images adds 1/m with each."""
        shares = 1 / np.asarray(self.group_sizes) if self._is_grouped else np.ones(len(self.scores))
        return np.concatenate([[0.0], np.cumsum(shares)])

    def position(self, *, alpha: float, guarantee: GuaranteeKind) -> int:
        """Find the index of the score that becomes the threshold.

        Args:
            alpha: share of good parts that may be rejected.
            guarantee: quantity bounded by alpha, see `rank_for`.

        Raises:
            CalibrationError: see `check_guarantee`.
        """
        check_guarantee(self.num_groups, alpha=alpha, guarantee=guarantee, construction=self.construction)
        rank = rank_for(self.num_groups, alpha=alpha, guarantee=guarantee)
        if not self._is_grouped:
            return rank - 1
        if guarantee == "bound":
            return self.num_images - 1 - (self.num_groups - rank)
        needed = (self.num_groups + 1) * (1 - alpha) - 1e-9
        return min(int(np.searchsorted(self._cumulated[1:], needed, side="left")), self.num_images - 1)

    def guarantee(self, *, alpha: float, guarantee: GuaranteeKind) -> Guarantee:
        """State the guarantee of the threshold at `alpha`.

        Args:
            alpha: share of good parts that may be rejected.
            guarantee: quantity bounded by alpha, see `rank_for`.

        Raises:
            CalibrationError: see `check_guarantee`.
        """
        position = self.position(alpha=alpha, guarantee=guarantee)
        if not self._is_grouped:
            return guarantee_for(
                self.num_images, alpha=alpha, guarantee=guarantee, construction=self.construction, exact=self.exact
            )
        num_groups = self.num_groups
        rank = rank_for(num_groups, alpha=alpha, guarantee=guarantee)
        num_above = self.num_images - 1 - position
        proved = self.construction == "split" and self.exact and num_above <= num_groups - rank
        return Guarantee(
            num_images=self.num_images,
            num_groups=num_groups,
            rank=position + 1,
            alpha=alpha,
            guarantee=guarantee,
            expected_rate=alpha if guarantee == "expected" else (num_groups + 1 - rank) / (num_groups + 1),
            rate_bound=order_statistic_bound(num_groups, rank) if proved else None,
            construction=self.construction,
            exact=self.exact,
        )

    def threshold(self, *, alpha: float, guarantee: GuaranteeKind) -> float:
        """Find the threshold of an alpha in calibrated units; the alpha of the file gives 1.

        Args:
            alpha: share of good parts that may be rejected.
            guarantee: quantity bounded by alpha, see `rank_for`.

        Raises:
            CalibrationError: see `check_guarantee`.
        """
        return _with_margin(float(self.scores[self.position(alpha=alpha, guarantee=guarantee)]))

    def raised_threshold(self, labelled: NDArray[Any], *, alpha: float, guarantee: GuaranteeKind) -> float:
        """Find the threshold on these scores and the scores of images that a person labelled good.

        It is the larger of two thresholds of the same alpha: on the n calibration scores, and on all n + m scores together.

        Calibration images are exchangeable with future good images. Labelled images need not be: a person looks at rejected
        images. A higher threshold never rejects more images. The guarantee of the n calibration scores therefore holds for
        any choice of labelled images. The certificate states this guarantee. Labelled images with low scores alone would
        lower the threshold: with n = 99 and alpha 1 % it is the largest score; after 100 low scores it would be the second
        largest. A labelled image counts as its own part group.

        Of n + m good images about alpha (n + m) may lie above the threshold. If m is far smaller than n, the threshold rises
        to one of the highest labelled scores. Then fewer good images are rejected than guaranteed, and more defects pass.
        Only good images drawn without regard to their score avoid this.

        Args:
            labelled: (m,) calibrated scores of the labelled good images.
            alpha: share of good parts that may be rejected.
            guarantee: quantity bounded by alpha, see `rank_for`.

        Raises:
            CalibrationError: the calibration scores do not support alpha; labelled scores do not count here.
        """
        own = self.threshold(alpha=alpha, guarantee=guarantee)
        return max(own, self._joined(labelled).threshold(alpha=alpha, guarantee=guarantee))

    def _joined(self, labelled: NDArray[Any]) -> CalibrationScores:
        """These scores and labelled ones, each of these as its own group."""
        scores = np.concatenate([self.scores, labelled])
        order = np.argsort(scores, kind="stable")
        sizes = np.ones(len(scores), dtype=np.int64)
        if self._is_grouped:
            sizes[: self.num_images] = self.group_sizes
        return CalibrationScores(scores[order], sizes[order], self.construction, self.exact)

    def operating_points(
        self, *, guarantee: GuaranteeKind, labelled: NDArray[Any] | None = None
    ) -> tuple[OperatingPoint, ...]:
        """List the thresholds at 1, 2 and 5 %, without those that the part groups cannot support.

        Args:
            guarantee: quantity bounded by alpha, see `rank_for`.
            labelled: (m,) calibrated scores of images labelled good, see `raised_threshold`; None for no such images.
        """
        if self.num_groups < 2:
            return ()
        tightest = tightest_alpha(self.num_groups, guarantee=guarantee) * (1 - 1e-9)
        supported = (alpha for alpha in REPORTED_ALPHAS if alpha >= tightest)
        return tuple(self.at(alpha, guarantee=guarantee, labelled=labelled) for alpha in supported)

    def at(self, alpha: float, *, guarantee: GuaranteeKind, labelled: NDArray[Any] | None = None) -> OperatingPoint:
        """Find the threshold of an alpha and its guarantee.

        Args:
            alpha: share of good parts that may be rejected.
            guarantee: quantity bounded by alpha, see `rank_for`.
            labelled: (m,) calibrated scores of images labelled good, see `raised_threshold`; None for no such images.

        Raises:
            CalibrationError: see `check_guarantee`.
        """
        stated = self.guarantee(alpha=alpha, guarantee=guarantee)
        others = np.zeros(0) if labelled is None else labelled
        threshold = self.raised_threshold(others, alpha=alpha, guarantee=guarantee)
        return OperatingPoint(alpha, threshold, stated.expected_rate, stated.rate_bound)

    def threshold_without(self, positions: Collection[int], *, alpha: float, guarantee: GuaranteeKind) -> float:
        """Find the threshold without some of the scores, in calibrated units.

        Where the remaining part groups cannot support alpha, the tightest alpha that they support counts. The masses of the
        other images of a group stay as they are.

        Args:
            positions: indices of the scores to leave out, fewer than n.
            alpha: share of good parts that may be rejected.
            guarantee: quantity bounded by alpha, see `rank_for`.
        """
        kept = np.delete(np.arange(self.num_images), list(positions))
        shares = np.diff(self._cumulated)[kept]
        num_groups = int(shares.sum() + 1e-9)
        position = len(kept) - 1
        if num_groups >= 2:
            allowed = max(alpha, tightest_alpha(num_groups, guarantee=guarantee))
            rank = rank_for(num_groups, alpha=allowed, guarantee=guarantee)
            if not self._is_grouped or guarantee == "bound":
                position -= num_groups - rank
            else:
                needed = (float(shares.sum()) + 1) * (1 - allowed) - 1e-9
                position = min(position, int(np.searchsorted(np.cumsum(shares), needed, side="left")))
        return _with_margin(float(self.scores[kept[position]]))

    def expected_rate_above(self, threshold: float) -> float:
        """Compute the expected share of good images above a threshold: (1 + sum over groups of the share above)/(K + 1)."""
        not_above = int(np.searchsorted(self.scores, threshold, side="right"))
        if not self._is_grouped:
            return (1 + self.num_images - not_above) / (self.num_images + 1)
        return float((1 + self.num_groups - self._cumulated[not_above]) / (self.num_groups + 1))

    def p_values(self, scores: NDArray[Any]) -> NDArray[np.float32]:
        """Compute the conformal p-value of each score: (1 + sum over groups of the share of scores >= s)/(K + 1).

        Args:
            scores: (m,) calibrated scores.

        Returns:
            (m,) float32 in (0, 1].
        """
        below = np.searchsorted(self.scores, scores, side="left")
        if not self._is_grouped:
            return ((1 + self.num_images - below) / (self.num_images + 1)).astype(np.float32)
        at_least = self.num_groups - self._cumulated[below]
        return ((1 + at_least) / (self.num_groups + 1)).astype(np.float32)


def _with_margin(score: float) -> float:
    """Widen a threshold by the margin of the scale."""
    return score * (1 + SCALE_MARGIN) if score > 0 else score + SCALE_MARGIN


def rank_scores(scores: NDArray[Any], *, group_sizes: Sequence[int] = ()) -> CalibrationScores:
    """Sort the scores of a split calibration.

    Args:
        scores: (n,) scores in any order.
        group_sizes: (n,) calibration images in the part group of each score; empty where every image is its own group.

    Raises:
        CalibrationError: group sizes that do not belong to the scores.
    """
    values, sizes = np.asarray(scores, dtype=np.float64), np.asarray(group_sizes, dtype=np.int64)
    order = np.argsort(values, kind="stable")
    return CalibrationScores(values[order], sizes[order] if len(sizes) == len(values) else sizes)
