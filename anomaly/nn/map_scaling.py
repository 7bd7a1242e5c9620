"""What reconstruction methods share after the residual: averaging over a window, and the unit of each pixel."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional


def smoothed(residual: Tensor, *, window: int) -> Tensor:
    """Average maps (N, h, w) over a square window of an odd side in pixels; the border's values go on outside."""
    if window == 1:
        return residual
    reach = window // 2
    padded = functional.pad(residual[:, None], (reach,) * 4, mode="replicate")
    return functional.avg_pool2d(padded, window, stride=1)[:, 0]


class PixelScale(nn.Module):
    """Measures each pixel of a residual map by mean and deviation of good training images there.

    Edges that no code holds are high on every good part; where parts lie in register this takes them out. Until `measure`
    is called the scale is that of the residual itself.

    Args:
        size: height and width of the maps.
    """

    typical: Tensor
    spread: Tensor

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.register_buffer("typical", torch.zeros(size))
        self.register_buffer("spread", torch.ones(size))

    def forward(self, residual: Tensor) -> Tensor:
        """Put maps (N, h, w) into units of the spread at each pixel, 0 being the typical value there."""
        return (residual - self.typical) / self.spread

    @torch.no_grad()
    def measure(self, residuals: Iterable[Tensor], *, roi: Tensor) -> None:
        """Take mean and deviation per pixel from the maps of all training images.

        Args:
            residuals: maps (N, h, w) of any number of batches.
            roi: (h, w) bool, the pixels that count.
        """
        total, squares = (torch.zeros_like(self.typical, dtype=torch.float64) for _ in range(2))
        num = 0
        for residual in residuals:
            r = residual.double()
            total += r.sum(dim=0)
            squares += (r * r).sum(dim=0)
            num += len(r)
        mean = total / num
        deviation = (squares / num - mean * mean).clamp(min=0.0).sqrt()
        # half the usual deviation is added: a pixel that hardly varied in training must not outweigh all others
        floor = 0.5 * deviation[roi].mean().clamp(min=1e-6)
        self.typical.copy_(mean)
        self.spread.copy_(deviation + floor)
