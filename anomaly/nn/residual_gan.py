"""Residual generator and critic of WGAN-GP, and the gradient penalty.

I. Gulrajani et al., "Improved Training of Wasserstein GANs", 2017, arXiv 1704.00028 (the ResNet for 64×64; the
gradient penalty, eq. 3).

Notation: x -> image, z -> code, G -> generator, D -> critic, f -> the maps of its last block.
What differs, and why: a 3×3 convolution beside a change of the resolution is computed as one 4×4 convolution of stride 2
with the same nine weights, which is the same function for 4/9 of the multiplications.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from anomaly.errors import UsageError

GRID = 4
"""Side of the coarsest map"""
Norm = Callable[[int], nn.Module]
"""Builds the norm of so many channels"""


def channels(size: int, *, width: int) -> list[int]:
    """Channels of the maps of `size`, `size`/2, ..., 4: doubled at each level, 8 · `width` at most.

    Raises:
        UsageError: a size that is no power of two from 16 on.
    """
    if size < 16 or size & (size - 1):
        raise UsageError(f"size {size}: the residual networks take a power of two from 16 on, e.g. 64 or 128")
    return [width * min(2**level, 8) for level in range(int(math.log2(size // GRID)) + 1)]


class SampleNorm(nn.Module):
    """Layer norm of each map (C, H, W) as a whole, with one scale and offset per channel; the critic's.

    Written as means over (H, W), then over channels: one mean over all three loses four digits in some runtimes.
    """

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(num_channels, 1, 1))
        self.offset = nn.Parameter(torch.zeros(num_channels, 1, 1))

    def forward(self, y: Tensor) -> Tensor:
        """Normalise each map of (N, C, H, W) to zero mean and unit variance, in float32."""
        y = y.float()
        centred = y - y.mean(dim=(2, 3), keepdim=True).mean(dim=1, keepdim=True)
        variance = (centred * centred).mean(dim=(2, 3), keepdim=True).mean(dim=1, keepdim=True)
        return centred * torch.rsqrt(variance + 1e-5) * self.scale + self.offset


class _Conv(nn.Conv2d):
    """A 3×3 convolution, of an image enlarged twofold (`up`), with its result halved (`down`), or as it is (`keep`)."""

    def __init__(self, inputs: int, outputs: int, *, resample: Literal["up", "down", "keep"], bias: bool) -> None:
        super().__init__(inputs, outputs, 3, padding=1, bias=bias)
        self.resample = resample

    def forward(self, y: Tensor) -> Tensor:
        if self.resample == "keep":
            return super().forward(y)
        # the kernel convolved with a box of 2×2: what nearest enlargement or the mean of 2×2 does beside it
        kernel = functional.pad(self.weight, (1, 1, 1, 1))
        kernel = kernel[:, :, 1:, 1:] + kernel[:, :, :-1, 1:] + kernel[:, :, 1:, :-1] + kernel[:, :, :-1, :-1]
        if self.resample == "down":
            return functional.conv2d(y, kernel / 4, self.bias, stride=2, padding=1)
        return functional.conv_transpose2d(y, kernel.flip(2, 3).transpose(0, 1), self.bias, stride=2, padding=1)


class ResidualBlock(nn.Module):
    """Norm, ReLU, 3×3, norm, ReLU, 3×3 beside a 1×1 shortcut, with the resolution doubled or halved in both.

    Args:
        inputs: channels.
        outputs: channels.
        resample: `up` doubles before the first convolution, `down` takes the mean of 2×2 after the second.
        norm: builds both norms.
    """

    def __init__(self, inputs: int, outputs: int, *, resample: Literal["up", "down"], norm: Norm) -> None:
        super().__init__()
        self.resample = resample
        hidden = outputs if resample == "up" else inputs
        self.shortcut = nn.Conv2d(inputs, outputs, 1)
        self.norms = nn.ModuleList((norm(inputs), norm(hidden)))
        self.first = _Conv(inputs, hidden, resample="up" if resample == "up" else "keep", bias=False)
        self.second = _Conv(hidden, outputs, resample="keep" if resample == "up" else "down", bias=True)
        _initialise(self.shortcut, gain=1.0)
        _initialise(self.first, gain=math.sqrt(2.0))
        _initialise(self.second, gain=math.sqrt(2.0))

    def forward(self, y: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, 2H, 2W) or (N, outputs, H/2, W/2)."""
        if self.resample == "up":  # 1×1 and resampling commute: the shortcut is computed on the smaller map
            shortcut = functional.interpolate(self.shortcut(y), scale_factor=2.0, mode="nearest")
        else:
            shortcut = self.shortcut(functional.avg_pool2d(y, 2))
        y = self.first(functional.relu(self.norms[0](y)))
        result: Tensor = shortcut + self.second(functional.relu(self.norms[1](y)))
        return result


class Generator(nn.Module):
    """G: from codes to images, with batch norm.

    Args:
        size: side of the images in pixels, a power of two.
        width: channels of the finest map; the paper's DIM, 64.
        latent: length of the code.
    """

    def __init__(self, *, size: int, width: int, latent: int) -> None:
        super().__init__()
        coarse_to_fine = channels(size, width=width)[::-1]
        self.coarsest = coarse_to_fine[0]
        self.enter = nn.Linear(latent, self.coarsest * GRID * GRID)
        self.blocks = nn.Sequential(
            *(
                ResidualBlock(inputs, outputs, resample="up", norm=nn.BatchNorm2d)
                for inputs, outputs in itertools.pairwise(coarse_to_fine)
            )
        )
        self.norm = nn.BatchNorm2d(width)
        self.leave = nn.Conv2d(width, 3, 3, padding=1)
        _initialise(self.enter, gain=1.0)
        _initialise(self.leave, gain=1.0)

    def forward(self, z: Tensor) -> Tensor:
        """Map codes (N, latent) to images (N, 3, size, size) in [-1, 1], float32."""
        y = self.blocks(self.enter(z).unflatten(1, (self.coarsest, GRID, GRID)))
        return torch.tanh(self.leave(functional.relu(self.norm(y))).float())


class Trunk(nn.Module):
    """What critic and encoder share: from images to the maps of the last block.

    Args:
        size: side of the images in pixels, a power of two.
        width: channels of the finest map; the paper's DIM, 64.
        norm: builds a norm; `SampleNorm` in a critic, because the gradient penalty is per image.
    """

    def __init__(self, *, size: int, width: int, norm: Norm) -> None:
        super().__init__()
        fine_to_coarse = channels(size, width=width)
        self.num_features = fine_to_coarse[-1] * GRID * GRID
        self.enter = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.Sequential(
            *(
                ResidualBlock(inputs, outputs, resample="down", norm=norm)
                for inputs, outputs in itertools.pairwise(fine_to_coarse)
            )
        )
        _initialise(self.enter, gain=1.0)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, 3, size, size) to the coarsest maps (N, C, 4, 4), float32."""
        coarsest: Tensor = self.blocks(self.enter(x)).float()
        return coarsest


class Critic(nn.Module):
    """D: from images to a number that is higher for real ones; `trunk` gives f.

    Args:
        size: side of the images in pixels, a power of two.
        width: channels of the finest map; the paper's DIM, 64.
    """

    def __init__(self, *, size: int, width: int) -> None:
        super().__init__()
        self.trunk = Trunk(size=size, width=width, norm=SampleNorm)
        self.leave = nn.Linear(self.trunk.num_features, 1, bias=False)  # it would cancel in every difference
        _initialise(self.leave, gain=1.0)

    def forward(self, x: Tensor) -> Tensor:
        """Judge images (N, 3, size, size): (N,) float32."""
        judged: Tensor = self.leave(self.trunk(x).flatten(1))[:, 0].float()
        return judged


def gradient_penalty(
    critic: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, *, generator: torch.Generator
) -> Tensor:
    """How far the critic's slope is from 1 between real and generated images: mean of (||grad D|| - 1)² (eq. 3).

    In float32 whatever autocast says: the second derivative needs the digits.

    Args:
        critic: maps images (N, 3, H, W) to (N,), each by itself.
        real: (N, 3, H, W).
        fake: (N, 3, H, W), without gradient.
        generator: of the places between, on the CPU.

    Returns:
        A scalar, differentiable with respect to the critic's parameters.
    """
    share = torch.rand((len(real), 1, 1, 1), generator=generator).to(real.device)
    with torch.autocast(real.device.type, enabled=False):
        between = torch.lerp(fake.float(), real.float(), share).requires_grad_()
        (gradient,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
        slope: Tensor = torch.linalg.vector_norm(gradient.flatten(1), dim=1)
        return ((slope - 1) ** 2).mean()


def _initialise(layer: nn.Conv2d | nn.Linear, *, gain: float) -> None:
    """Uniform weights of variance 2 gain² / (inputs + outputs), and no bias; as the paper's code."""
    nn.init.xavier_uniform_(layer.weight, gain=gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
