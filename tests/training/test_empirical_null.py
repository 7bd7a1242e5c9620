"""The empirical null and the Benjamini-Hochberg rule."""

from __future__ import annotations

import numpy as np
import pytest

from anomaly.training.empirical_null import benjamini_hochberg, null_of, p_values, skewed_null_of, value_at

pytestmark = pytest.mark.unit


def test_null_of_normal_values_is_their_mean_and_deviation() -> None:
    centre, spread = null_of(np.random.default_rng(0).normal(3.0, 2.0, 20_000))
    assert centre == pytest.approx(3.0, abs=0.05)
    assert spread == pytest.approx(2.0, abs=0.05)


def test_forty_percent_contamination_does_not_hide_itself() -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(0, 1, 60), rng.normal(12, 1, 40)])
    named = np.zeros(100, dtype=bool)
    for _ in range(5):
        centre, spread = null_of(values[~named])
        named = benjamini_hochberg(p_values(values, centre=centre, spread=spread), rate=0.1)
    assert named[60:].all()
    assert named[:60].sum() <= 6


def test_no_value_is_named_among_normal_values() -> None:
    num = 0
    for seed in range(20):
        values = np.random.default_rng(seed).normal(0, 1, 300)
        centre, spread = null_of(values)
        num += int(benjamini_hochberg(p_values(values, centre=centre, spread=spread), rate=0.1).sum())
    assert num < 0.02 * 20 * 300


def test_skewed_null_is_wider_where_the_upper_tail_is_longer() -> None:
    values = np.random.default_rng(0).exponential(1.0, 5000)
    assert skewed_null_of(values)[1] > null_of(values)[1]


def test_value_at_inverts_the_p_value() -> None:
    value = value_at(0.01, centre=2.0, spread=0.5)
    assert p_values(np.array([value]), centre=2.0, spread=0.5)[0] == pytest.approx(0.01)


def test_equal_values_have_p_values_of_one() -> None:
    centre, spread = null_of(np.full(7, 2.0))
    assert spread == 0
    assert (p_values(np.full(7, 2.0), centre=centre, spread=spread) == 1).all()


def test_rejections_are_those_of_the_published_example() -> None:
    """Y. Benjamini and Y. Hochberg, 1995, section 4.1: four of fifteen hypotheses at 0.05."""
    p = np.array(
        [
            0.0001,
            0.0004,
            0.0019,
            0.0095,
            0.0201,
            0.0278,
            0.0298,
            0.0344,
            0.0459,
            0.324,
            0.4262,
            0.5719,
            0.6528,
            0.759,
            1.0,
        ]
    )
    assert benjamini_hochberg(p, rate=0.05).tolist() == [True] * 4 + [False] * 11


def test_no_p_value_gives_no_rejection() -> None:
    assert benjamini_hochberg(np.zeros(0), rate=0.1).shape == (0,)
