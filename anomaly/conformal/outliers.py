"""Calibration scores that stand far above the rest.

Spacings of exponential order statistics: A. Rényi, "On the theory of order statistics", 1953. Multiplied by their rank from
the top, the gaps between neighbouring scores of an exponential tail are independent with one mean. A gap that is far
larger than the mean of the gaps below it separates outliers. The tail of a normal or lighter distribution passes the test
more easily; a heavier tail fails more often, so a finding is a reason to look at the images, not a proof.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIGNIFICANCE = 0.01
"""Probability of any finding where the upper half of the scores has an exponential tail"""
MAX_SHARE = 0.05
"""Largest share of the scores that count as outliers; at least one score may"""
MIN_SCORES = 10


@dataclass(frozen=True)
class Outliers:
    """Calibration images with scores far above the rest."""

    names: tuple[str, ...]
    """names of the images, highest score first"""
    threshold_without: float
    """threshold without these images, where the threshold with them is 1"""

    def __str__(self) -> str:
        num = len(self.names)
        subject = "1 calibration image scores" if num == 1 else f"{num} calibration images score"
        return (
            f"{subject} far above the rest: {', '.join(self.names)}. Without {'it' if num == 1 else 'them'} the threshold"
            f" would be {self.threshold_without:.3g} in place of 1; check whether {'it is' if num == 1 else 'they are'} good"
        )


def num_outliers(sorted_scores: NDArray[Any]) -> int:
    """Count the highest scores that stand far above the rest.

    Args:
        sorted_scores: (n,) scores, ascending.

    Returns:
        Number of outliers; 0 without any, and for fewer than `MIN_SCORES` scores.
    """
    num = len(sorted_scores)
    if num < MIN_SCORES:
        return 0
    upper = np.asarray(sorted_scores, dtype=np.float64)[num // 2 :][::-1]
    spacings = -np.diff(upper) * np.arange(1, len(upper))
    most = max(1, int(MAX_SHARE * num))
    for outliers in range(most, 0, -1):  # several outliers hide behind each other: begin with the most
        below = spacings[outliers:]
        mean = float(below.mean())
        if mean <= 0:
            continue
        p_value = (1 + spacings[outliers - 1] / (mean * len(below))) ** -len(below)
        if p_value < SIGNIFICANCE / most:
            return outliers
    return 0
