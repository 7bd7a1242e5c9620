"""Part groups: the threshold, the p-value and the guarantee count groups, not images."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from anomaly.conformal.calibration import SCALE_MARGIN, CalibrationScores, rank_scores
from anomaly.conformal.guarantee import GuaranteeKind, check_guarantee, guarantee_for, order_statistic_bound, rank_for
from anomaly.conformal.scale import fit_scale
from anomaly.errors import CalibrationError

GUARANTEES: list[GuaranteeKind] = ["expected", "bound"]


def grouped(sizes: list[int], *, correlation: float = 0.8, seed: int = 0) -> CalibrationScores:
    """Correlated normal scores of the images of each group."""
    rng = np.random.default_rng(seed)
    part, own = rng.standard_normal(len(sizes)), rng.standard_normal(sum(sizes))
    scores = math.sqrt(correlation) * np.repeat(part, sizes) + math.sqrt(1 - correlation) * own
    return rank_scores(scores, group_sizes=np.repeat(sizes, sizes).tolist())


def masses(ranked: CalibrationScores) -> list[Fraction]:
    """Exact mass of each score: 1/(K + 1), shared by the images of its group."""
    return [Fraction(1, (ranked.num_groups + 1) * int(size)) for size in ranked.group_sizes]


@pytest.mark.parametrize("guarantee", GUARANTEES)
def test_groups_of_one_image_equal_images_without_groups_to_the_last_bit(guarantee: GuaranteeKind) -> None:
    raw = np.random.default_rng(1).normal(5, 2, 60)
    ones = [1] * len(raw)
    assert fit_scale(raw, alpha=0.1, guarantee=guarantee, group_sizes=ones) == fit_scale(
        raw, alpha=0.1, guarantee=guarantee
    )
    alone, with_ones = rank_scores(raw), rank_scores(raw, group_sizes=ones)
    assert alone.guarantee(alpha=0.1, guarantee=guarantee) == with_ones.guarantee(alpha=0.1, guarantee=guarantee)
    assert alone.guarantee(alpha=0.1, guarantee=guarantee) == guarantee_for(60, alpha=0.1, guarantee=guarantee)
    scores = np.linspace(-3, 12, 200)
    assert np.array_equal(alone.p_values(scores), with_ones.p_values(scores))
    assert alone.threshold(alpha=0.1, guarantee=guarantee) == with_ones.threshold(alpha=0.1, guarantee=guarantee)


@pytest.mark.parametrize("sizes", [[3] * 7, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10], [10, 1, 1, 1, 1, 10, 2]])
@pytest.mark.parametrize("alpha", [0.125, 0.2, 0.3, 0.45])
def test_threshold_is_the_smallest_score_with_enough_mass(sizes: list[int], alpha: float) -> None:
    ranked = grouped(sizes)
    cumulated = np.cumsum(masses(ranked))
    exact = next(n for n, mass in enumerate(cumulated) if mass >= 1 - Fraction(alpha))
    assert ranked.position(alpha=alpha, guarantee="expected") == exact
    threshold = ranked.threshold(alpha=alpha, guarantee="expected")
    assert threshold == pytest.approx(ranked.scores[exact], abs=1.01 * SCALE_MARGIN * max(1, abs(threshold)))


@pytest.mark.parametrize("sizes", [[3] * 7, [1, 2, 3, 4, 5, 6], [10, 1, 1, 1, 1, 10, 2]])
def test_p_value_adds_the_share_of_each_group(sizes: list[int]) -> None:
    ranked = grouped(sizes, seed=3)
    tried = np.concatenate([ranked.scores, [ranked.scores[0] - 1, ranked.scores[-1] + 1]])
    for score, p_value in zip(tried, ranked.p_values(tried), strict=True):
        above = [mass for own, mass in zip(ranked.scores, masses(ranked), strict=True) if own >= score]
        assert p_value == pytest.approx(float(sum(above, Fraction(1, ranked.num_groups + 1))), rel=1e-6)


def test_rejected_images_have_a_p_value_of_at_most_alpha() -> None:
    for seed in range(20):
        ranked = grouped([4, 1, 7, 3, 3, 2, 9, 1, 1, 5, 6, 2], seed=seed)
        for alpha in (1 / 13, 0.1, 0.25, 0.4):
            position = ranked.position(alpha=alpha, guarantee="expected")
            above = np.nextafter(ranked.scores[position], np.inf)
            assert ranked.p_values(np.array([above]))[0] <= alpha + 1e-6
            assert ranked.expected_rate_above(ranked.scores[position]) <= alpha + 1e-9


def test_number_of_groups_decides_the_certifiable_alpha() -> None:
    ranked = grouped([10] * 6)
    assert (ranked.num_images, ranked.num_groups) == (60, 6)
    stated = ranked.guarantee(alpha=1 / 7, guarantee="expected")
    assert (stated.num_images, stated.num_groups, stated.expected_rate) == (60, 6, 1 / 7)
    with pytest.raises(CalibrationError, match=r"of 6 good parts .* at least 9 different parts"):
        ranked.guarantee(alpha=0.1, guarantee="expected")
    with pytest.raises(CalibrationError, match="of 6 good parts"):
        fit_scale(np.arange(60.0), alpha=0.05, guarantee="expected", group_sizes=[10] * 60)
    assert ranked.operating_points(guarantee="expected") == ()
    assert [point.alpha for point in grouped([2] * 60).operating_points(guarantee="expected")] == [0.02, 0.05]


def test_one_group_alone_is_refused() -> None:
    with pytest.raises(CalibrationError, match=r"one part group, .* 99 parts certify 1%"):
        fit_scale(np.arange(60.0), alpha=0.5, guarantee="expected", group_sizes=[60] * 60)
    with pytest.raises(CalibrationError, match="one part group"):
        check_guarantee(1, alpha=0.5, guarantee="expected")


def test_group_sizes_must_belong_to_the_scores() -> None:
    with pytest.raises(CalibrationError, match="3 group sizes for 4 calibration scores"):
        rank_scores(np.arange(4.0), group_sizes=[1, 1, 2])
    with pytest.raises(CalibrationError, match="3 calibration images claim to be in part groups of 2 images"):
        rank_scores(np.arange(4.0), group_sizes=[2, 2, 2, 1])
    with pytest.raises(CalibrationError, match="part groups of 0 images"):
        rank_scores(np.arange(1.0), group_sizes=[0])


def test_bound_of_groups_lets_as_many_images_above_as_independent_groups() -> None:
    ranked = grouped([5] * 60)
    for alpha in (0.05, 0.1, 0.2):
        rank = rank_for(60, alpha=alpha, guarantee="bound")
        position = ranked.position(alpha=alpha, guarantee="bound")
        assert ranked.num_images - 1 - position == 60 - rank
        stated = ranked.guarantee(alpha=alpha, guarantee="bound")
        assert stated.rate_bound == order_statistic_bound(60, rank) <= alpha + 1e-9


def test_expected_rate_of_groups_has_a_bound_only_where_the_theorem_gives_one() -> None:
    ranked = grouped([5] * 60)
    tightest = ranked.guarantee(alpha=1 / 61, guarantee="expected")
    assert tightest.rate_bound == order_statistic_bound(60, 60)
    loose = ranked.guarantee(alpha=0.2, guarantee="expected")
    assert loose.rate_bound is None
    assert loose.bound_text == "95 % bound: only with --guarantee bound"


@pytest.mark.parametrize("construction", ["leave_one_out", "cross"])
def test_no_bound_without_a_theorem(construction: str) -> None:
    exact = construction == "leave_one_out"
    ranked = CalibrationScores(np.linspace(-1, 1, 60), (), construction, exact)  # type: ignore[arg-type]
    stated = ranked.guarantee(alpha=0.05, guarantee="expected")
    assert stated.rate_bound is None
    assert stated.bound_text == "95 % bound: only with --calibration split"
    with pytest.raises(CalibrationError, match="--calibration split"):
        ranked.guarantee(alpha=0.2, guarantee="bound")


def test_guarantee_in_words() -> None:
    values = np.linspace(-1, 1, 60)
    split = CalibrationScores(values).guarantee(alpha=0.05, guarantee="expected")
    assert str(split) == "false alarms: 4.92% expected, at most 10.12% with 95 % confidence (split, 60 images)"
    left_out = CalibrationScores(values, [10] * 60, "leave_one_out", True).guarantee(alpha=0.2, guarantee="expected")
    assert str(left_out) == (
        "false alarms: 20.00% expected, 95 % bound: only with --calibration split"
        " (leave-one-out, exact, 60 images of 6 part groups)"
    )
    approximate = CalibrationScores(values, (), "leave_one_out", False).guarantee(alpha=0.05, guarantee="expected")
    assert str(approximate).startswith("false alarms: approximately 4.92% expected")
    assert "approximate, 60 images" in approximate.basis


def test_labelled_images_count_as_their_own_groups_and_only_raise() -> None:
    ranked = grouped([4] * 12)
    own = ranked.threshold(alpha=0.2, guarantee="expected")
    assert ranked.raised_threshold(np.full(50, -5.0), alpha=0.2, guarantee="expected") == own
    assert ranked.raised_threshold(np.full(50, 9.0), alpha=0.2, guarantee="expected") > own


def test_threshold_without_the_highest_scores() -> None:
    raw = np.append(np.linspace(0, 1, 99), 50.0)
    ranked = rank_scores(raw)
    assert ranked.threshold(alpha=0.01, guarantee="expected") == pytest.approx(50, rel=1e-2)
    assert ranked.threshold_without([99], alpha=0.01, guarantee="expected") == pytest.approx(1.001, abs=1e-9)
    assert ranked.threshold_without([0], alpha=0.01, guarantee="expected") == pytest.approx(50, rel=1e-2)
    with_groups = rank_scores(raw, group_sizes=[2] * 100)
    assert with_groups.threshold_without([99], alpha=0.02, guarantee="expected") == pytest.approx(1.001, abs=1e-2)


@pytest.mark.parametrize("sizes", [[6] * 12, [1, 10] * 6])
@pytest.mark.parametrize("correlation", [0.5, 0.95])
def test_rate_on_an_image_of_a_new_group_keeps_alpha(sizes: list[int], correlation: float) -> None:
    """The score of one image is standard normal, so the rate of each threshold is known."""
    for alpha in (1 / 13, 0.2):
        rates = []
        for seed in range(300):
            ranked = grouped(sizes, correlation=correlation, seed=seed)
            threshold = ranked.scores[ranked.position(alpha=alpha, guarantee="expected")]
            rates.append(0.5 * math.erfc(threshold / math.sqrt(2)))
        assert np.mean(rates) <= alpha + 3 * float(np.std(rates)) / math.sqrt(len(rates))
