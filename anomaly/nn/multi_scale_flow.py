"""Composition of flow steps over scales: squeeze, run the steps, move half of the channels to the latent.

L. Dinh et al., "Density estimation using Real NVP", 2016, arXiv 1605.08803 (squeeze and factoring out, §3.6).

Notation: y -> map (N, C, H, W) between data and latent; z -> latent (N, C·H·W); log_det -> each element's share of the
log-determinant (see `flow_steps`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from anomaly.errors import UsageError
from anomaly.nn.flow_steps import Actnorm, Step, squeeze, unsqueeze


class MultiScale(nn.Module):
    """A flow over scales: each scale squeezes, runs its steps, and moves half of the channels to the latent (§3.6).

    Before the first scale an `Actnorm` standardises each element. On aligned parts its offset is the mean image.

    Args:
        scales: steps of each scale; `scale_shapes` gives the shapes of their maps.
        shape: shape (C, H, W) of the data.
        mixes: whether the steps mix channels; an element's share is then spread over its 2×2 block.
    """

    is_initialized: Tensor
    """() bool, whether `initialize` has set the actnorms"""

    def __init__(self, scales: Sequence[Sequence[Step]], *, shape: tuple[int, int, int], mixes: bool) -> None:
        super().__init__()
        self.enter = Actnorm(shape, shrinkage=0.01)
        self.scales = nn.ModuleList(nn.ModuleList(steps) for steps in scales)
        self.mixes = mixes
        self.register_buffer("is_initialized", torch.zeros((), dtype=torch.bool))
        squeezed = scale_shapes(shape, num_scales=len(scales))
        self.latent_shapes = [(c // 2, h, w) for c, h, w in squeezed[:-1]] + squeezed[-1:]

    def _steps(self) -> list[list[Step]]:
        return [
            [step for step in steps if isinstance(step, Step)]
            for steps in self.scales
            if isinstance(steps, nn.ModuleList)
        ]

    @torch.no_grad()
    def initialize(self, y: Tensor) -> None:
        """Initialise every actnorm in order, from data (N, C, H, W)."""
        self.enter.initialize(y)
        y, _ = self.enter(y)
        for number, steps in enumerate(self._steps()):
            y = squeeze(y if not number else y.chunk(2, dim=1)[1])
            for step in steps:
                if isinstance(step, Actnorm):
                    step.initialize(y)
                y, _ = step(y)
        self.is_initialized.fill_(True)

    def forward(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Map data to the latent.

        Args:
            y: (N, C, H, W) float.

        Returns:
            z (N, C·H·W), and each element's share of -log p(y) under z ~ N(0, I), (N, C, H, W).
        """
        y, entered = self.enter(y)
        parts, log_dets = [], []
        for number, steps in enumerate(self._steps()):
            y = squeeze(y if not number else y.chunk(2, dim=1)[1])
            log_det = torch.zeros_like(y)
            for step in steps:
                y, share = step(y)
                log_det = log_det + share
            parts.append(y.chunk(2, dim=1)[0] if number < len(self.scales) - 1 else y)
            log_dets.append(log_det)
        shares = y.new_zeros(0)
        for number, (part, log_det) in reversed(list(enumerate(zip(parts, log_dets, strict=True)))):
            own = 0.5 * part * part + 0.5 * math.log(2 * math.pi)
            shares = (torch.cat((own, shares), dim=1) if number < len(parts) - 1 else own) - log_det
            if self.mixes:
                shares = shares.mean(dim=1, keepdim=True).expand_as(shares)
            shares = unsqueeze(shares)
        return torch.cat([part.flatten(1) for part in parts], dim=1), shares - entered

    def inverse(self, z: Tensor) -> Tensor:
        """Map the latent back to data: the inverse of `forward`, (N, C·H·W) to (N, C, H, W)."""
        ends = list(itertools.accumulate(math.prod(shape) for shape in self.latent_shapes))
        starts = [0, *ends[:-1]]
        y = z.new_zeros(0)
        for number, steps in reversed(list(enumerate(self._steps()))):
            part = z[:, starts[number] : ends[number]].reshape(-1, *self.latent_shapes[number])
            y = part if number == len(self.scales) - 1 else torch.cat((part, y), dim=1)
            for step in reversed(steps):
                y = step.inverse(y)
            y = unsqueeze(y)
        return self.enter.inverse(y)


def scale_shapes(shape: tuple[int, int, int], *, num_scales: int) -> list[tuple[int, int, int]]:
    """Shape (C, H, W) of the maps of each scale: squeezed, after the previous scale has moved half of its channels out.

    Args:
        shape: shape (C, H, W) of the data.
        num_scales: number of scales, one squeeze each.

    Raises:
        UsageError: height or width is not a multiple of 2^num_scales.
    """
    channels, height, width = shape
    block = 2**num_scales
    if num_scales < 1 or height % block or width % block:
        raise UsageError(
            f"size {height}, num_scales {num_scales}: each scale halves the image; use 1 scale or more, and a multiple of"
            f" {block} as size, e.g. {max(1, height // block) * block}"
        )
    return [(channels * 4 * 2**k, height // 2 ** (k + 1), width // 2 ** (k + 1)) for k in range(num_scales)]
