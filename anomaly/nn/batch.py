"""`Batch`: images as a data loader yields them."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """One batch of a data loader: images as read from disk."""

    image: Tensor | list[Tensor]
    """(N, H, W, 3) uint8 RGB, or N images (H, W, 3) of different sizes"""
    mask: Tensor | list[Tensor]
    """(N, H, W) bool, all False for a good part, or a list of N masks (H, W)"""
    label: Tensor
    """(N,) bool, True for a defect"""
    path: list[str]
