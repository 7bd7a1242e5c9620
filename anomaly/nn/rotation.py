"""Rotation of square images by fixed angles, in exportable operations."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional


def rotate(x: Tensor, degrees: float) -> Tensor:
    """Rotate images counterclockwise around their centre (bilinear, zeros outside).

    Quarter turns are exact; only the remainder of an angle, below 90°, is interpolated.

    Args:
        x: (N, C, s, s) float.
        degrees: angle in degrees.
    """
    quarters, rest = divmod(degrees % 360.0, 90.0)
    if rest:
        size = x.shape[-1]
        at = (2 * torch.arange(size, device=x.device, dtype=x.dtype) + 1) / size - 1  # pixel centres in [-1, 1]
        right, down = at[None, :], at[:, None]
        cos, sin = math.cos(math.radians(rest)), math.sin(math.radians(rest))
        source = torch.stack((cos * right - sin * down, sin * right + cos * down), dim=-1)  # (s, s, 2)
        # one grid for all images, which take the place of channels
        flat = x.reshape(1, -1, size, size)
        x = functional.grid_sample(flat, source[None], padding_mode="zeros", align_corners=False).reshape(x.shape)
    return torch.rot90(x, int(quarters), (2, 3)) if quarters else x


def equally_spaced(num: int) -> list[float]:
    """Return `num` angles in degrees, equally spaced over the full turn, starting at 0."""
    return [360.0 * k / num for k in range(num)]
