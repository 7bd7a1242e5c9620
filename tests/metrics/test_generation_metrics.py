"""Distances between sets of images, compared with closed forms and brute force."""

from __future__ import annotations

import numpy as np
import pytest

from anomaly.errors import UsageError
from anomaly.metrics.generation import distances, frechet_distance, kernel_distance, precision_recall

RNG = np.random.default_rng(0)


def test_frechet_distance_of_gaussians_agrees_with_the_closed_form() -> None:
    a = RNG.standard_normal((40000, 3)) * (1.0, 2.0, 0.5) + (0, 1, 2)
    b = RNG.standard_normal((40000, 3)) * (2.0, 1.0, 0.5) + (1, 1, 0)
    expected = (1 + 0 + 4) + (1 - 2) ** 2 + (2 - 1) ** 2 + 0  # commuting covariances: sum of (s_a - s_b)²
    assert frechet_distance(a, b) == pytest.approx(expected, rel=0.02)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-8)
    rotation, _ = np.linalg.qr(RNG.standard_normal((3, 3)))
    assert frechet_distance(a @ rotation, b @ rotation) == pytest.approx(frechet_distance(a, b), rel=1e-6)


def test_frechet_distance_accepts_fewer_images_than_features() -> None:
    a, b = RNG.standard_normal((5, 20)), RNG.standard_normal((7, 20)) + 1
    assert np.isfinite(frechet_distance(a, b))
    assert frechet_distance(a, b) > 0


def test_kernel_distance_is_the_unbiased_double_sum() -> None:
    a, b = RNG.standard_normal((5, 4)), RNG.standard_normal((6, 4)) + 0.5

    def k(u: np.ndarray, v: np.ndarray) -> float:
        return float((u @ v / 4 + 1) ** 3)

    within = np.mean([k(u, v) for i, u in enumerate(a) for j, v in enumerate(a) if i != j])
    within += np.mean([k(u, v) for i, u in enumerate(b) for j, v in enumerate(b) if i != j])
    assert kernel_distance(a, b) == pytest.approx(within - 2 * np.mean([k(u, v) for u in a for v in b]))


def test_kernel_distance_has_mean_zero_for_equal_distributions() -> None:
    found = [kernel_distance(*RNG.standard_normal((2, 50, 4))) for _ in range(200)]
    assert abs(np.mean(found)) < 4 * np.std(found) / np.sqrt(200)
    assert min(found) < 0


def test_precision_falls_for_foreign_images_and_recall_for_missing_modes() -> None:
    real = np.concatenate((RNG.normal(0, 0.1, (100, 2)), RNG.normal(5, 0.1, (100, 2))))
    one_mode = RNG.normal(0, 0.1, (100, 2))
    foreign = np.concatenate((RNG.normal(0, 0.1, (100, 2)), RNG.normal(20, 0.1, (100, 2))))
    precision, recall = precision_recall(real, one_mode)
    assert precision > 0.9
    assert recall == pytest.approx(0.5, abs=0.05)
    precision, _ = precision_recall(real, foreign)
    assert precision == pytest.approx(0.5, abs=0.05)
    assert precision_recall(real, real) == (1.0, 1.0)


def test_distances_agree_with_numpy() -> None:
    a, b = RNG.standard_normal((4, 3)), RNG.standard_normal((5, 3))
    assert np.allclose(distances(a, b), np.linalg.norm(a[:, None] - b, axis=2))


def test_invalid_sets_are_refused() -> None:
    with pytest.raises(UsageError, match="with the same D"):
        frechet_distance(np.zeros((3, 2)), np.zeros((3, 4)))
    with pytest.raises(UsageError, match="at least 2"):
        kernel_distance(np.zeros((1, 2)), np.zeros((3, 2)))
    with pytest.raises(UsageError, match="more than 3"):
        precision_recall(np.zeros((3, 2)), np.zeros((9, 2)))
