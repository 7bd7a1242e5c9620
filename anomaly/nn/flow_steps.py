"""Steps of normalizing flows on images, and their composition over scales.

Sources: L. Dinh et al., "Density estimation using Real NVP", 2016, arXiv 1605.08803 (coupling, eq. 7 and 8; masks, squeeze and
factoring out, §3.4 to 3.6; logit, §4.1); D. Kingma and P. Dhariwal, "Glow", 2018, arXiv 1807.03039 (actnorm, §3.1; invertible
1×1 convolution in its LU form, eq. 10 and 11).

Notation: y -> map (N, C, H, W) between data and latent; z -> latent; s, t -> log-scale and translation; log_det -> each
element's share of log |det ∂f/∂y|, in a shape that broadcasts to the map's. The sum over the map is the log-determinant.
Shares per element allow a likelihood per pixel.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

REACH = 5.0
"""Soft bound of a subnet's inputs, in standard deviations of the data"""


def squeeze(y: Tensor) -> Tensor:
    """Move each block of 2×2 positions to the channels, (N, C, H, W) to (N, 4C, H/2, W/2).

    The positions of a block have the order (0, 0), (1, 1), (0, 1), (1, 0), with all channels of a position together. The
    two halves of the channels are then the two colours of a checkerboard.
    """
    rows, columns = (0, 1, 0, 1), (0, 1, 1, 0)
    return torch.cat([y[:, :, r::2, c::2] for r, c in zip(rows, columns, strict=True)], dim=1)


def unsqueeze(y: Tensor) -> Tensor:
    """Move the channels back to blocks of 2×2 positions, (N, 4C, H, W) to (N, C, 2H, 2W): the inverse of `squeeze`."""
    upper_left, lower_right, upper_right, lower_left = y.chunk(4, dim=1)
    rows = [
        torch.stack(pair, dim=-1).flatten(3) for pair in ((upper_left, upper_right), (lower_left, lower_right))
    ]  # each (N, C, H, 2W)
    return torch.stack(rows, dim=3).flatten(2, 3)


def checkerboard_mask(channels: int) -> Tensor:
    """Select one colour of the checkerboard on a squeezed map, (channels,) bool: the first half of the channels."""
    return torch.arange(channels) < channels // 2


def channel_mask(channels: int) -> Tensor:
    """Select every other channel, (channels,) bool; on a squeezed map it mixes both colours of the checkerboard."""
    return torch.arange(channels) % 2 == 0


class Actnorm(nn.Module):
    """Offset and scale, initialised so that the first batch has zero mean and unit variance after it.

    Args:
        shape: (C, 1, 1) for one pair per channel (Glow §3.1), or (C, H, W) for one pair per element.
        shrinkage: share of the mean variance that is added to each variance, for small batches.
    """

    def __init__(self, shape: tuple[int, int, int], *, shrinkage: float) -> None:
        super().__init__()
        self.shrinkage = shrinkage
        self.offset = nn.Parameter(torch.zeros(1, *shape))
        self.log_scale = nn.Parameter(torch.zeros(1, *shape))

    @torch.no_grad()
    def initialize(self, y: Tensor) -> None:
        """Set offset and scale from data (N, C, H, W)."""
        dims = [dim for dim in range(y.dim()) if self.offset.shape[dim] == 1]
        mean = y.mean(dim=dims, keepdim=True)
        variance = ((y - mean) ** 2).mean(dim=dims, keepdim=True)
        self.offset.copy_(-mean)
        self.log_scale.copy_(-0.5 * torch.log(variance + self.shrinkage * variance.mean() + 1e-6))

    def forward(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Map towards the latent; returns the map and log_det, the log-scale."""
        return (y + self.offset) * torch.exp(self.log_scale), self.log_scale

    def inverse(self, y: Tensor) -> Tensor:
        """Map back to data."""
        return y * torch.exp(-self.log_scale) - self.offset


class Invertible1x1(nn.Module):
    """Mix the channels of each position by a matrix W = P L (U + diag(s)), initially a random rotation (eq. 10 and 11).

    L is lower triangular with ones on its diagonal, U is strictly upper triangular. P and the signs of s are fixed.

    Args:
        channels: number of channels C of the map.
    """

    permutation: Tensor
    sign: Tensor
    below: Tensor
    identity: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        rotation, _ = torch.linalg.qr(torch.randn(channels, channels, dtype=torch.float64))
        permutation, lower, upper = torch.linalg.lu(rotation)
        s = upper.diagonal()
        self.register_buffer("permutation", permutation.float())
        self.register_buffer("sign", torch.sign(s).float())
        self.register_buffer("below", torch.ones(channels, channels).tril(-1), persistent=False)
        self.register_buffer("identity", torch.eye(channels), persistent=False)
        self.lower = nn.Parameter(lower.tril(-1).float())
        self.upper = nn.Parameter(upper.triu(1).float())
        self.log_s = nn.Parameter(s.abs().log().float())

    def forward(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Map towards the latent; returns the map and log_det (1, C, 1, 1), which is log |s|."""
        with torch.autocast(y.device.type, enabled=False):  # the inverse needs full precision
            lower = self.lower * self.below + self.identity
            upper = self.upper * self.below.T + torch.diag(self.sign * torch.exp(self.log_s))
            mixed = functional.conv2d(y, (self.permutation @ lower @ upper)[:, :, None, None])
        return mixed, self.log_s.view(1, -1, 1, 1)

    def inverse(self, y: Tensor) -> Tensor:
        """Map back to data by W⁻¹ = (U + diag(s))⁻¹ L⁻¹ Pᵀ, computed from matrix products."""
        with torch.autocast(y.device.type, enabled=False):
            s = self.sign.double() * torch.exp(self.log_s.double())
            lower = self._inverse_of_unit(-self.lower.double() * self.below)
            upper = self._inverse_of_unit(-self.upper.double() * self.below.T / s[:, None]) / s
            inverse = (upper @ lower @ self.permutation.T.double()).to(y.dtype)
            return functional.conv2d(y, inverse[:, :, None, None])

    def _inverse_of_unit(self, nilpotent: Tensor) -> Tensor:
        """(I - N)⁻¹ = (I + N)(I + N²)(I + N⁴)…, a finite product because N^C = 0 for a strictly triangular N.

        In float64, because the powers of a large N first grow and leave rounding errors.
        """
        inverse, power = self.identity + nilpotent, nilpotent
        for _ in range(math.ceil(math.log2(len(nilpotent))) - 1):
            power = power @ power
            inverse = inverse + inverse @ power
        return inverse


class CouplingNet(nn.Module):
    """Convolutions for log-scale and translation. The last layer starts at zero, so the coupling starts as the identity.

    A learned map of the position is added to the first layer's output; on aligned parts the net knows where it is. The input
    is softly bounded, so that an outlier does not change its neighbours too much.

    Args:
        inputs: number of input channels.
        outputs: number of channels that the coupling changes.
        width: number of hidden channels.
        kernel: side of the residual convolution's kernel, odd.
        size: height and width of the map.
    """

    def __init__(self, inputs: int, outputs: int, *, width: int, kernel: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, width, 3, padding=1)
        self.place = nn.Parameter(torch.zeros(1, width, *size))
        self.hidden = nn.Conv2d(width, width, kernel, padding=kernel // 2)
        self.last = nn.Conv2d(width, 2 * outputs, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        assert self.last.bias is not None
        nn.init.zeros_(self.last.bias)

    def forward(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Map (N, inputs, H, W) to an unbounded log-scale and a translation, (N, outputs, H, W) each, in y's precision."""
        hidden = functional.relu(self.first(REACH * torch.tanh(y / REACH)) + self.place)
        hidden = functional.relu(hidden + self.hidden(hidden))
        s, t = self.last(hidden).to(y.dtype).chunk(2, dim=1)
        return s, t


class MaskedCoupling(nn.Module):
    """Scale and shift the channels outside a mask by a function of the channels inside: y ⊙ exp(s) + t (eq. 7 and 8).

    Args:
        mask: (C,) bool, True for the unchanged input channels of the net.
        width: number of hidden channels of the net.
        kernel: side of the net's residual kernel, odd.
        clamp: upper bound of |s|.
        size: height and width of the map.
    """

    seen: Tensor
    moved: Tensor
    order: Tensor

    def __init__(self, mask: Tensor, *, width: int, kernel: int, clamp: float, size: tuple[int, int]) -> None:
        super().__init__()
        seen, moved = mask.nonzero()[:, 0], (~mask).nonzero()[:, 0]
        self.register_buffer("seen", seen, persistent=False)
        self.register_buffer("moved", moved, persistent=False)
        self.register_buffer("order", torch.argsort(torch.cat((seen, moved))), persistent=False)
        self.net = CouplingNet(len(seen), len(moved), width=width, kernel=kernel, size=size)
        self.clamp = clamp

    def _scale_and_translation(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        s, t = self.net(seen)
        return self.clamp * torch.tanh(s / self.clamp), t

    def forward(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Map towards the latent; returns the map and log_det (N, C, H, W): s, and 0 in unchanged channels."""
        seen, moved = y.index_select(1, self.seen), y.index_select(1, self.moved)
        s, t = self._scale_and_translation(seen)
        after = torch.cat((seen, moved * torch.exp(s) + t), dim=1).index_select(1, self.order)
        return after, torch.cat((torch.zeros_like(seen), s), dim=1).index_select(1, self.order)

    def inverse(self, y: Tensor) -> Tensor:
        """Map back to data."""
        seen, moved = y.index_select(1, self.seen), y.index_select(1, self.moved)
        s, t = self._scale_and_translation(seen)
        return torch.cat((seen, (moved - t) * torch.exp(-s)), dim=1).index_select(1, self.order)


Step = Actnorm | Invertible1x1 | MaskedCoupling


class Logit(nn.Module):
    """Dequantisation and logit: v = logit(margin + (1 - 2 margin) x'), and its inverse (RealNVP §4.1).

    x' = ((levels - 1) x + u) / levels lies in [0, 1] for x in [0, 1]. u in [0, 1) is the position in the bin of a grey level,
    and 0.5 is its centre. x may lie between two levels, e.g. after a resize.

    Args:
        levels: number of grey levels.
        margin: distance that keeps the logit finite at black and white; 0.05 in the RealNVP paper.
    """

    def __init__(self, *, levels: int, margin: float) -> None:
        super().__init__()
        self.levels, self.margin = levels, margin

    def forward(self, x: Tensor, u: Tensor | float) -> tuple[Tensor, Tensor]:
        """Map images (N, 3, h, w) in [0, 1] to v; returns v and each element's log_det of the map from x' to v."""
        inner = self.margin + (1 - 2 * self.margin) * ((self.levels - 1) * x + u) / self.levels
        log, log_rest = torch.log(inner), torch.log(1 - inner)
        return log - log_rest, math.log(1 - 2 * self.margin) - log - log_rest

    def inverse(self, v: Tensor) -> Tensor:
        """Map v back to images at the bins' centres, clamped to [0, 1]."""
        dequantised = (torch.sigmoid(v) - self.margin) / (1 - 2 * self.margin)
        return ((self.levels * dequantised - 0.5) / (self.levels - 1)).clamp(0, 1)
