"""Checks of arrays given by a caller."""

from __future__ import annotations

from typing import Any

import numpy as np

from anomaly.errors import UsageError


def check_image(image: Any) -> None:
    """Require an image (H, W, 3) uint8 RGB with at least one pixel.

    Raises:
        UsageError: another type, dtype or shape.
    """
    if not isinstance(image, np.ndarray):
        raise UsageError(f"image is of type {type(image).__name__}; give an array (H, W, 3) uint8 RGB")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise UsageError(f"image is {image.dtype} of shape {image.shape}; give uint8 RGB (H, W, 3)")


def check_foreground(foreground: Any, *, shape: tuple[int, int]) -> None:
    """Require a foreground (H, W) bool with at least one True pixel.

    Raises:
        UsageError: another type, dtype or shape, or an empty foreground.
    """
    if not isinstance(foreground, np.ndarray):
        raise UsageError(f"foreground is of type {type(foreground).__name__}; give an array (H, W) bool")
    if foreground.dtype != np.bool_ or foreground.shape != shape:
        raise UsageError(f"foreground is {foreground.dtype} of shape {foreground.shape}; give bool {shape}")
    if not foreground.any():
        raise UsageError("foreground is empty; mark the pixels of the part as True")
