"""Contact sheets: a grid of small images in one image."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from anomaly.errors import UsageError
from anomaly.generation.base import Array

GAP = 2
"""White pixels between images"""


def to_bytes(x: Array) -> NDArray[np.uint8]:
    """Convert images (n, 3, h, w) in [0, 1] to (n, h, w, 3) uint8 RGB, rounded to nearest."""
    return np.rint(np.clip(x, 0, 1) * 255).astype(np.uint8).transpose(0, 2, 3, 1)


def contact_sheet(image: NDArray[np.uint8], *, num_columns: int | None = None) -> NDArray[np.uint8]:
    """Arrange images in rows on a white background.

    Args:
        image: images (n, h, w, 3) in reading order.
        num_columns: images per row; None makes the sheet about square.

    Raises:
        UsageError: no image.
    """
    num, height, width, _ = image.shape
    if not num:
        raise UsageError("a contact sheet without images: give at least one")
    columns = num_columns or math.ceil(math.sqrt(num))
    rows = math.ceil(num / columns)
    shape = (GAP + rows * (height + GAP), GAP + columns * (width + GAP), 3)
    sheet = np.full(shape, 255, dtype=np.uint8)
    for index, single in enumerate(image):
        top, left = GAP + index // columns * (height + GAP), GAP + index % columns * (width + GAP)
        sheet[top : top + height, left : left + width] = single
    return sheet
