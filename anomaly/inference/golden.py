"""The golden image: a small image in the model file, with its outputs at export. Loading scores it again."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from anomaly.errors import ModelError

GOLDEN_TOLERANCE = 1e-3
"""Default tolerance of the golden image's outputs in calibrated units, `|a - b| / max(1, |a|)`"""
GOLDEN_SIDE = 96
"""Largest side of a golden image in pixels"""


@dataclass(frozen=True)
class Golden:
    """A small image and its outputs at export; loading refuses a file with other outputs."""

    png: str
    """base64 of a PNG"""
    score: float
    map_maximum: float
    tolerance: dict[str, float] = field(default_factory=dict)
    """execution provider -> tolerance; `GOLDEN_TOLERANCE` for the others"""


def golden_png(image: NDArray[np.uint8]) -> str:
    """Reduce an image (H, W, 3) uint8 RGB to at most `GOLDEN_SIDE` pixels a side; return base64 of a PNG."""
    scale = min(1.0, GOLDEN_SIDE / max(image.shape[:2]))
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    data = cv2.imencode(".png", cv2.cvtColor(small, cv2.COLOR_RGB2BGR))[1]
    return base64.b64encode(data.tobytes()).decode()


def golden_image(golden: Golden) -> NDArray[np.uint8]:
    """Decode the golden image to (H, W, 3) uint8 RGB.

    Raises:
        ModelError: the image cannot be decoded.
    """
    try:
        stored = cv2.imdecode(np.frombuffer(base64.b64decode(golden.png), dtype=np.uint8), cv2.IMREAD_COLOR)
    except (ValueError, cv2.error):  # invalid base64, or no data
        stored = None
    if stored is None:
        raise ModelError("the golden image in the model's metadata is damaged: export the model again")
    return np.ascontiguousarray(stored[..., ::-1]).astype(np.uint8, copy=False)


def golden_batch(golden: Golden, *, fixed: Sequence[int]) -> NDArray[np.uint8]:
    """Decode the golden image to a batch (n, H, W, 3) uint8 RGB that the graph accepts.

    A graph with fixed shapes gets the image enlarged by nearest neighbour and repeated.

    Args:
        golden: golden image of the file.
        fixed: images per inference, height and width of a graph with fixed shapes; empty for any shape.

    Raises:
        ModelError: the image cannot be decoded.
    """
    image = golden_image(golden)
    if not fixed:
        return image[None]
    num, height, width = fixed
    enlarged = cv2.resize(image, (width, height), interpolation=cv2.INTER_NEAREST)
    return np.repeat(np.asarray(enlarged, dtype=np.uint8)[None], num, axis=0)
