"""Post-processing of residual maps: averaging over a window, and standardisation of each pixel."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

from anomaly.errors import UsageError


def check_window(smooth: int) -> None:
    """Check the side of an averaging window.

    Raises:
        UsageError: the side is even or not positive.
    """
    if smooth < 1 or smooth % 2 == 0:
        raise UsageError(f"smooth {smooth}: the side of the averaging window must be odd, e.g. {max(1, smooth | 1)}")


def smoothed(residual: Tensor, *, window: int) -> Tensor:
    """Average maps (N, h, w) over a square window with an odd side in pixels; border values are repeated outside."""
    if window == 1:
        return residual
    reach = window // 2
    padded = functional.pad(residual[:, None], (reach,) * 4, mode="replicate")
    return functional.avg_pool2d(padded, window, stride=1)[:, 0]


class PixelScale(nn.Module):
    """Standardise each pixel of a residual map by its mean and deviation over good training images.

    Some edges have a high residual on every good part; on aligned parts this removes them. Before `measure` the maps stay
    unchanged.

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
        """Standardise maps (N, h, w): `(residual - typical) / spread` at each pixel."""
        return (residual - self.typical) / self.spread

    @torch.no_grad()
    def measure(self, residuals: Iterable[Tensor], *, roi: Tensor) -> None:
        """Compute mean and deviation of each pixel over the maps of all training images.

        Args:
            residuals: batches of maps (N, h, w).
            roi: (h, w) bool, pixels of the region of interest.
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
        # half the mean deviation is added: a pixel that is nearly constant in training must not dominate
        floor = 0.5 * deviation[roi].mean().clamp(min=1e-6)
        self.typical.copy_(mean)
        self.spread.copy_(deviation + floor)
