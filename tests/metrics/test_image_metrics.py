from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from numpy.typing import NDArray

from anomaly.errors import DataError, UsageError
from anomaly.metrics import (
    Interval,
    Rate,
    auroc,
    average_precision,
    binomial_interval,
    f1_max,
    image_metrics,
    rates_at_threshold,
    roc_curve,
)
from anomaly.metrics.intervals import resample_weights


def draw(num_images: int, *, seed: int, num_levels: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Draw scores with many ties (few levels) or almost none (many levels), with both classes."""
    rng = np.random.default_rng(seed)
    labels = rng.random(num_images) < 0.4
    labels[:2] = False, True
    return np.round((rng.standard_normal(num_images) + labels) * num_levels) / num_levels, labels


@pytest.mark.parametrize("num_levels", [1, 3, 10**9])
@pytest.mark.parametrize("seed", range(5))
def test_ranking_agrees_with_scikit_learn(seed: int, num_levels: int) -> None:
    oracle = pytest.importorskip("sklearn.metrics")
    scores, labels = draw(60, seed=seed, num_levels=num_levels)
    assert auroc(scores, labels) == pytest.approx(oracle.roc_auc_score(labels, scores), abs=1e-12)
    assert average_precision(scores, labels) == pytest.approx(oracle.average_precision_score(labels, scores), abs=1e-12)
    value, threshold = f1_max(scores, labels)
    by_threshold = {t: oracle.f1_score(labels, scores >= t) for t in np.unique(scores)}
    assert value == pytest.approx(max(by_threshold.values()), abs=1e-12)
    assert threshold == max(t for t, f1 in by_threshold.items() if f1 > value - 1e-12)
    fpr, tpr, _ = oracle.roc_curve(labels, scores, drop_intermediate=False)
    np.testing.assert_allclose(roc_curve(scores, labels), (fpr, tpr), atol=1e-12)


def test_constant_scores_have_chance_figures() -> None:
    scores, labels = np.full(10, 0.25, np.float32), np.arange(10) < 3
    assert auroc(scores, labels) == 0.5
    assert average_precision(scores, labels) == pytest.approx(0.3)
    assert f1_max(scores, labels) == pytest.approx((0.6 / 1.3, 0.25))
    assert [list(axis) for axis in roc_curve(scores, labels)] == [[0, 1], [0, 1]]


def test_bootstrap_intervals_agree_with_repeated_images() -> None:
    oracle = pytest.importorskip("sklearn.metrics")
    scores, labels = draw(12, seed=3, num_levels=2)
    values = []
    for weights in resample_weights(12, num_resamples=30, seed=7):
        resampled, classes = np.repeat(scores, weights), np.repeat(labels, weights)
        if classes.all() or not classes.any():
            continue
        values.append(
            (
                oracle.roc_auc_score(classes, resampled),
                oracle.average_precision_score(classes, resampled),
                max(oracle.f1_score(classes, resampled >= t) for t in np.unique(resampled)),
            )
        )
    expected = np.quantile(np.array(values), [0.025, 0.975], axis=0).T
    metrics = image_metrics(scores, labels, seed=7, num_resamples=30)
    found = [metrics.auroc.interval, metrics.average_precision.interval, metrics.f1_max.interval]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_bootstrap_skips_resamples_without_a_class() -> None:
    metrics = image_metrics(np.array([0.0, 1.0]), np.array([False, True]), seed=0, num_resamples=50)
    assert metrics.auroc.interval == Interval(1, 1)


def test_intervals_contain_the_value_and_shrink_with_more_images() -> None:
    widths = []
    for num_images in (50, 5000):
        scores, labels = draw(num_images, seed=1, num_levels=10**9)
        metrics = image_metrics(scores, labels, seed=0, num_resamples=200)
        assert (metrics.num_good, metrics.num_defect) == ((~labels).sum(), labels.sum())
        assert metrics.auroc.value == auroc(scores, labels)
        assert metrics.average_precision.value == average_precision(scores, labels)
        assert (metrics.f1_max.value, metrics.f1_threshold) == f1_max(scores, labels)
        for estimate in (metrics.auroc, metrics.average_precision, metrics.f1_max):
            assert estimate.interval.low < estimate.value < estimate.interval.high
        widths.append(metrics.auroc.interval.high - metrics.auroc.interval.low)
    assert widths[1] == pytest.approx(widths[0] / 10, rel=0.5)


def test_seed_determines_the_interval() -> None:
    scores, labels = draw(40, seed=1, num_levels=10**9)
    first, again, other = (image_metrics(scores, labels, seed=s, num_resamples=100) for s in (0, 0, 1))
    assert first == again
    assert first.auroc.interval != other.auroc.interval


@pytest.mark.parametrize("labels", [[True, True], [False, False]])
def test_ranking_of_one_class_is_refused(labels: list[bool]) -> None:
    with pytest.raises(DataError, match="at least one of each"):
        auroc(np.array([0.1, 0.2]), np.array(labels))


def test_wrong_scores_are_refused() -> None:
    labels = np.array([False, True, False])
    with pytest.raises(DataError, match="image 1 is NaN"):
        auroc(np.array([0, np.nan, 0]), labels)
    with pytest.raises(UsageError, match="one score and one bool label"):
        auroc(np.zeros(4), labels)
    with pytest.raises(UsageError, match="int64"):
        auroc(np.zeros(3), labels.astype(np.int64))
    with pytest.raises(UsageError, match="0 bootstrap resamples"):
        image_metrics(np.zeros(3), labels, seed=0, num_resamples=0)


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.999])
@pytest.mark.parametrize(("num_hits", "num_trials"), [(0, 1), (1, 1), (0, 99), (3, 20), (17, 40), (40, 40), (1, 5000)])
def test_binomial_interval_agrees_with_scipy(num_hits: int, num_trials: int, confidence: float) -> None:
    stats = pytest.importorskip("scipy.stats")
    exact = stats.binomtest(num_hits, num_trials).proportion_ci(confidence, method="exact")
    found = binomial_interval(num_hits, num_trials, confidence=confidence)
    assert found == pytest.approx((exact.low, exact.high), abs=1e-11)


def test_binomial_interval_without_trials_is_0_to_1() -> None:
    assert binomial_interval(0, 0, confidence=0.95) == Interval(0, 1)


@pytest.mark.parametrize(("num_hits", "num_trials", "confidence"), [(-1, 5, 0.9), (6, 5, 0.9), (1, 5, 0), (1, 5, 1)])
def test_binomial_interval_refuses_arguments_out_of_range(num_hits: int, num_trials: int, confidence: float) -> None:
    with pytest.raises(UsageError):
        binomial_interval(num_hits, num_trials, confidence=confidence)


def test_score_equal_to_the_threshold_counts_as_good() -> None:
    scores = np.array([0.2, 1.0, 1.5, 1.0, 3.0], np.float32)
    rates = rates_at_threshold(scores, np.array([False, False, False, True, True]), threshold=1.0)
    assert rates.false_alarms == Rate(1, 3)
    assert rates.misses == Rate(1, 2)
    assert rates.misses.value == 0.5
    assert rates.misses.interval == binomial_interval(1, 2, confidence=0.95)
    assert str(rates.misses) == "1/2 = 50.0% (1.3% to 98.7%)"


def test_rates_of_a_missing_class_have_no_value() -> None:
    rates = rates_at_threshold(np.array([0.2, 2.0]), np.array([False, False]), threshold=1.0)
    assert rates.false_alarms == Rate(1, 2)
    assert str(rates.misses) == "n/a"
    assert rates.misses.interval == Interval(0, 1)
    with pytest.raises(DataError, match="0 images"):
        _ = rates.misses.value


def test_rates_refuse_nan() -> None:
    with pytest.raises(UsageError, match="threshold is NaN"):
        rates_at_threshold(np.zeros(1), np.array([True]), threshold=float("nan"))
    with pytest.raises(DataError, match="image 0 is NaN"):
        rates_at_threshold(np.array([np.nan]), np.array([True]), threshold=1.0)


def test_metrics_import_without_the_training_packages() -> None:
    probe = (
        "import sys\n"
        "for name in ('torch', 'scipy', 'sklearn', 'anomalib', 'matplotlib'): sys.modules[name] = None\n"
        "import anomaly.metrics"
    )
    subprocess.run([sys.executable, "-c", probe], check=True)
