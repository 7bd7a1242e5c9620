"""Calibration images of a fitted model with scores far above the rest."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from anomaly.conformal.calibration import rank_scores
from anomaly.training.fitted_model import Description, load_fitted_model


def with_scores(description: Description, scores: list[float], sizes: list[int]) -> Description:
    """The description with other calibration scores, given in the order of the images."""
    ranked = rank_scores(np.array(scores), group_sizes=sizes)
    record = dataclasses.replace(
        description.calibration,
        num_images=len(scores),
        scores=ranked.scores.tolist(),
        group_sizes=np.asarray(ranked.group_sizes).tolist(),
    )
    images = [f"/good/{n:03d}.png" for n in range(len(scores))]
    return dataclasses.replace(
        description, calibration=record, calibration_images=images, calibration_scores=scores, alpha=0.1
    )


def test_outliers_are_named_with_the_threshold_without_them(fitted_plate: Path) -> None:
    description = load_fitted_model(fitted_plate).description
    assert description.outliers is None
    scores = np.random.default_rng(0).gumbel(size=40)
    scores[[7, 21]] = 60.0, 70.0
    scores /= 70.0 * (1 + 1e-3)
    outliers = with_scores(description, scores.tolist(), []).outliers
    assert outliers is not None
    assert outliers.names == ("021.png", "007.png")
    assert outliers.threshold_without < 0.1


def test_group_sizes_follow_the_order_of_the_images(fitted_plate: Path) -> None:
    description = load_fitted_model(fitted_plate).description
    assert description.calibration_group_sizes == []
    scores, sizes = [0.9, 0.1, 0.5, 0.2, 0.7, 0.3], [3, 1, 3, 2, 3, 2]
    changed = with_scores(description, scores, sizes)
    assert changed.calibration.group_sizes != sizes
    assert changed.calibration_group_sizes == sizes
    assert changed.calibration.ranked().num_groups == 3


def test_operating_points_are_those_that_the_groups_support(fitted_plate: Path) -> None:
    description = load_fitted_model(fitted_plate).description
    scores = np.random.default_rng(1).normal(size=120).tolist()
    alone, grouped = with_scores(description, scores, []), with_scores(description, scores, [2] * 120)
    assert [point.alpha for point in alone.operating_points] == [0.01, 0.02, 0.05]
    assert [point.alpha for point in grouped.operating_points] == [0.02, 0.05]
    assert alone.certified.expected_rate == pytest.approx(12 / 121)
    assert grouped.certified.expected_rate == 0.1
