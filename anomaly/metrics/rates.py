"""False alarms and misses at a fixed threshold."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly.errors import DataError, UsageError
from anomaly.metrics.image_level import check_scores
from anomaly.metrics.intervals import Interval, binomial_interval


@dataclass(frozen=True)
class Rate:
    """Number of events among a number of trials, which may be 0."""

    num_hits: int
    num_trials: int

    @property
    def value(self) -> float:
        """Fraction of hits, in [0, 1].

        Raises:
            DataError: there are no trials.
        """
        if self.num_trials == 0:
            raise DataError("a rate over 0 images has no value: check num_trials first")
        return self.num_hits / self.num_trials

    @property
    def interval(self) -> Interval:
        """Exact binomial interval at 95 %; [0, 1] without trials."""
        return binomial_interval(self.num_hits, self.num_trials, confidence=0.95)

    def __str__(self) -> str:
        if self.num_trials == 0:
            return "n/a"
        low, high = self.interval
        return f"{self.num_hits}/{self.num_trials} = {self.value:.1%} ({low:.1%} to {high:.1%})"


@dataclass(frozen=True)
class Rates:
    """Errors at a threshold: good images rejected, defects accepted."""

    threshold: float
    false_alarms: Rate
    misses: Rate


def rates_at_threshold(scores: NDArray[np.floating[Any]], labels: NDArray[np.bool_], *, threshold: float) -> Rates:
    """Count false alarms and misses of the verdict `score > threshold`.

    Args:
        scores: (n,), higher is more anomalous.
        labels: (n,) bool, True for a defect; classes may be missing.
        threshold: threshold in the unit of the scores.

    Raises:
        DataError: a score is NaN.
        UsageError: the shapes or types do not fit, or the threshold is NaN.
    """
    check_scores(scores, labels)
    if math.isnan(threshold):
        raise UsageError("the threshold is NaN: give a number in the unit of the scores")
    rejected = scores > threshold
    return Rates(
        threshold=threshold,
        false_alarms=Rate(int((rejected & ~labels).sum()), int((~labels).sum())),
        misses=Rate(int((~rejected & labels).sum()), int(labels.sum())),
    )
