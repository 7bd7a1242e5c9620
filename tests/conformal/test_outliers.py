"""Calibration scores far above the rest."""

from __future__ import annotations

import numpy as np
import pytest

from anomaly.conformal.outliers import MIN_SCORES, Outliers, num_outliers


@pytest.mark.parametrize("num", [1, 2, 3])
def test_scores_far_above_the_rest_are_counted(num: int) -> None:
    scores = np.sort(np.random.default_rng(0).gumbel(size=100))
    scores[-num:] = np.sort(np.random.default_rng(1).uniform(40, 45, num))
    assert num_outliers(scores) == num


@pytest.mark.parametrize("draw", ["normal", "gumbel", "exponential", "uniform"])
@pytest.mark.parametrize("num", [12, 40, 200])
def test_usual_scores_rarely_have_outliers(draw: str, num: int) -> None:
    rng = np.random.default_rng(7)
    found = [num_outliers(np.sort(getattr(rng, draw)(size=num))) > 0 for _ in range(300)]
    assert np.mean(found) <= 0.01 + 3 * np.sqrt(0.01 * 0.99 / 300)


def test_few_or_equal_scores_have_no_outliers() -> None:
    assert num_outliers(np.arange(MIN_SCORES - 1.0)) == 0
    assert num_outliers(np.full(50, 2.0)) == 0
    assert num_outliers(np.zeros(0)) == 0


def test_outliers_in_words() -> None:
    text = str(Outliers(("007.png", "012.png"), 0.234))
    assert text.startswith(
        "2 calibration images score far above the rest: 007.png, 012.png. Without them the threshold"
    )
    assert "would be 0.234 in place of 1" in text
