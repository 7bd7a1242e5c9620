"""Affine coupling on feature maps, a step of normalizing flows on images.

Sources: L. Dinh et al., "Density estimation using Real NVP", 2016, arXiv 1605.08803 (coupling, eq. 7 and 8);
D. Kingma and P. Dhariwal, "Glow", 2018, arXiv 1807.03039 (per-channel scale and offset); the soft clamp of the scale and
the fixed channel permutation follow L. Ardizzone et al., "Guided image generation with conditional invertible neural
networks", 2019, arXiv 1907.02392.

Notation: x -> input map; y -> output map; s, t -> scale and translation of eq. 7; log_det -> log |det dy/dx|, per pixel.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


class ConvCoupling(nn.Module):
    """One step y = permute(affine(couple(x))) on maps (N, C, H, W).

    Two convolutions on the first part of the channels give scale and translation of the second part.

    Args:
        channels: number of channels C of the map.
        hidden_ratio: hidden channels between the convolutions, per channel of the first part.
        kernel: side of the convolution kernels, odd.
        clamp: upper bound of |s|.
        seed: random seed of the fixed channel permutation.
    """

    order: Tensor
    inverse_order: Tensor

    def __init__(self, channels: int, *, hidden_ratio: float, kernel: int, clamp: float, seed: int) -> None:
        super().__init__()
        self.num_first = channels - channels // 2
        self.num_second = channels // 2
        self.clamp = clamp
        hidden = max(1, int(self.num_first * hidden_ratio))
        self.first = nn.Conv2d(self.num_first, hidden, kernel, padding=kernel // 2)
        self.second = nn.Conv2d(hidden, 2 * self.num_second, kernel, padding=kernel // 2)
        # the per-channel scale softplus(rho) / softplus(0) starts at 1, the offset at 0
        self.rho = nn.Parameter(torch.zeros(channels))
        self.offset = nn.Parameter(torch.zeros(1, channels, 1, 1))
        order = torch.randperm(channels, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("order", order)
        self.register_buffer("inverse_order", torch.argsort(order))

    def _scale(self) -> Tensor:
        return (functional.softplus(self.rho) / math.log(2.0)).view(1, -1, 1, 1)

    def _scale_and_translation(self, first: Tensor) -> tuple[Tensor, Tensor]:
        hidden = functional.relu(self.first(first))
        raw = self.second(hidden) * 0.1  # starts near the identity
        s, t = torch.split(raw, self.num_second, dim=1)
        return self.clamp * torch.tanh(s), t

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map data towards the latent.

        Args:
            x: (N, C, H, W) float.

        Returns:
            y (N, C, H, W) and each pixel's share of the log-determinant (N, H, W).
        """
        first, second = torch.split(x, [self.num_first, self.num_second], dim=1)
        s, t = self._scale_and_translation(first)
        scale = self._scale()
        y = torch.cat((first, second * torch.exp(s) + t), dim=1) * scale + self.offset
        log_det = s.sum(dim=1) + torch.log(scale).sum()
        return y.index_select(1, self.order), log_det

    def inverse(self, y: Tensor) -> Tensor:
        """Map the latent back to data: the exact inverse of `forward`, (N, C, H, W) to (N, C, H, W)."""
        y = (y.index_select(1, self.inverse_order) - self.offset) / self._scale()
        first, second = torch.split(y, [self.num_first, self.num_second], dim=1)
        s, t = self._scale_and_translation(first)
        return torch.cat((first, (second - t) * torch.exp(-s)), dim=1)
