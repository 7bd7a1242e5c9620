"""Four statistics of images; a later change of light or lens shows in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

MOST_WIDTH = 16_384
"""Largest width of the reduced image in pixels. It bounds the memory for line-scan images wider than 64:1"""


def image_statistics(image: NDArray[np.uint8]) -> dict[str, float]:
    """Measure one image (H, W, 3) uint8 RGB.

    Returns:
        `brightness` and `contrast`: mean and deviation of the grey levels, 0 to 255. `sharpness`: variance of the
        Laplacian at a height of 256 pixels, so that it does not depend on the resolution. `colour`: mean spread of the
        channels, in grey levels.
    """
    height = 256
    width = min(max(1, round(image.shape[1] * height / image.shape[0])), MOST_WIDTH)
    small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
    red, green, blue = cv2.split(small)
    spread = cv2.subtract(cv2.max(cv2.max(red, green), blue), cv2.min(cv2.min(red, green), blue))
    mean, deviation = cv2.meanStdDev(grey)
    return {
        "brightness": mean.item(),
        "contrast": deviation.item(),
        "sharpness": cv2.meanStdDev(cv2.Laplacian(grey, cv2.CV_32F))[1].item() ** 2,
        "colour": cv2.mean(spread)[0],
    }


def summarise(statistics: Sequence[dict[str, float]]) -> dict[str, dict[str, Any]]:
    """Summarise each statistic over a set of images: its mean, deviation and ascending values."""
    return {
        name: {
            "mean": round(float(np.mean([s[name] for s in statistics])), 4),
            "deviation": round(float(np.std([s[name] for s in statistics])), 4),
            "values": sorted(round(s[name], 4) for s in statistics),
        }
        for name in (statistics[0] if statistics else ())
    }
