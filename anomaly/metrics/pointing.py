"""Pointing accuracy: whether the maximum of an anomaly map lies on the defect.

J. Zhang et al., "Top-down Neural Attention by Excitation Backprop", 2016, arXiv 1608.00507, section 4.1: a hit is a maximum
within 15 pixels of the object. Here the tolerance grows with the image.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from anomaly.errors import UsageError
from anomaly.metrics.rates import Rate

TOLERANCE = 0.02
"""Largest distance of the maximum from the mask, over the shorter side of the image"""


def is_hit(anomaly_map: NDArray[np.floating[Any]], mask: NDArray[np.bool_]) -> bool:
    """Whether the map's first maximum lies within the tolerance of the mask.

    Args:
        anomaly_map: (H, W), higher is more anomalous.
        mask: (H, W), True on the defect, at least one pixel.

    Raises:
        UsageError: different shapes, or an empty mask.
    """
    if anomaly_map.shape != mask.shape or anomaly_map.ndim != 2:
        raise UsageError(f"map {anomaly_map.shape} and mask {mask.shape}: give both as (H, W) of one size")
    if not mask.any():
        raise UsageError("the mask has no defect pixel: pointing accuracy counts defects only")
    y, x = np.unravel_index(int(anomaly_map.argmax()), mask.shape)
    if mask[y, x]:
        return True
    distance = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return bool(distance[y, x] <= TOLERANCE * min(mask.shape))


def pointing_accuracy(images: Iterable[tuple[NDArray[np.floating[Any]], NDArray[np.bool_]]]) -> Rate:
    """Count the defective images whose maximum lies within the tolerance of the mask.

    Args:
        images: map and mask of each image; an image without a defect pixel does not count.
    """
    hits = [is_hit(anomaly_map, mask) for anomaly_map, mask in images if mask.any()]
    return Rate(sum(hits), len(hits))
