"""Smooth random fields, the raw material of every texture."""

from __future__ import annotations

import cv2
import numpy as np

from anomaly.data.synthetic.rendered_part import Field


def smooth_noise(shape: tuple[int, int], *, period: tuple[float, float], rng: np.random.Generator) -> Field:
    """A (H, W) random field of mean about 0 and deviation about 1, with one independent value per `period` pixels.

    `period` is (vertical, horizontal), so that a long period on one axis gives streaks along it.
    """
    grid_shape = [max(2, round(length / step) + 2) for length, step in zip(shape, period, strict=True)]
    grid = rng.standard_normal(grid_shape, dtype=np.float32)
    field = cv2.resize(grid, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC)
    return np.asarray(field * 1.25, dtype=np.float32)


def smoothstep(field: Field, *, low: float, high: float) -> Field:
    """0 below `low`, 1 above `high`, and a cubic between."""
    t = np.clip((field - low) / (high - low), 0.0, 1.0)
    return np.asarray(t * t * (3.0 - 2.0 * t), dtype=np.float32)
