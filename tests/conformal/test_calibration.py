from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from anomaly.conformal.calibration import SCALE_MARGIN, CalibrationScores
from anomaly.conformal.guarantee import (
    CONFIDENCE,
    GuaranteeKind,
    guarantee_for,
    images_needed,
    rank_for,
    resolve_alpha,
    tightest_alpha,
)
from anomaly.conformal.scale import fit_scale
from anomaly.errors import CalibrationError
from anomaly.inference.artifact import load_graph, read_metadata

GUARANTEES: list[GuaranteeKind] = ["expected", "bound"]


def confidence_of(num_images: int, rank: int, alpha: float) -> float:
    """P(rate <= alpha) of the threshold at `rank`: at least n + 1 - rank of n uniform draws are below alpha."""
    hits = range(num_images + 1 - rank, num_images + 1)
    return sum(math.comb(num_images, j) * alpha**j * (1 - alpha) ** (num_images - j) for j in hits)


@pytest.mark.parametrize(
    ("num_images", "alpha", "rank", "expected_rate", "rate_bound"),
    [
        (99, 0.01, 99, 0.01, 0.0298),
        (299, 0.01, 297, 0.01, 0.0209),
        (20, 0.05, 20, 1 / 21, 0.1391),
        (50, 0.05, 49, 2 / 51, 0.0914),
        (200, 0.05, 191, 10 / 201, 0.0772),
    ],
)
def test_guarantee_in_numbers(
    num_images: int, alpha: float, rank: int, expected_rate: float, rate_bound: float
) -> None:
    guaranteed = guarantee_for(num_images, alpha=alpha, guarantee="expected")
    assert guaranteed.rank == rank
    assert guaranteed.expected_rate == pytest.approx(expected_rate, rel=1e-12)
    assert guaranteed.rate_bound == pytest.approx(rate_bound, abs=5e-5)
    assert confidence_of(num_images, rank, guaranteed.rate_bound) == pytest.approx(CONFIDENCE, abs=1e-9)


def test_bound_of_one_percent_needs_299_images() -> None:
    assert images_needed(0.01, guarantee="bound") == 299
    guaranteed = guarantee_for(299, alpha=0.01, guarantee="bound")
    assert guaranteed.rank == 299
    assert guaranteed.rate_bound <= 0.01
    with pytest.raises(
        CalibrationError, match=r"of 298 good parts .* 0.01 with 95 % confidence: .* at least 299 different parts"
    ):
        guarantee_for(298, alpha=0.01, guarantee="bound")


def test_too_few_images_for_the_expected_rate_name_the_number_needed() -> None:
    assert rank_for(99, alpha=0.01, guarantee="expected") == 99
    with pytest.raises(
        CalibrationError, match=r"98 good parts cannot bound false alarms at 0.01: .* at least 99 different parts"
    ):
        rank_for(98, alpha=0.01, guarantee="expected")


@pytest.mark.parametrize("guarantee", GUARANTEES)
@pytest.mark.parametrize("alpha", [0.3, 0.1, 0.05, 0.02, 0.01, 0.001])
def test_images_needed_is_the_smallest_number_that_keeps_the_guarantee(alpha: float, guarantee: GuaranteeKind) -> None:
    needed = images_needed(alpha, guarantee=guarantee)
    assert rank_for(needed, alpha=alpha, guarantee=guarantee) == needed
    with pytest.raises(CalibrationError, match=f"at least {needed}"):
        rank_for(needed - 1, alpha=alpha, guarantee=guarantee)


def test_rank_of_the_expected_rate_is_exact() -> None:
    for thousandths in (1, 7, 10, 50, 90, 100, 333, 500):
        alpha = Fraction(thousandths, 1000)
        for num_images in range(1, 1200, 7):
            exact = math.ceil((num_images + 1) * (1 - alpha))
            if exact <= num_images:
                assert rank_for(num_images, alpha=thousandths / 1000, guarantee="expected") == exact


@pytest.mark.parametrize("alpha", [0.4, 0.1, 0.05])
def test_rank_of_the_bound_is_the_smallest_that_keeps_it(alpha: float) -> None:
    for num_images in (*range(1, 70), 150):
        valid_ranks = [k for k in range(1, num_images + 1) if confidence_of(num_images, k, alpha) >= CONFIDENCE]
        if valid_ranks:
            assert rank_for(num_images, alpha=alpha, guarantee="bound") == valid_ranks[0]
        else:
            with pytest.raises(CalibrationError):
                rank_for(num_images, alpha=alpha, guarantee="bound")


@pytest.mark.parametrize("guarantee", GUARANTEES)
@pytest.mark.parametrize("num_images", [1, 2, 10, 37, 99, 1000])
def test_tightest_alpha_is_the_smallest_that_the_largest_score_keeps(num_images: int, guarantee: GuaranteeKind) -> None:
    alpha = tightest_alpha(num_images, guarantee=guarantee)
    assert rank_for(num_images, alpha=alpha, guarantee=guarantee) == num_images
    with pytest.raises(CalibrationError):
        rank_for(num_images, alpha=alpha * (1 - 1e-5), guarantee=guarantee)


def test_alpha_by_default_is_one_percent_or_the_tightest() -> None:
    assert resolve_alpha(None, num_groups=20, guarantee="expected") == pytest.approx(1 / 21)
    assert resolve_alpha(None, num_groups=500, guarantee="expected") == 0.01
    assert resolve_alpha(0.2, num_groups=500, guarantee="expected") == 0.2
    with pytest.raises(CalibrationError, match="give at least 10 calibration"):
        resolve_alpha(None, num_groups=0, guarantee="expected")


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, 2.0, math.nan])
@pytest.mark.parametrize("guarantee", GUARANTEES)
def test_alpha_outside_0_to_1_is_refused(alpha: float, guarantee: GuaranteeKind) -> None:
    with pytest.raises(CalibrationError, match="between 0 and 1"):
        rank_for(100, alpha=alpha, guarantee=guarantee)


@pytest.mark.parametrize("guarantee", GUARANTEES)
@pytest.mark.parametrize(("num_images", "alpha"), [(10, 0.3), (41, 0.1), (99, 0.05)])
def test_scale_puts_the_median_at_0_and_the_threshold_at_the_order_statistic(
    num_images: int, alpha: float, guarantee: GuaranteeKind
) -> None:
    raw = np.random.default_rng(num_images).normal(50, 3, num_images)
    scale = fit_scale(raw, alpha=alpha, guarantee=guarantee)
    rank = rank_for(num_images, alpha=alpha, guarantee=guarantee)
    kth = next(value for value in raw if (raw <= value).sum() == rank)  # by counting instead of sorting
    assert scale.offset == pytest.approx(float(np.median(raw)), rel=1e-12)
    assert scale.scale == pytest.approx((kth - scale.offset) * (1 + SCALE_MARGIN), rel=1e-12)
    assert (((raw - scale.offset) / scale.scale) > 1).sum() == num_images - rank


def test_image_that_sets_the_threshold_stays_below_it_in_single_precision() -> None:
    for seed in range(200):
        raw = np.random.default_rng(seed).normal(1e3, 1, 20).astype(np.float32)
        scale = fit_scale(raw, alpha=0.05, guarantee="expected")
        in_graph = (raw - np.float32(scale.offset)) / np.float32(scale.scale)
        assert in_graph.max() == pytest.approx(1 / (1 + SCALE_MARGIN), abs=3e-4)
        assert in_graph.max() < 1


@pytest.mark.slow
@pytest.mark.parametrize("guarantee", GUARANTEES)
def test_guarantee_holds_over_random_splits(guarantee: GuaranteeKind) -> None:
    """Draw 300 calibration sets of normal scores; the normal tail gives the exact false-alarm rate of each threshold."""
    num_images, alpha, num_splits = 60, 0.08, 300
    rng = np.random.default_rng(7)
    rates = []
    for _ in range(num_splits):
        scale = fit_scale(rng.standard_normal(num_images), alpha=alpha, guarantee=guarantee)
        rates.append(0.5 * math.erfc((scale.offset + scale.scale) / math.sqrt(2)))
    guaranteed = guarantee_for(num_images, alpha=alpha, guarantee=guarantee)
    error = float(np.std(rates)) / math.sqrt(num_splits)
    assert np.mean(rates) <= alpha + 3 * error
    assert np.mean(rates) == pytest.approx(guaranteed.expected_rate, abs=3 * error + 5e-4)  # the margin costs a little
    violated = float(np.mean(np.array(rates) > guaranteed.rate_bound))
    assert violated <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / num_splits)
    if guarantee == "bound":
        assert guaranteed.rate_bound <= alpha


def test_scores_without_spread_are_refused() -> None:
    with pytest.raises(CalibrationError, match=r"almost the same score .* copies of one image"):
        fit_scale(np.full(20, 3.5), alpha=0.05, guarantee="expected")
    with pytest.raises(CalibrationError, match="almost the same score"):  # spread below single precision
        fit_scale(1e4 + 1e-5 * np.arange(20), alpha=0.05, guarantee="expected")


def test_threshold_at_the_median_or_below_is_refused() -> None:
    raw = np.arange(20.0)
    with pytest.raises(
        CalibrationError, match=r"alpha 0.6 puts the threshold of 20 good images at their median or below"
    ):
        fit_scale(raw, alpha=0.6, guarantee="expected")
    with pytest.raises(CalibrationError, match="all calibration images belong to one part group"):
        fit_scale(raw[:1], alpha=0.5, guarantee="expected")
    assert fit_scale(raw, alpha=0.47, guarantee="expected").scale > 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_are_refused(bad: float) -> None:
    raw = np.arange(20.0)
    raw[[3, 9]] = bad
    with pytest.raises(CalibrationError, match="2 of 20 calibration scores are not finite"):
        fit_scale(raw, alpha=0.05, guarantee="expected")


@pytest.mark.parametrize("guarantee", GUARANTEES)
def test_threshold_for_the_alpha_of_the_scale_is_1_and_moves_with_alpha(guarantee: GuaranteeKind) -> None:
    raw = np.random.default_rng(3).gamma(2.0, 5.0, 120)
    scale = fit_scale(raw, alpha=0.1, guarantee=guarantee)
    calibrated = np.sort((raw - scale.offset) / scale.scale)
    ranked = CalibrationScores(calibrated)
    assert ranked.threshold(alpha=0.1, guarantee=guarantee) == pytest.approx(1, abs=1e-6)
    thresholds = [ranked.threshold(alpha=alpha, guarantee=guarantee) for alpha in (0.03, 0.1, 0.3, 0.45, 0.7)]
    assert thresholds == sorted(thresholds, reverse=True)
    assert thresholds[0] > 1 > thresholds[2]
    for alpha, threshold in zip((0.03, 0.1, 0.3, 0.45, 0.7), thresholds, strict=True):
        assert (calibrated > threshold).sum() <= 120 - rank_for(120, alpha=alpha, guarantee=guarantee)


def test_threshold_for_the_alpha_of_an_exported_model_is_1(model: Path) -> None:
    metadata = read_metadata(load_graph(model), name="model.onnx")
    guarantee: GuaranteeKind = "expected"
    assert metadata.guarantee == guarantee
    ranked = metadata.calibration.ranked()
    assert ranked.threshold(alpha=metadata.alpha, guarantee=guarantee) == pytest.approx(1, abs=1e-6)


def test_p_values_count_calibration_scores_at_least_as_large() -> None:
    calibration_scores = np.array([-1.0, 0.0, 0.0, 0.5, 0.9])
    scores = np.array([-2.0, -1.0, 0.0, 0.25, 0.9, 0.95])
    found = CalibrationScores(calibration_scores).p_values(scores)
    assert found.dtype == np.float32
    counted = [(1 + sum(h >= s for h in calibration_scores)) / 6 for s in scores]
    np.testing.assert_allclose(found, counted, rtol=1e-7)


def test_p_values_of_good_images_are_uniform_at_most() -> None:
    rng = np.random.default_rng(11)
    found = np.concatenate([CalibrationScores(np.sort(rng.random(19))).p_values(rng.random(1)) for _ in range(2000)])
    for alpha in (0.05, 0.1, 0.5):
        assert np.mean(found <= alpha + 1e-6) == pytest.approx(alpha, abs=3 * math.sqrt(alpha * (1 - alpha) / 2000))
