"""The ranking of a race: its criterion, its choice between equal candidates, and its budget."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from anomaly.errors import UsageError
from anomaly.training.race_ranking import Measured, auroc, rank, threshold_spread

BASES = [n % 20 for n in range(80)]


def measured(*, shift: float, milliseconds: float = 1.0, seed: int = 0) -> Measured:
    """Scores of 20 good images and of 80 defects that score higher by `shift` on average."""
    rng = np.random.default_rng(seed)
    good = rng.normal(size=20)
    return Measured(good, good, rng.normal(shift, 1, 80), milliseconds, 0.0)


def test_auroc_equals_scikit_learn_with_ties_and_weights() -> None:
    rng = np.random.default_rng(0)
    good, drawn, weights = rng.integers(0, 5, 30) * 1.0, rng.integers(2, 7, 40) * 1.0, rng.random(70)
    labels = np.r_[np.zeros(30), np.ones(40)]
    assert auroc(good, drawn) == pytest.approx(roc_auc_score(labels, np.r_[good, drawn]))
    weighted = roc_auc_score(labels, np.r_[good, drawn], sample_weight=weights)
    assert auroc(good, drawn, weights) == pytest.approx(weighted)


def test_a_clearly_better_candidate_is_chosen() -> None:
    chosen, reason, rows = rank(
        {"simple": measured(shift=0.2), "better": measured(shift=3)}, bases=BASES, budget_ms=None, seed=0
    )
    assert chosen == "better"
    assert reason.startswith("best AUROC on drawn defects")
    assert [row.candidate for row in rows] == ["simple", "better"]
    assert rows[1].difference_error == 0
    assert rows[1].detected > rows[0].detected


def test_the_simplest_of_equal_candidates_is_chosen() -> None:
    one = measured(shift=1)
    noise = np.random.default_rng(6).normal(-0.02, 0.3, 80)
    other = Measured(one.good, one.good_peak, one.drawn + noise, 1.0, 0.0)
    chosen, reason, _ = rank({"simple": other, "other": one}, bases=BASES, budget_ms=None, seed=0)
    assert chosen == "simple"
    assert "within one standard error" in reason


def test_a_budget_excludes_slow_candidates() -> None:
    found = {"fast": measured(shift=0.2, milliseconds=3), "slow": measured(shift=3, milliseconds=30)}
    chosen, reason, rows = rank(found, bases=BASES, budget_ms=10, seed=0)
    assert chosen == "fast"
    assert "3.0 ms an image, budget 10 ms" in reason
    assert len(rows) == 2
    with pytest.raises(UsageError, match=r"budget of 1 ms.*the fastest is 'fast' with 3\.0 ms.*--budget-ms"):
        rank(found, bases=BASES, budget_ms=1, seed=0)


def test_threshold_spread_falls_with_the_number_of_images() -> None:
    good = np.random.default_rng(0).normal(size=400)
    assert threshold_spread(good, seed=0) < threshold_spread(good[:20], seed=0)
