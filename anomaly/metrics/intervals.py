"""Intervals: exact for rates, by bootstrap over images for all other figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from anomaly.conformal.beta_distribution import beta_quantile
from anomaly.errors import DataError, UsageError


class Interval(NamedTuple):
    """A closed interval of plausible values, `low` <= `high`."""

    low: float
    high: float


@dataclass(frozen=True)
class Estimate:
    """A measured value with its 95 % interval."""

    value: float
    interval: Interval


def binomial_interval(num_hits: int, num_trials: int, *, confidence: float) -> Interval:
    """Compute the exact interval of a rate: C. Clopper, E. Pearson, Biometrika 26, 1934.

    Args:
        num_hits: number of events, 0 to `num_trials`.
        num_trials: number of trials; the interval of 0 trials is [0, 1].
        confidence: guaranteed coverage, in (0, 1); each side misses the rate with at most half of the rest.

    Returns:
        The interval, in [0, 1].

    Raises:
        UsageError: the counts or the confidence are out of range.
    """
    if not 0 <= num_hits <= num_trials:
        raise UsageError(f"{num_hits} hits in {num_trials} trials: give 0 <= hits <= trials")
    if not 0 < confidence < 1:
        raise UsageError(f"confidence {confidence} is outside (0, 1): give a fraction such as 0.95")
    tail = (1 - confidence) / 2
    low = beta_quantile(tail, num_hits, num_trials - num_hits + 1) if num_hits > 0 else 0.0
    high = beta_quantile(1 - tail, num_hits + 1, num_trials - num_hits) if num_hits < num_trials else 1.0
    return Interval(low, high)


def check_num_resamples(num_resamples: int) -> None:
    """Refuse a bootstrap without resamples.

    Raises:
        UsageError: `num_resamples` is below 1.
    """
    if num_resamples < 1:
        raise UsageError(f"{num_resamples} bootstrap resamples give no interval: give at least 1, usually 1000")


def resample_weights(num_images: int, *, num_resamples: int, seed: int) -> NDArray[np.uint16]:
    """Draw the number of occurrences of each image in each bootstrap resample.

    Returns:
        Counts of shape (num_resamples, num_images); every row sums to `num_images`.
    """
    rng = np.random.default_rng(seed)
    weights = np.empty((num_resamples, num_images), np.uint16)
    for row in weights:
        row[:] = np.bincount(rng.integers(num_images, size=num_images), minlength=num_images)
    return weights


def percentile_interval(values: NDArray[np.float64]) -> Interval:
    """Compute the interval of the middle 95 % of bootstrap values (Efron's percentile interval).

    Args:
        values: (num_resamples,), one value for each usable resample.

    Raises:
        DataError: no resample was usable.
    """
    if values.size == 0:
        raise DataError("every bootstrap resample has one class only: measure on more images or draw more resamples")
    low, high = np.quantile(values, [0.025, 0.975])
    return Interval(float(low), float(high))
