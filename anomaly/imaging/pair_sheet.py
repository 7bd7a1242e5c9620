"""A sheet of picture pairs: a place in one image beside a place in another, each with a frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
TILE = 224
"""Side of a tile in pixels"""
CAPTION = 22
"""Height of a caption in pixels"""
FRAME_LEFT, FRAME_RIGHT = (215, 0, 60), (0, 130, 90)
"""Colours of the frames: the rejected place, the good place"""
_GAP = 8


@dataclass(frozen=True)
class Frame:
    """A rectangle in pixels of an image."""

    x: float
    y: float
    width: float
    height: float

    def scaled(self, factor_x: float, factor_y: float) -> Frame:
        """Convert to an image of another size."""
        return Frame(self.x * factor_x, self.y * factor_y, self.width * factor_x, self.height * factor_y)


def tile(image: Image, frame: Frame, *, share: float, colour: tuple[int, int, int]) -> Image:
    """Cut a square around a frame and draw the frame, (TILE, TILE, 3).

    Args:
        image: (H, W, 3) uint8 RGB.
        frame: rectangle in the image.
        share: side of the square over the shorter side of the image, in (0, 1].
        colour: colour of the frame.
    """
    height, width = image.shape[:2]
    side = max(8.0, share * min(height, width))
    scale = TILE / side
    left = float(np.clip(frame.x + frame.width / 2 - side / 2, 0, max(0.0, width - side)))
    top = float(np.clip(frame.y + frame.height / 2 - side / 2, 0, max(0.0, height - side)))
    x0, y0 = int(left), int(top)
    x1, y1 = min(width, int(np.ceil(left + side))), min(height, int(np.ceil(top + side)))
    size = (max(1, round((x1 - x0) * scale)), max(1, round((y1 - y0) * scale)))
    part = cv2.resize(image[y0:y1, x0:x1], size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    drawn = np.full((TILE, TILE, 3), 255, np.uint8)
    drawn[: min(TILE, part.shape[0]), : min(TILE, part.shape[1])] = part[:TILE, :TILE]
    corners = [round((frame.x - x0) * scale), round((frame.y - y0) * scale)]
    ends = [round((frame.x + frame.width - x0) * scale), round((frame.y + frame.height - y0) * scale)]
    cv2.rectangle(drawn, corners, ends, (255, 255, 255), 4)
    cv2.rectangle(drawn, corners, ends, colour, 2)
    return drawn


def sheet(pairs: Sequence[tuple[Image, Image, str]]) -> Image:
    """Arrange pairs of tiles below each other, each with a caption.

    Args:
        pairs: left tile, right tile and caption; characters outside ASCII are written as question marks.
    """
    rows = []
    for left, right, text in pairs:
        gap = np.full((TILE, _GAP, 3), 255, np.uint8)
        caption = np.full((CAPTION, 2 * TILE + _GAP, 3), 255, np.uint8)
        ascii_text = text.encode("ascii", "replace").decode()
        scale = 0.42
        (length, _), _ = cv2.getTextSize(ascii_text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
        scale *= min(1.0, (caption.shape[1] - 4) / max(1, length))
        cv2.putText(caption, ascii_text, (2, 15), cv2.FONT_HERSHEY_SIMPLEX, scale, (30, 30, 30), 1, cv2.LINE_AA)
        rows += [np.concatenate([left, gap, right], axis=1), caption]
    return np.concatenate(rows)
