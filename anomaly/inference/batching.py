"""Batches: arrays of images of one size."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly.errors import UsageError


def batches_by_size(shapes: Sequence[Hashable], *, batch_size: int) -> list[list[int]]:
    """Collect positions of equal shape into batches, in the order of the first appearance of each shape.

    Args:
        shapes: shape of each image.
        batch_size: largest number of images in a batch.

    Returns:
        Positions in `shapes`, one list for each batch.
    """
    by_shape: dict[Hashable, list[int]] = {}
    for position, shape in enumerate(shapes):
        by_shape.setdefault(shape, []).append(position)
    return [same[at : at + batch_size] for same in by_shape.values() for at in range(0, len(same), batch_size)]


def check_batch(image: NDArray[Any]) -> None:
    """Refuse an array that is not a batch of images, (n, H, W, 3) uint8 RGB with n, H and W at least 1.

    Raises:
        UsageError: another type, dtype or shape, or an empty array.
    """
    if not isinstance(image, np.ndarray):
        raise UsageError(f"image is {type(image).__name__}: give a NumPy array (n, H, W, 3) of uint8 RGB")
    if image.dtype != np.uint8:
        raise UsageError(f"image has the dtype {image.dtype}: give uint8 values, 0 to 255")
    if image.ndim != 4 or image.shape[3] != 3:
        raise UsageError(
            f"image has the shape {image.shape}: give (n, H, W, 3), RGB without alpha; image[None] makes a batch of one"
        )
    if 0 in image.shape:
        raise UsageError(f"image has the empty shape {image.shape}: give at least one image of at least 1×1 pixels")
