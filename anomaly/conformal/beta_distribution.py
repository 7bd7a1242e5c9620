"""The Beta distribution, by the standard library alone: serving installs have no scipy.

Order statistics of uniform variables and exact binomial intervals are Beta quantiles.

    I_x(a, b)   regularised incomplete beta function: the distribution function of Beta(a, b) at x
    d_j         partial numerators of its continued fraction, NIST DLMF 8.17.22 and 8.17.23
"""

from __future__ import annotations

import math

from anomaly.errors import UsageError


def beta_cdf(x: float, a: float, b: float) -> float:
    """Compute the probability that a Beta(a, b) variable is at most `x`.

    Args:
        x: real number; the result is 0 below the support [0, 1] and 1 above it.
        a: first shape, above 0.
        b: second shape, above 0.

    Returns:
        I_x(a, b) in [0, 1]. Its relative error is about 1e-12 for shapes up to 1e4 and grows in proportion to them.

    Raises:
        UsageError: a shape is not positive and finite, or `x` is NaN.
    """
    if not (0 < a < math.inf and 0 < b < math.inf):
        raise UsageError(
            f"the shapes {a} and {b} of the Beta distribution are invalid: give two positive, finite numbers"
        )
    if math.isnan(x):
        raise UsageError("x is NaN, where the Beta distribution function has no value: give a number")
    if x <= 0:
        return 0.0
    if x >= 1:
        return 1.0
    # the fraction converges fast only left of the mean; right of it I_x(a, b) = 1 - I_{1-x}(b, a)   (DLMF 8.17.4)
    if x <= (a + 1) / (a + b + 2):
        return _left_tail(x, 1 - x, a, b)
    return 1 - _left_tail(1 - x, x, b, a)


def beta_quantile(p: float, a: float, b: float) -> float:
    """Find the smallest x with a probability of at least `p` for Beta(a, b), by bisection to the last bit.

    Args:
        p: probability in [0, 1].
        a: first shape, above 0.
        b: second shape, above 0.

    Returns:
        The quantile in [0, 1].

    Raises:
        UsageError: `p` is outside [0, 1], or a shape is not positive and finite.
    """
    if not 0 <= p <= 1:
        raise UsageError(f"p is {p}, not a probability: give a number from 0 to 1")
    low, high = 0.0, 1.0
    while True:
        middle = (low + high) / 2
        if middle in (low, high):
            return low if beta_cdf(low, a, b) >= p else high
        if beta_cdf(middle, a, b) < p:
            low = middle
        else:
            high = middle


def _left_tail(x: float, complement: float, a: float, b: float) -> float:
    """Compute I_x(a, b) = x^a (1-x)^b / (a B(a, b)) / (1 + d_1 / (1 + d_2 / ...)); Lentz's method for the fraction."""
    log_factor = (
        a * math.log(x) + b * math.log(complement) + math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) - math.log(a)
    )
    fraction = numerator = 1.0
    denominator = 0.0
    change = 0.0
    j = 0
    while abs(change - 1) > 1e-14:
        j += 1
        m = j // 2
        if j % 2:
            d_j = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            d_j = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        denominator = 1 / ((1 + d_j * denominator) or 1e-300)
        numerator = (1 + d_j / numerator) or 1e-300
        change = numerator * denominator
        fraction *= change
    return min(1.0, math.exp(log_factor) / fraction)
