"""Where on the image a map rises above the threshold."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Region:
    """A connected region of the enlarged map, in pixels of the image: top left corner, end exclusive."""

    x: int
    y: int
    width: int
    height: int
    area: int
    """pixels above the threshold"""
    peak: float
    """largest value of the map in it"""
    weak: bool
    """no pixel is above the threshold: the region is the one around the map's maximum"""


def find_regions(enlarged: NDArray[np.float32], *, threshold: float, rejected: bool) -> list[Region]:
    """Find the 8-connected regions above the threshold, strongest first.

    A rejected image without one gets the region around the map's maximum, above the middle between the map's median and
    its maximum, marked weak.

    Args:
        enlarged: (H, W) float32, the calibrated map at the image's size.
        threshold: of the verdict.
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
