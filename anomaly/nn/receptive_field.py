"""Receptive field of an anomaly map, measured by running the network.

NaN passes through every layer that reads it, for any weights. One half of the image is set to NaN; the NaN pixels of the
map show how far the map depends on that half.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from anomaly.errors import UsageError

LEAST, MOST = 256, 4096
"""Lengths in pixels of the shortest and the longest test image"""


@torch.no_grad()
def reach(function: Callable[[Tensor], Tensor], *, stride: int) -> tuple[int, int]:
    """Measure how far a map depends on pixels beyond a cut at a multiple of the stride.

    Args:
        function: map (1, h, w) of an input x (1, 3, h, w), in eval mode; h and w are multiples of the stride.
        stride: stride of the network in pixels.

    Returns:
        Numbers of rows and of columns beside a cut that depend on the other side of the cut.

    Raises:
        UsageError: the map depends on the whole of an image of `MOST` pixels, or its size differs from the input's.
    """
    return _reach(function, stride=stride, axis=2), _reach(function, stride=stride, axis=3)


def _reach(function: Callable[[Tensor], Tensor], *, stride: int, axis: int) -> int:
    thin = -(-64 // stride) * stride
    half = -(-LEAST // (2 * stride)) * stride
    while 2 * half <= max(MOST, 8 * stride):
        shape = [1, 3, thin, thin]
        shape[axis] = 2 * half
        x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
        lengths = []
        for first in (True, False):  # the half set to NaN
            seen = x.clone()
            seen.narrow(axis, 0 if first else half, half).fill_(torch.nan)
            output = function(seen)
            if output.shape != (1, shape[2], shape[3]):
                raise UsageError(
                    f"its map has size {tuple(output.shape[1:])} for an input of {shape[2]}×{shape[3]} pixels"
                )
            reached = torch.isnan(output[0]).any(dim=3 - axis).nonzero().flatten()
            lengths.append(int(reached[-1]) + 1 - half if first else half - int(reached[0]))
        if max(lengths) < half:
            return max(lengths)
        half *= 2
    raise UsageError(f"each pixel of its map depends on the whole of an image of {half} pixels")
