"""P-values of training images against the other images, and control of the false discovery rate.

B. Efron, "Large-Scale Simultaneous Hypothesis Testing: The Choice of a Null Hypothesis", JASA 99, 2004: the null
distribution is estimated from the bulk of the scores. Y. Benjamini and Y. Hochberg, "Controlling the False Discovery
Rate", JRSS B 57, 1995.

Notation: l -> logarithm of a score; m, σ -> centre and spread of the null; q -> false discovery rate.

    m = median(l),  σ = 1.4826 · median of m - l over l <= m,  p = P(t > (l - m) / σ)

Differences from the papers: σ is measured below the median only, because defects lie above it. t has Student's
distribution, because scores of good images have a heavy upper tail.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

DEGREES = 3.0
"""Degrees of freedom of Student's distribution"""


def null_of(values: NDArray[np.float64]) -> tuple[float, float]:
    """Estimate centre and spread of the null.

    Args:
        values: (n,) values, most of them of good images; any scale on which good images are nearly symmetric.

    Returns:
        Centre and spread; the spread is 0 if half of the values are equal.
    """
    centre = float(np.median(values))
    return centre, 1.4826 * float(np.median(centre - values[values <= centre]))


def skewed_null_of(values: NDArray[np.float64]) -> tuple[float, float]:
    """Estimate centre and spread of a null with a longer upper tail; the spread above the median counts too.

    It finds fewer defects than `null_of`, above all where more than a quarter of the images are defective.

    Args:
        values: (n,) values, most of them of good images.

    Returns:
        Centre and spread.
    """
    centre, spread = null_of(values)
    return centre, max(spread, 1.4826 * (float(np.quantile(values, 0.75)) - centre))


def p_values(values: NDArray[np.float64], *, centre: float, spread: float) -> NDArray[np.float64]:
    """Compute p-values (n,) of values (n,); all are 1 if the spread is 0."""
    if spread <= 0:
        return np.ones(len(values))
    found: NDArray[np.float64] = student.sf((values - centre) / spread, DEGREES)
    return found


def value_at(p: float, *, centre: float, spread: float) -> float:
    """Compute the value with a p-value."""
    return centre + spread * float(student.isf(p, DEGREES))


def benjamini_hochberg(p: NDArray[np.float64], *, rate: float) -> NDArray[np.bool_]:
    """Reject hypotheses so that the expected share of false rejections is at most a rate.

    Args:
        p: (n,) p-values.
        rate: bound of the false discovery rate, in (0, 1).

    Returns:
        (n,) True where the hypothesis is rejected.
    """
    rejected: NDArray[np.bool_] = np.zeros(len(p), dtype=bool)
    order = np.argsort(p, kind="stable")
    passed = np.flatnonzero(p[order] <= rate * np.arange(1, len(p) + 1) / max(1, len(p)))
    if len(passed):
        rejected[order[: int(passed[-1]) + 1]] = True
    return rejected
