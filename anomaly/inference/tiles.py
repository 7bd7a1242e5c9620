"""Large images in fixed memory: windows of an image are scored, and their maps are stitched at the image's own pixels.

The network sees windows of raw pixels, never a resized image. There are two modes, chosen when the model is fitted:

    seamless   for a fully convolutional network. Each window gives the map of its core, a tile. The window has a halo
               around the tile as wide as the receptive field of the map. Windows begin at multiples of the network's
               stride. At the image's border the network pads as it does without tiles. So the stitched map equals the
               map of the whole image. The image's score is the largest value of the stitched map.
    windows    for any network. Windows of a fixed size overlap. A pixel has the largest value of its windows, and the
               image has the largest score of its windows. No map of the whole image exists for comparison.

An image is padded by its last row and column in two cases: it is smaller than a window, or the stride does not divide a
side. The map is cut back to the image.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from anomaly.inference.difference import relative_difference

WindowScores = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Scores (n,) and maps (n, h, w)"""
ScoreWindows = Callable[[NDArray[np.uint8]], WindowScores]
"""Function from windows (n, h, w, 3) uint8 RGB to scores and maps of the windows' size"""

PIXELS_AT_ONCE = 2**20
"""Largest number of pixels in the network at a time; at least one window"""


@dataclass(frozen=True)
class Tiling:
    """Windows of a model for large images; stored in the model file."""

    mode: Literal["seamless", "windows"]
    window: list[int]
    """largest height and width of a window in pixels"""
    step: list[int]
    """distance from one window to the next in pixels; in the mode `seamless` the size of a tile without halo"""
    stride: int
    """stride of the network in pixels; seamless windows begin and end at its multiples"""

    @property
    def halo(self) -> tuple[int, int]:
        """Rows and columns of a window around its tile; 0 in the mode `windows`."""
        if self.mode == "windows":
            return 0, 0
        return (self.window[0] - self.step[0]) // 2, (self.window[1] - self.step[1]) // 2

    def with_tile(self, *, height: int, width: int) -> Tiling:
        """Copy this tiling with seamless tiles of another size, multiples of the stride."""
        (rows, columns), step = self.halo, [height, width]
        return replace(self, step=step, window=[height + 2 * rows, width + 2 * columns])


@dataclass(frozen=True)
class _Span:
    """One window along one axis: its pixels, and the core whose map it gives."""

    start: int
    end: int
    core_start: int
    core_end: int


def _spans(length: int, *, axis: int, tiling: Tiling) -> list[_Span]:
    """List the windows along an axis of `length` pixels."""
    window, step = tiling.window[axis], tiling.step[axis]
    if tiling.mode == "windows":
        last = max(0, length - window)  # flush with the border
        starts = [*range(0, last, step), last]
        return [_Span(at, at + window, at, at + window) for at in starts]
    whole = -(-length // tiling.stride) * tiling.stride
    window, halo = min(window, whole), tiling.halo[axis]
    found, core = [], 0
    while core < whole:
        start = min(max(core - halo, 0), whole - window)  # moved inwards at a border, so that all windows have one size
        end = start + window
        core_end = whole if end == whole else end - halo  # a border needs no halo
        found.append(_Span(start, end, core, core_end))
        core = core_end
    return found


def _cut(image: NDArray[np.uint8], rows: _Span, columns: _Span) -> NDArray[np.uint8]:
    """Cut a window from an image (H, W, 3), padded by the last row and column beyond the image."""
    part = image[rows.start : rows.end, columns.start : columns.end]
    missing = (rows.end - rows.start - part.shape[0], columns.end - columns.start - part.shape[1])
    return np.pad(part, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="edge") if any(missing) else part


def score_tiled(score: ScoreWindows, image: NDArray[np.uint8], *, tiling: Tiling) -> WindowScores:
    """Score images of any size, one after another, with few windows in the network at a time.

    Args:
        score: function that scores windows.
        image: (n, H, W, 3) uint8 RGB.
        tiling: windows of the model.

    Returns:
        Scores (n,) and maps (n, H, W) float32.
    """
    num, height, width = image.shape[:3]
    total = np.empty(num, dtype=np.float32)
    maps = np.full((num, height, width), -np.inf, dtype=np.float32)
    grid = list(itertools.product(_spans(height, axis=0, tiling=tiling), _spans(width, axis=1, tiling=tiling)))
    for n in range(num):
        largest = [_stitch(maps[n], part, *score(windows)) for part, windows in _batches(image[n], grid)]
        total[n] = maps[n].max() if tiling.mode == "seamless" else np.max(largest)
    return total, maps


def _batches(
    image: NDArray[np.uint8], grid: list[tuple[_Span, _Span]]
) -> Iterator[tuple[list[tuple[_Span, _Span]], NDArray[np.uint8]]]:
    rows, columns = grid[0]
    at_once = max(1, PIXELS_AT_ONCE // ((rows.end - rows.start) * (columns.end - columns.start)))
    for first in range(0, len(grid), at_once):
        part = grid[first : first + at_once]
        yield part, np.stack([_cut(image, *spans) for spans in part])


def _stitch(
    whole: NDArray[np.float32],
    grid: list[tuple[_Span, _Span]],
    scores: NDArray[np.float32],
    maps: NDArray[np.float32],
) -> np.float32:
    """Write the cores of the windows' maps into the map (H, W) of the image; return the largest score of the windows."""
    for (rows, columns), found in zip(grid, maps, strict=True):
        place = whole[rows.core_start : rows.core_end, columns.core_start : columns.core_end]
        top, left = rows.core_start - rows.start, columns.core_start - columns.start
        np.maximum(place, found[top : top + place.shape[0], left : left + place.shape[1]], out=place)
    return np.max(scores)


def seam(score: ScoreWindows, image: NDArray[np.uint8], *, tiling: Tiling) -> float:
    """Measure the difference between a stitched map and the map without tiles, on two strips of an image.

    The strips take little memory. The result depends on halo and stride, not on the tile: each strip is cut into small tiles
    along its length, and its length is not a multiple of the stride.

    Args:
        score: function that scores windows.
        image: (H, W, 3) uint8 RGB.
        tiling: seamless windows of the model.

    Returns:
        The largest `relative_difference` of the stitched map from the map without tiles.
    """
    worst = 0.0
    side = -(-128 // tiling.stride) * tiling.stride
    for axis in (0, 1):
        long = 2 * tiling.halo[axis] + 3 * side - 1
        part = (image[:long, :side] if axis == 0 else image[:side, :long])[None]
        whole = tiling.with_tile(height=long - long % -tiling.stride, width=long - long % -tiling.stride)
        small = tiling.with_tile(height=side, width=side)
        a, b = (score_tiled(score, part, tiling=one)[1] for one in (whole, small))
        worst = max(worst, float(relative_difference(a, b).max()))
    return worst
