from __future__ import annotations

import math

import pytest

from anomaly.conformal.beta_distribution import beta_cdf, beta_quantile
from anomaly.errors import UsageError

SHAPES = [(0.5, 0.5), (1, 1), (1, 99), (2, 5), (30, 1), (0.1, 8), (80, 20), (297, 3), (1, 9_999), (5_000, 7_000)]


@pytest.mark.parametrize(("a", "b"), SHAPES)
def test_cdf_agrees_with_scipy_on_both_sides_of_the_mean(a: float, b: float) -> None:
    stats = pytest.importorskip("scipy.stats")
    for p in (1e-9, 0.001, 0.025, 0.3, 0.5, 0.7, 0.975, 0.999):
        x = float(stats.beta.ppf(p, a, b))
        assert beta_cdf(x, a, b) == pytest.approx(stats.beta.cdf(x, a, b), rel=1e-10)


@pytest.mark.parametrize(("a", "b"), SHAPES)
def test_quantile_agrees_with_scipy(a: float, b: float) -> None:
    stats = pytest.importorskip("scipy.stats")
    for p in (1e-9, 0.001, 0.025, 0.05, 0.5, 0.95, 0.975, 0.999):
        assert beta_quantile(p, a, b) == pytest.approx(float(stats.beta.ppf(p, a, b)), rel=1e-9)


def test_values_agree_with_closed_forms() -> None:
    assert beta_cdf(0.3, 1, 1) == pytest.approx(0.3, rel=1e-14)
    assert beta_cdf(0.3, 4, 1) == pytest.approx(0.3**4, rel=1e-13)
    assert beta_quantile(0.95, 1, 99) == pytest.approx(1 - 0.05 ** (1 / 99), rel=1e-13)
    assert beta_quantile(0.01, 1e6, 1) == pytest.approx(math.exp(math.log(0.01) / 1e6), rel=1e-13)


def test_values_at_the_ends_of_the_support() -> None:
    assert beta_cdf(-1, 2, 3) == beta_cdf(0, 2, 3) == 0
    assert beta_cdf(1, 2, 3) == beta_cdf(7, 2, 3) == 1
    assert beta_quantile(0, 2, 3) == 0
    assert beta_quantile(1, 2, 3) == pytest.approx(1, abs=1e-4)


def test_quantile_is_the_smallest_value_that_reaches_the_probability() -> None:
    x = beta_quantile(0.025, 3, 40)
    assert beta_cdf(x, 3, 40) >= 0.025 > beta_cdf(math.nextafter(x, 0), 3, 40)


@pytest.mark.parametrize(
    ("p", "a", "b"), [(-0.1, 1, 1), (1.1, 1, 1), (math.nan, 1, 1), (0.5, 0, 1), (0.5, 1, math.inf)]
)
def test_quantile_refuses_invalid_arguments(p: float, a: float, b: float) -> None:
    with pytest.raises(UsageError):
        beta_quantile(p, a, b)


def test_cdf_refuses_nan() -> None:
    with pytest.raises(UsageError, match="NaN"):
        beta_cdf(math.nan, 1, 1)
