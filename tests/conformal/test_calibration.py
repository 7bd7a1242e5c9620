from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from anomaly.conformal.calibration import (
    CONFIDENCE,
    UNIT_MARGIN,
    Promise,
    fit_scale,
    guarantee,
    images_needed,
    limit_for,
    p_values,
    rank_for,
    resolve_alpha,
    tightest_alpha,
)
from anomaly.errors import CalibrationError
from anomaly.inference.artifact import load_graph, read_metadata

PROMISES: list[Promise] = ["expected", "bound"]


def confidence_of(num_images: int, rank: int, alpha: float) -> float:
    """P(rate <= alpha) for the limit at `rank`: at least n + 1 - rank of n uniform draws lie below alpha."""
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
    promised = guarantee(num_images, alpha=alpha, promise="expected")
    assert promised.rank == rank
    assert promised.expected_rate == pytest.approx(expected_rate, rel=1e-12)
    assert promised.rate_bound == pytest.approx(rate_bound, abs=5e-5)
    assert confidence_of(num_images, rank, promised.rate_bound) == pytest.approx(CONFIDENCE, abs=1e-9)


def test_bound_of_one_percent_needs_299_images() -> None:
    assert images_needed(0.01, promise="bound") == 299
    promised = guarantee(299, alpha=0.01, promise="bound")
    assert promised.rank == 299
    assert promised.rate_bound <= 0.01
    with pytest.raises(CalibrationError, match=r"298 good images .* 0.01 with 95 % confidence: hold out at least 299"):
        guarantee(298, alpha=0.01, promise="bound")


def test_too_few_images_for_the_expected_rate_name_the_number_needed() -> None:
    assert rank_for(99, alpha=0.01, promise="expected") == 99
    with pytest.raises(
        CalibrationError, match=r"98 good images cannot bound false alarms at 0.01: hold out at least 99"
    ):
        rank_for(98, alpha=0.01, promise="expected")


@pytest.mark.parametrize("promise", PROMISES)
@pytest.mark.parametrize("alpha", [0.3, 0.1, 0.05, 0.02, 0.01, 0.001])
def test_images_needed_is_the_smallest_number_that_keeps_the_promise(alpha: float, promise: Promise) -> None:
    needed = images_needed(alpha, promise=promise)
    assert rank_for(needed, alpha=alpha, promise=promise) == needed
    with pytest.raises(CalibrationError, match=f"at least {needed}"):
        rank_for(needed - 1, alpha=alpha, promise=promise)


def test_rank_of_the_expected_rate_is_exact() -> None:
    for thousandths in (1, 7, 10, 50, 90, 100, 333, 500):
        alpha = Fraction(thousandths, 1000)
        for num_images in range(1, 1200, 7):
            exact = math.ceil((num_images + 1) * (1 - alpha))
            if exact <= num_images:
                assert rank_for(num_images, alpha=thousandths / 1000, promise="expected") == exact


@pytest.mark.parametrize("alpha", [0.4, 0.1, 0.05])
def test_rank_of_the_bound_is_the_first_that_keeps_it(alpha: float) -> None:
    for num_images in (*range(1, 70), 150):
        keeping = [k for k in range(1, num_images + 1) if confidence_of(num_images, k, alpha) >= CONFIDENCE]
        if keeping:
            assert rank_for(num_images, alpha=alpha, promise="bound") == keeping[0]
        else:
            with pytest.raises(CalibrationError):
                rank_for(num_images, alpha=alpha, promise="bound")


@pytest.mark.parametrize("promise", PROMISES)
@pytest.mark.parametrize("num_images", [1, 2, 10, 37, 99, 1000])
def test_tightest_alpha_is_kept_by_the_largest_score_and_no_tighter_one_is(num_images: int, promise: Promise) -> None:
    alpha = tightest_alpha(num_images, promise=promise)
    assert rank_for(num_images, alpha=alpha, promise=promise) == num_images
    with pytest.raises(CalibrationError):
        rank_for(num_images, alpha=alpha * (1 - 1e-5), promise=promise)


def test_alpha_by_default_is_one_percent_or_the_tightest() -> None:
    assert resolve_alpha("default", num_images=20, promise="expected") == pytest.approx(1 / 21)
    assert resolve_alpha("default", num_images=500, promise="expected") == 0.01
    assert resolve_alpha(0.2, num_images=500, promise="expected") == 0.2
    with pytest.raises(CalibrationError, match="hold out at least 10"):
        resolve_alpha("default", num_images=0, promise="expected")


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, 2.0, math.nan])
@pytest.mark.parametrize("promise", PROMISES)
def test_alpha_outside_0_to_1_is_refused(alpha: float, promise: Promise) -> None:
    with pytest.raises(CalibrationError, match="between 0 and 1"):
        rank_for(100, alpha=alpha, promise=promise)


@pytest.mark.parametrize("promise", PROMISES)
@pytest.mark.parametrize(("num_images", "alpha"), [(10, 0.3), (41, 0.1), (99, 0.05)])
def test_scale_puts_the_median_at_0_and_the_limit_at_the_order_statistic(
    num_images: int, alpha: float, promise: Promise
) -> None:
    raw = np.random.default_rng(num_images).normal(50, 3, num_images)
    scale = fit_scale(raw, alpha=alpha, promise=promise)
    rank = rank_for(num_images, alpha=alpha, promise=promise)
    kth = next(value for value in raw if (raw <= value).sum() == rank)  # by counting, not by sorting
    assert scale.zero == pytest.approx(float(np.median(raw)), rel=1e-12)
    assert scale.unit == pytest.approx((kth - scale.zero) * (1 + UNIT_MARGIN), rel=1e-12)
    assert (((raw - scale.zero) / scale.unit) > 1).sum() == num_images - rank


def test_image_that_sets_the_limit_stays_below_it_in_single_precision() -> None:
    for seed in range(200):
        raw = np.random.default_rng(seed).normal(1e3, 1, 20).astype(np.float32)
        scale = fit_scale(raw, alpha=0.05, promise="expected")
        in_graph = (raw - np.float32(scale.zero)) / np.float32(scale.unit)
        assert in_graph.max() == pytest.approx(1 / (1 + UNIT_MARGIN), abs=3e-4)
        assert in_graph.max() < 1


@pytest.mark.parametrize("promise", PROMISES)
def test_promise_holds_over_random_splits(promise: Promise) -> None:
    """300 held-out sets of normal scores; the false-alarm rate of each limit is known exactly from the normal tail."""
    num_images, alpha, num_splits = 60, 0.08, 300
    rng = np.random.default_rng(7)
    rates = []
    for _ in range(num_splits):
        scale = fit_scale(rng.standard_normal(num_images), alpha=alpha, promise=promise)
        rates.append(0.5 * math.erfc((scale.zero + scale.unit) / math.sqrt(2)))
    promised = guarantee(num_images, alpha=alpha, promise=promise)
    error = float(np.std(rates)) / math.sqrt(num_splits)
    assert np.mean(rates) <= alpha + 3 * error
    assert np.mean(rates) == pytest.approx(promised.expected_rate, abs=3 * error + 5e-4)  # the margin costs a little
    violated = float(np.mean(np.array(rates) > promised.rate_bound))
    assert violated <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / num_splits)
    if promise == "bound":
        assert promised.rate_bound <= alpha


def test_scores_without_spread_are_refused() -> None:
    with pytest.raises(CalibrationError, match=r"score alike .* copies of one photograph"):
        fit_scale(np.full(20, 3.5), alpha=0.05, promise="expected")
    with pytest.raises(CalibrationError, match="score alike"):  # spread below single precision
        fit_scale(1e4 + 1e-5 * np.arange(20), alpha=0.05, promise="expected")


def test_limit_at_the_median_or_below_is_refused_in_its_own_words() -> None:
    raw = np.arange(20.0)
    with pytest.raises(CalibrationError, match=r"alpha 0.6 puts the limit of 20 good images at their median or below"):
        fit_scale(raw, alpha=0.6, promise="expected")
    with pytest.raises(CalibrationError, match="1 good images at their median"):
        fit_scale(raw[:1], alpha=0.5, promise="expected")
    assert fit_scale(raw, alpha=0.47, promise="expected").unit > 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_are_refused(bad: float) -> None:
    raw = np.arange(20.0)
    raw[[3, 9]] = bad
    with pytest.raises(CalibrationError, match="2 of 20 held-out scores are not finite"):
        fit_scale(raw, alpha=0.05, promise="expected")


@pytest.mark.parametrize("promise", PROMISES)
def test_limit_for_the_alpha_of_the_scale_is_1_and_moves_with_alpha(promise: Promise) -> None:
    raw = np.random.default_rng(3).gamma(2.0, 5.0, 120)
    scale = fit_scale(raw, alpha=0.1, promise=promise)
    calibrated = np.sort((raw - scale.zero) / scale.unit)
    assert limit_for(calibrated, alpha=0.1, promise=promise) == pytest.approx(1, abs=1e-6)
    limits = [limit_for(calibrated, alpha=alpha, promise=promise) for alpha in (0.03, 0.1, 0.3, 0.45, 0.7)]
    assert limits == sorted(limits, reverse=True)
    assert limits[0] > 1 > limits[2]
    for alpha, limit in zip((0.03, 0.1, 0.3, 0.45, 0.7), limits, strict=True):
        assert (calibrated > limit).sum() <= 120 - rank_for(120, alpha=alpha, promise=promise)


def test_limit_for_the_alpha_of_an_exported_model_is_1(model: Path) -> None:
    metadata = read_metadata(load_graph(model), name="model.onnx")
    promise: Promise = "expected"
    assert metadata.promise == promise
    scores = np.asarray(metadata.calibration.scores)
    assert limit_for(scores, alpha=metadata.alpha, promise=promise) == pytest.approx(1, abs=1e-6)


def test_p_values_count_held_out_scores_at_least_as_large() -> None:
    held_out = np.array([-1.0, 0.0, 0.0, 0.5, 0.9])
    scores = np.array([-2.0, -1.0, 0.0, 0.25, 0.9, 0.95])
    found = p_values(scores, held_out=held_out)
    assert found.dtype == np.float32
    counted = [(1 + sum(h >= s for h in held_out)) / 6 for s in scores]
    np.testing.assert_allclose(found, counted, rtol=1e-7)


def test_p_values_of_good_images_are_uniform_at_most() -> None:
    rng = np.random.default_rng(11)
    found = np.concatenate([p_values(rng.random(1), held_out=np.sort(rng.random(19))) for _ in range(2000)])
    for alpha in (0.05, 0.1, 0.5):
        assert np.mean(found <= alpha + 1e-6) == pytest.approx(alpha, abs=3 * math.sqrt(alpha * (1 - alpha) / 2000))
