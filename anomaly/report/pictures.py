"""The pictures of the report: reduced, embedded in the page, and labelled where they are synthetic."""

from __future__ import annotations

import base64

import cv2
import numpy as np
from numpy.typing import NDArray

from anomaly.errors import UsageError

Image = NDArray[np.uint8]

PICTURE_SIDE = 240
"""Longest side of a picture in the page, in pixels"""
_JPEG = (cv2.IMWRITE_JPEG_QUALITY, 85, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444)


def reduce_picture(image: Image) -> Image:
    """Reduce a picture (H, W, 3) uint8 RGB to a longest side of `PICTURE_SIDE`; smaller pictures stay unchanged.

    Raises:
        UsageError: another dtype or shape, or an empty picture.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise UsageError(
            f"a picture of the report has dtype {image.dtype} and shape {image.shape}: give uint8 RGB (H, W, 3)"
        )
    height, width = image.shape[:2]
    scale = PICTURE_SIDE / max(height, width)
    if scale >= 1:
        return image
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def label_synthetic(image: Image) -> Image:
    """Add a strip with the word SYNTHETIC below a picture (H, W, 3); its height is an eighth of the width.

    A saved copy keeps the label, and no pixel is hidden.
    """
    strip = np.full((32, 256, 3), (255, 209, 102), np.uint8)
    cv2.putText(strip, "SYNTHETIC", (44, 25), cv2.FONT_HERSHEY_SIMPLEX, 0.95, (40, 30, 0), 2, cv2.LINE_AA)
    width = image.shape[1]
    strip = np.asarray(cv2.resize(strip, (width, max(1, round(width / 8))), interpolation=cv2.INTER_AREA), np.uint8)
    return np.concatenate([image, strip])


def data_uri(image: Image) -> str:
    """Encode a picture (H, W, 3) uint8 RGB as a data URI, in the smaller of PNG and JPEG."""
    stored = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    files = {"png": cv2.imencode(".png", stored)[1], "jpeg": cv2.imencode(".jpg", stored, _JPEG)[1]}
    kind = min(files, key=lambda kind: files[kind].size)
    return f"data:image/{kind};base64,{base64.b64encode(files[kind].tobytes()).decode()}"
