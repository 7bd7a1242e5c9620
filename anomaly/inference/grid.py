"""Places of a grid of patches in the pixels of an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from anomaly.imaging.overlay import Resize


class Box(NamedTuple):
    """Rectangle in pixels; `x` and `y` are its top left corner."""

    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True)
class Grid:
    """Grid of patches over the network's input, laid over images of any size.

    Args:
        shape: rows and columns.
        size: height and width of the network's input.
        resize: resizing rule of the model.
    """

    shape: tuple[int, int]
    size: tuple[int, int]
    resize: Resize

    def box(self, cell: int, image: Sequence[int], *, reach: int = 1) -> Box:
        """Find the patch around a cell in an image.

        Args:
            cell: number of the cell, row by row.
            image: height and width of the image.
            reach: cells on each side that belong to the patch.
        """
        row, column = divmod(cell, self.shape[1])
        ends = []
        for axis, at in enumerate((row, column)):
            low, high = self._pixels(np.array([at - reach, at + reach + 1.0]), axis, image)
            first = int(np.clip(np.floor(low), 0, image[axis] - 1))
            ends.append((first, int(np.clip(np.ceil(high), first + 1, image[axis]))))
        (top, bottom), (left, right) = ends
        return Box(left, top, right - left, bottom - top)

    def cells_in(self, box: Box, image: Sequence[int]) -> NDArray[np.intp]:
        """List the cells with their centre in a rectangle of an image; at least the one nearest to its centre.

        Args:
            box: rectangle in pixels of the image.
            image: height and width of the image.
        """
        inside = []
        for axis, (start, length) in enumerate(((box.y, box.height), (box.x, box.width))):
            centres = self._pixels(np.arange(self.shape[axis]) + 0.5, axis, image)
            found = np.flatnonzero((centres >= start) & (centres <= start + length))
            inside.append(found if len(found) else np.array([np.abs(centres - start - length / 2).argmin()]))
        rows, columns = inside
        return np.asarray((rows[:, None] * self.shape[1] + columns).ravel(), dtype=np.intp)

    def _pixels(self, at: NDArray[np.floating[Any]], axis: int, image: Sequence[int]) -> NDArray[np.float64]:
        """Convert grid coordinates along an axis to pixels of the image."""
        place = at * self.size[axis] / self.shape[axis]
        scales = [inner / outer for inner, outer in zip(self.size, image, strict=False)]
        if self.resize == "letterbox":
            scale = min(scales)
            return np.asarray((place - self.size[axis] / 2) / scale + image[axis] / 2)
        return np.asarray(place / scales[axis])
