"""Smooth random fields for textures."""

from __future__ import annotations

import cv2
import numpy as np

from anomaly.data.synthetic.rendered_part import Field


def smooth_noise(shape: tuple[int, int], *, period: tuple[float, float], rng: np.random.Generator) -> Field:
    """Draw a random field (H, W) of mean about 0 and deviation about 1.

    Args:
        shape: height and width.
        period: vertical and horizontal pixels per independent value; a long period on one axis gives streaks along it.
        rng: random generator.
    """
    grid_shape = [max(2, round(length / step) + 2) for length, step in zip(shape, period, strict=True)]
    grid = rng.standard_normal(grid_shape, dtype=np.float32)
    field = cv2.resize(grid, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC)
    return np.asarray(field * 1.25, dtype=np.float32)


def smoothstep(field: Field, *, low: float, high: float) -> Field:
    """Map a field to 0 below `low`, 1 above `high`, and a cubic between."""
    t = np.clip((field - low) / (high - low), 0.0, 1.0)
    return np.asarray(t * t * (3.0 - 2.0 * t), dtype=np.float32)
