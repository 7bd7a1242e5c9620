"""Large images in fixed memory: a walk of windows over an image, and their maps stitched to one at the image's own pixels.

The network sees windows of raw pixels, never a resized image. A model walks in one of two modes, chosen when it was fitted:

    seamless   for a fully convolutional network. Each window gives the map of its core, a tile, and sees a halo around it
               as wide as the map's pixels can look. Windows begin at multiples of the network's stride and end at the
               image's own border, where the network pads as it does without tiles: the stitched map is that of the whole
               image in one piece. The image's score is the largest value of the stitched map.
    windows    for any network. Windows of its fixed size overlap; a pixel has the largest value of the windows that see
               it, and the image the largest of their scores. There is no whole map that this would equal.

A side that is no multiple of the stride, or less than a window of fixed size, is continued by its last row or column; the
map is cut back to the image.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Said = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Scores (n,) and maps (n, h, w)"""
ScoreWindows = Callable[[NDArray[np.uint8]], Said]
"""From windows (n, h, w, 3) uint8 RGB to their scores and maps at the windows' size"""

PIXELS_AT_ONCE = 2**20
"""Windows go through the network together up to so many pixels, one at least"""


@dataclass(frozen=True)
class Tiling:
    """How a model walks over an image; it travels in the model's file."""

    mode: Literal["seamless", "windows"]
    window: list[int]
    """height and width in pixels of what the network sees at a time, at most"""
    step: list[int]
    """from one window to the next; in the mode `seamless` the size of a tile between its halos"""
    stride: int
    """of the network in pixels: seamless windows begin and end at its multiples"""

    @property
    def halo(self) -> tuple[int, int]:
        """Rows and columns around a tile that the network sees as well; none in the mode `windows`."""
        if self.mode == "windows":
            return 0, 0
        return (self.window[0] - self.step[0]) // 2, (self.window[1] - self.step[1]) // 2

    def with_tile(self, *, height: int, width: int) -> Tiling:
        """The same walk with seamless tiles of another size, multiples of the stride."""
        (rows, columns), step = self.halo, [height, width]
        return replace(self, step=step, window=[height + 2 * rows, width + 2 * columns])


@dataclass(frozen=True)
class _Span:
    """One window along one axis: the pixels it sees, and those whose map it gives."""

    start: int
    end: int
    core_start: int
    core_end: int


def _spans(length: int, *, axis: int, tiling: Tiling) -> list[_Span]:
    """Windows along an axis of an image that is `length` pixels long."""
    window, step = tiling.window[axis], tiling.step[axis]
    if tiling.mode == "windows":
        last = max(0, length - window)  # flush with the border
        starts = [*range(0, last, step), last]
        return [_Span(at, at + window, at, at + window) for at in starts]
    whole = -(-length // tiling.stride) * tiling.stride
    window, halo = min(window, whole), tiling.halo[axis]
    found, core = [], 0
    while core < whole:
        start = min(max(core - halo, 0), whole - window)  # moved inwards at a border: all windows have one size
        end = start + window
        core_end = whole if end == whole else end - halo  # a border needs no halo
        found.append(_Span(start, end, core, core_end))
        core = core_end
    return found


def _cut(image: NDArray[np.uint8], rows: _Span, columns: _Span) -> NDArray[np.uint8]:
    """A window of an image (H, W, 3), continued by the last row and column where it ends before the window does."""
    part = image[rows.start : rows.end, columns.start : columns.end]
    lacking = (rows.end - rows.start - part.shape[0], columns.end - columns.start - part.shape[1])
    return np.pad(part, ((0, lacking[0]), (0, lacking[1]), (0, 0)), mode="edge") if any(lacking) else part


def score_tiled(score: ScoreWindows, image: NDArray[np.uint8], *, tiling: Tiling) -> Said:
    """Score images of any size, one after the other, with no more than a few windows in the network at a time.

    Args:
        score: of windows.
        image: (n, H, W, 3) uint8 RGB of one size.
        tiling: how to walk.

    Returns:
        Scores (n,) and maps (n, H, W) float32.
    """
    num, height, width = image.shape[:3]
    total = np.empty(num, dtype=np.float32)
    maps = np.full((num, height, width), -np.inf, dtype=np.float32)
    grid = list(itertools.product(_spans(height, axis=0, tiling=tiling), _spans(width, axis=1, tiling=tiling)))
    for n in range(num):
        largest = [_lay(maps[n], part, *score(windows)) for part, windows in _batches(image[n], grid)]
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


def _lay(
    whole: NDArray[np.float32],
    grid: list[tuple[_Span, _Span]],
    scores: NDArray[np.float32],
    maps: NDArray[np.float32],
) -> np.float32:
    """Lay the cores of windows' maps into the map (H, W) of the image; gives the largest of the windows' scores."""
    for (rows, columns), found in zip(grid, maps, strict=True):
        place = whole[rows.core_start : rows.core_end, columns.core_start : columns.core_end]
        top, left = rows.core_start - rows.start, columns.core_start - columns.start
        np.maximum(place, found[top : top + place.shape[0], left : left + place.shape[1]], out=place)
    return np.max(scores)


def seam(score: ScoreWindows, image: NDArray[np.uint8], *, tiling: Tiling) -> float:
    """Measure how far a stitched map is from the one without tiles, on two strips of an image that take little memory.

    Halo and stride decide, not the tile: each strip is cut into small tiles along its length, where the image is long
    enough, and its length is no multiple of the stride.

    Args:
        score: of windows.
        image: (H, W, 3) uint8 RGB.
        tiling: a seamless one.

    Returns:
        The largest difference in calibrated units, `|a - b| / max(1, |a|)`, `a` being the map without tiles.
    """
    worst = 0.0
    side = -(-128 // tiling.stride) * tiling.stride
    for axis in (0, 1):
        long = 2 * tiling.halo[axis] + 3 * side - 1
        part = (image[:long, :side] if axis == 0 else image[:side, :long])[None]
        whole = tiling.with_tile(height=long - long % -tiling.stride, width=long - long % -tiling.stride)
        small = tiling.with_tile(height=side, width=side)
        a, b = (score_tiled(score, part, tiling=walk)[1].astype(np.float64) for walk in (whole, small))
        worst = max(worst, float(np.max(np.abs(a - b) / np.maximum(1.0, np.abs(a)))))
    return worst
