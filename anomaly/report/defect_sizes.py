"""Size and contrast of labelled defects from their masks, for missed and for detected ones."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from anomaly.data.folders import Sample
from anomaly.imaging.image_file import read_image, read_mask
from anomaly.report.values import DefectSizes

RING = 0.03
"""Width of the ring around a defect over the shorter side of the image"""


def defect_sizes(
    samples: Sequence[Sample], detected: NDArray[np.bool_], *, white: int, max_pixels: int
) -> tuple[DefectSizes, ...]:
    """Measure the defects with a mask, first the missed and then the detected ones; empty without masks.

    Args:
        samples: images with a defect.
        detected: (n,) bool.
        white: stored value of 16-bit images that becomes 255.
        max_pixels: largest width × height that is decoded.
    """
    found: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    for sample, hit in zip(samples, detected, strict=True):
        if sample.mask_path is None:
            continue
        mask = read_mask(sample.mask_path, max_pixels=max_pixels)
        image = read_image(sample.path, white=white, max_pixels=max_pixels)
        if mask.any() and mask.shape == image.shape[:2]:
            found[bool(hit)].append((extent_of(mask), contrast_of(image, mask)))
    return tuple(
        DefectSizes(detected=hit, sizes=np.array([s for s, _ in rows]), contrasts=np.array([c for _, c in rows]))
        for hit, rows in found.items()
        if rows
    )


def extent_of(mask: NDArray[np.bool_]) -> float:
    """Longest side of the smallest rectangle around a mask (H, W), over the shorter side of the image."""
    rows, columns = np.nonzero(mask)
    _, sides, _ = cv2.minAreaRect(np.stack([columns, rows], axis=1).astype(np.float32))
    return float((max(sides) + 1) / min(mask.shape))


def contrast_of(image: NDArray[np.uint8], mask: NDArray[np.bool_]) -> float:
    """Difference between the mean grey levels of a defect and of the ring around it.

    Args:
        image: (H, W, 3) uint8.
        mask: (H, W) bool, with a True pixel.
    """
    grey = image.astype(np.float32).mean(axis=2)
    reach = 2 * max(1, round(RING * min(mask.shape))) + 1
    ring = (cv2.dilate(mask.astype(np.uint8), np.ones((reach, reach), np.uint8)) > 0) & ~mask
    around = float(grey[ring].mean()) if ring.any() else float(grey.mean())
    return abs(float(grey[mask].mean()) - around)
