"""Regions of the image where the map is above the threshold."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Region:
    """A connected region of the enlarged map, in pixels of the image; `x` and `y` are its top left corner."""

    x: int
    y: int
    width: int
    height: int
    area: int
    """number of its pixels"""
    peak: float
    """largest map value inside"""
    weak: bool
    """True for a region around the map's maximum, without a pixel above the threshold"""


def find_regions(enlarged: NDArray[np.float32], *, threshold: float, rejected: bool) -> list[Region]:
    """Find the 8-connected regions above the threshold, strongest first.

    A rejected image without such a region gets one weak region around the map's maximum. Its pixels are at least halfway
    between the map's median and its maximum.

    Args:
        enlarged: (H, W) float32, the calibrated map at the image's size.
        threshold: threshold of the verdict in calibrated units.
        rejected: whether the image's score is above the threshold.
    """
    above = enlarged > threshold
    if above.any():
        return _components(enlarged, above, weak=False)
    if not rejected:
        return []
    top = np.unravel_index(int(enlarged.argmax()), enlarged.shape)
    middle = (float(np.median(enlarged)) + float(enlarged[top])) / 2
    _, labels = cv2.connectedComponents((enlarged >= middle).astype(np.uint8), connectivity=8)
    return _components(enlarged, labels == labels[top], weak=True)


def _components(enlarged: NDArray[np.float32], inside: NDArray[np.bool_], *, weak: bool) -> list[Region]:
    num_labels, labels, boxes, _ = cv2.connectedComponentsWithStats(inside.astype(np.uint8), connectivity=8)
    found = []
    for label in range(1, num_labels):
        x, y, width, height, area = (int(v) for v in boxes[label])
        part = enlarged[y : y + height, x : x + width]
        peak = float(part[labels[y : y + height, x : x + width] == label].max())
        found.append(Region(x, y, width, height, area, peak, weak))
    return sorted(found, key=lambda r: (-r.peak, r.y, r.x))
