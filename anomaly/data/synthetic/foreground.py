"""Estimate of the part in an image, from the colours along the border."""

from __future__ import annotations

import cv2
import numpy as np

from anomaly.data.synthetic._array_arguments import check_image
from anomaly.data.synthetic.rendered_part import Image, Mask

WORKING_SIZE = 256  # longer side of the reduced image
BORDER = 0.03  # width of the border in shorter sides
MIN_SEPARATION = 0.70  # share of the variance that lies between part and background
MAX_BORDER_PART = 0.30  # largest share of the border on the part
CORE = 0.65  # share of the part's typical distance from the background; shadows and glow are below
MIN_COHERENT = 0.60  # smallest share of the largest connected piece


def estimate_foreground(image: Image) -> Mask:
    """Estimate the mask (H, W) bool of the part on an even background.

    A plane per colour is fitted to the border, and Otsu's threshold (1979) splits the distance from it. The largest
    connected piece is the part, with its holes filled. All pixels count as part in three cases, e.g. for a texture: the
    split does not separate, it gives small pieces, or much of the border is on the part's side.

    Args:
        image: (H, W, 3) uint8 RGB.

    Raises:
        UsageError: another type, dtype or shape.
    """
    check_image(image)
    height, width = image.shape[:2]
    everything = np.ones((height, width), np.bool_)
    zoom = min(1.0, WORKING_SIZE / max(height, width))
    small = cv2.resize(image, (max(8, round(width * zoom)), max(8, round(height * zoom))), interpolation=cv2.INTER_AREA)
    lab = cv2.cvtColor(small.astype(np.float32) / 255.0, cv2.COLOR_RGB2LAB)
    rows, columns = lab.shape[:2]
    band = max(2, round(BORDER * min(rows, columns)))
    border = np.ones((rows, columns), np.bool_)
    border[band:-band, band:-band] = False
    y, x = np.mgrid[-1.0 : 1.0 : rows * 1j, -1.0 : 1.0 : columns * 1j]
    plane = np.stack([np.ones_like(x), x, y], axis=-1)
    typical = border & (np.linalg.norm(lab - np.median(lab[border], axis=0), axis=2) < 20.0)
    if typical.sum() < (1.0 - MAX_BORDER_PART) * border.sum():
        return everything
    fit, *_ = np.linalg.lstsq(plane[typical], lab[typical], rcond=None)
    distance = np.linalg.norm(cv2.GaussianBlur(lab, (0, 0), 1.0) - plane @ fit, axis=2)
    levels = np.clip(distance * 4.0, 0, 255).astype(np.uint8)
    threshold, _ = cv2.threshold(levels, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    part = levels > threshold
    if not part.any() or part.all():
        return everything
    share = part.mean()
    between = share * (1.0 - share) * (float(levels[part].mean()) - float(levels[~part].mean())) ** 2
    if between < MIN_SEPARATION * float(levels.var()) or part[border].mean() > MAX_BORDER_PART:
        return everything
    part = levels > max(threshold, CORE * float(np.median(levels[part])))
    _, labels, stats, _ = cv2.connectedComponentsWithStats(part.astype(np.uint8), connectivity=8)
    areas = stats[1:, cv2.CC_STAT_AREA]
    if areas.max() < MIN_COHERENT * areas.sum():
        return everything
    largest = (labels == 1 + int(areas.argmax())).astype(np.uint8)
    outlines, _ = cv2.findContours(largest, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(largest, outlines, -1, 1, cv2.FILLED)
    return np.asarray(cv2.resize(largest.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR) > 0.5)
