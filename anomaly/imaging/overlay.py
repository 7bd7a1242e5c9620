"""Anomaly maps enlarged to the image, and drawn over it in colours with a fixed scale."""

from __future__ import annotations

from math import ceil
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from anomaly.errors import UsageError

Resize = Literal["stretch", "letterbox", "native"]
"""Rule of resizing an image to the network's input; `native` keeps its pixels"""
_AT_THRESHOLD = np.array([255, 210, 0], dtype=np.float32)  # yellow
_AT_TWICE_THE_THRESHOLD = np.array([215, 0, 60], dtype=np.float32)  # red
_CONTOUR = (0, 255, 255)  # cyan, visible on both
_OPACITY = 0.6
_ROWS = 128
"""Rows drawn together: colours take twelve times the memory of their pixels"""


def enlarge_map(anomaly_map: NDArray[np.float32], *, height: int, width: int, resize: Resize) -> NDArray[np.float32]:
    """Enlarge a map to the size of its image, bilinear with half-pixel centres.

    In "stretch" and "native" the whole map shows the image. In "letterbox" the image is scaled by min(h / height, w / width)
    and centred, to a fraction of a pixel; the padding around it is cut off. The outermost map pixels with their centre on the
    image are repeated to the border.

    Args:
        anomaly_map: (h, w) float32.
        height: height of the image in pixels.
        width: width of the image in pixels.
        resize: rule of resizing to the network's input.

    Returns:
        (height, width) float32.

    Raises:
        UsageError: the map does not have two dimensions, or a side is below 1.
    """
    if anomaly_map.ndim != 2 or min(*anomaly_map.shape, height, width) < 1:
        raise UsageError(f"a map {anomaly_map.shape} cannot be enlarged to {height}×{width}; give one map (h, w)")
    h, w = anomaly_map.shape
    if (h, w) == (height, width):
        return anomaly_map
    scale_y, scale_x = h / height, w / width
    if resize == "letterbox":
        scale_y = scale_x = min(scale_y, scale_x)
    left, right, share = _taps(width, into=w, scale=scale_x)
    columns = anomaly_map[:, left] * (1 - share) + anomaly_map[:, right] * share
    top, bottom, share = _taps(height, into=h, scale=scale_y)
    enlarged = columns[top]
    step = columns[bottom]
    step -= enlarged
    step *= share[:, None]
    enlarged += step
    return enlarged


def _taps(
    num_pixels: int, *, into: int, scale: float
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """Find the two neighbours of each of `num_pixels` pixels among `into` map pixels, and the share of the second."""
    # The pixels' centres, scaled about the middle of both sides; for a stretched side this is (x + 1/2) · scale − 1/2.
    place = (np.arange(num_pixels) + 0.5 - num_pixels / 2) * scale + into / 2 - 0.5
    # Map pixels count if their centre lies on the image; a side below one map pixel has the two around it.
    low = ceil((into - num_pixels * scale) / 2 - 0.5 - 1e-6)
    place = np.clip(place, min(low, into - 1 - low), max(low, into - 1 - low))
    first = place.astype(np.intp)
    return first, np.minimum(first + 1, into - 1), (place - first).astype(np.float32)


def overlay(image: NDArray[np.uint8], anomaly_map: NDArray[np.float32], *, threshold: float) -> NDArray[np.uint8]:
    """Draw an enlarged map over its image, on one colour scale for all images of a threshold.

    Nothing is drawn below half the threshold. Yellow fades in up to the threshold and turns red at twice the threshold.
    A thin line follows the threshold. The scale depends only on the threshold, so that good parts stay unmarked.

    Args:
        image: (H, W, 3) uint8 RGB.
        anomaly_map: (H, W) float32, the calibrated map at the image's size.
        threshold: threshold of the verdict in calibrated units, above 0.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        UsageError: the sizes differ, or the threshold is not above 0.
    """
    if image.shape != (*anomaly_map.shape, 3):
        raise UsageError(f"a map {anomaly_map.shape} does not fit an image {image.shape}; enlarge the map first")
    if not threshold > 0:
        raise UsageError(f"the threshold is {threshold}; give a threshold above 0")
    drawn = np.empty_like(image)
    for top in range(0, len(image), _ROWS):
        part = image[top : top + _ROWS]
        ratio = (anomaly_map[top : top + _ROWS] / np.float32(threshold))[..., None]
        colour = _AT_THRESHOLD + (_AT_TWICE_THE_THRESHOLD - _AT_THRESHOLD) * np.clip(ratio - 1, 0, 1)
        opacity = _OPACITY * np.clip(2 * ratio - 1, 0, 1)
        drawn[top : top + _ROWS] = np.rint(part + (colour - part) * opacity).astype(np.uint8)
    contours, _ = cv2.findContours((anomaly_map > threshold).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(drawn, contours, -1, _CONTOUR, thickness=max(1, round(min(image.shape[:2]) / 500)))
    return drawn
