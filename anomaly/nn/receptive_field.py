"""How far a map's pixels look: which pixels of the input a network's output depends on, found by running it.

What is no number stays no number through every layer that reads it, whatever the weights: an image whose one half is NaN
shows, by the NaN of the map, how far the map depends on that half.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from anomaly.errors import UsageError

LEAST, MOST = 256, 4096
"""Pixels of the shortest and the longest image that is tried"""


@torch.no_grad()
def reach(function: Callable[[Tensor], Tensor], *, stride: int) -> tuple[int, int]:
    """Find how far a map depends on what lies beyond a cut at a multiple of the stride.

    Args:
        function: from x (1, 3, h, w) to a map (1, h, w), for all h and w that are multiples of the stride; in eval mode.
        stride: of the network in pixels.

    Returns:
        Rows and columns of the map beside a cut that depend on the far side of it.

    Raises:
        UsageError: the map depends on all of an image of `MOST` pixels, or has not the input's size.
    """
    return _reach(function, stride=stride, axis=2), _reach(function, stride=stride, axis=3)


def _reach(function: Callable[[Tensor], Tensor], *, stride: int, axis: int) -> int:
    thin = -(-64 // stride) * stride
    half = -(-LEAST // (2 * stride)) * stride
    while 2 * half <= max(MOST, 8 * stride):
        shape = [1, 3, thin, thin]
        shape[axis] = 2 * half
        x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
        found = []
        for first in (True, False):  # the half that is NaN
            seen = x.clone()
            seen.narrow(axis, 0 if first else half, half).fill_(torch.nan)
            said = function(seen)
            if said.shape != (1, shape[2], shape[3]):
                raise UsageError(
                    f"its map of {shape[2]}×{shape[3]} pixels is {tuple(said.shape[1:])}, not of that size"
                )
            reached = torch.isnan(said[0]).any(dim=3 - axis).nonzero().flatten()
            found.append(int(reached[-1]) + 1 - half if first else half - int(reached[0]))
        if max(found) < half:
            return max(found)
        half *= 2
    raise UsageError(f"each pixel of its map depends on the whole of an image of {half} pixels")
