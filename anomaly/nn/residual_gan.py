"""Residual generator and critic of WGAN-GP, and its gradient penalty.

I. Gulrajani et al., "Improved Training of Wasserstein GANs", 2017, arXiv 1704.00028 (the ResNet for 64×64; the
gradient penalty, eq. 3).

Notation: x -> image; z -> code; G -> generator; D -> critic; f -> maps of the critic's last block.
What differs, and why: a 3×3 convolution next to a change of resolution is computed as one 4×4 convolution of stride 2 from the
same nine weights. The function is the same, with 4/9 of the multiplications.
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
"""Side of the coarsest map in pixels"""
Norm = Callable[[int], nn.Module]
"""Constructor of a norm for a number of channels"""


def channels(size: int, *, width: int) -> list[int]:
    """Channels of the maps with sides `size`, `size`/2, …, 4: doubled at each level, at most 8 · `width`.

    Raises:
        UsageError: the size is not a power of two, or less than 16.
    """
    if size < 16 or size & (size - 1):
        raise UsageError(f"size {size}: the residual networks need a power of two from 16 up, e.g. 64 or 128")
    return [width * min(2**level, 8) for level in range(int(math.log2(size // GRID)) + 1)]


class SampleNorm(nn.Module):
    """Layer norm over a whole map (C, H, W), with one scale and offset per channel, for the critic.

    The mean is taken over (H, W), then over channels: a single mean over all three loses four digits in some runtimes.
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
    """3×3 convolution after doubling the resolution (`up`), before halving it (`down`), or without a change (`keep`)."""

    def __init__(self, inputs: int, outputs: int, *, resample: Literal["up", "down", "keep"], bias: bool) -> None:
        super().__init__(inputs, outputs, 3, padding=1, bias=bias)
        self.resample = resample

    def forward(self, y: Tensor) -> Tensor:
        if self.resample == "keep":
            return super().forward(y)
        # the kernel convolved with a 2×2 box: equal to nearest enlargement before, or a 2×2 mean after, the convolution
        kernel = functional.pad(self.weight, (1, 1, 1, 1))
        kernel = kernel[:, :, 1:, 1:] + kernel[:, :, :-1, 1:] + kernel[:, :, 1:, :-1] + kernel[:, :, :-1, :-1]
        if self.resample == "down":
            return functional.conv2d(y, kernel / 4, self.bias, stride=2, padding=1)
        return functional.conv_transpose2d(y, kernel.flip(2, 3).transpose(0, 1), self.bias, stride=2, padding=1)


class ResidualBlock(nn.Module):
    """Norm, ReLU, 3×3, norm, ReLU, 3×3, plus a 1×1 shortcut; both branches double or halve the resolution.

    Args:
        inputs: number of input channels.
        outputs: number of output channels.
        resample: `up` doubles the resolution before the first convolution, `down` takes 2×2 means after the second.
        norm: constructor of both norms.
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
        if self.resample == "up":  # 1×1 convolution and resampling commute: the shortcut uses the smaller map
            shortcut = functional.interpolate(self.shortcut(y), scale_factor=2.0, mode="nearest")
        else:
            shortcut = self.shortcut(functional.avg_pool2d(y, 2))
        y = self.first(functional.relu(self.norms[0](y)))
        result: Tensor = shortcut + self.second(functional.relu(self.norms[1](y)))
        return result


class Generator(nn.Module):
    """Generator G from codes to images, with batch norm.

    Args:
        size: side of the images in pixels, a power of two.
        width: number of channels of the finest map; 64 in the paper (DIM).
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
    """Trunk of critic and encoder, from images to the maps of the last block.

    Args:
        size: side of the images in pixels, a power of two.
        width: number of channels of the finest map; 64 in the paper (DIM).
        norm: constructor of a norm; `SampleNorm` for a critic, because the gradient penalty is per image.
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
    """Critic D from images to a value that is higher for real images; `trunk` computes f.

    Args:
        size: side of the images in pixels, a power of two.
        width: number of channels of the finest map; 64 in the paper (DIM).
    """

    def __init__(self, *, size: int, width: int) -> None:
        super().__init__()
        self.trunk = Trunk(size=size, width=width, norm=SampleNorm)
        self.leave = nn.Linear(self.trunk.num_features, 1, bias=False)  # a bias would cancel in every difference
        _initialise(self.leave, gain=1.0)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the critic's values (N,) float32 of images (N, 3, size, size)."""
        value: Tensor = self.leave(self.trunk(x).flatten(1))[:, 0].float()
        return value


def gradient_penalty(
    critic: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, *, generator: torch.Generator
) -> Tensor:
    """Gradient penalty, the mean of (||grad D|| - 1)² between real and generated images (eq. 3).

    It is computed in float32, also under autocast, because the second derivative needs the precision.

    Args:
        critic: function from images (N, 3, H, W) to values (N,), independent for each image.
        real: real images (N, 3, H, W).
        fake: generated images (N, 3, H, W), without gradient.
        generator: random generator of the points between both, on the CPU.

    Returns:
        Scalar, differentiable with respect to the critic's parameters.
    """
    share = torch.rand((len(real), 1, 1, 1), generator=generator).to(real.device)
    with torch.autocast(real.device.type, enabled=False):
        between = torch.lerp(fake.float(), real.float(), share).requires_grad_()
        (gradient,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
        slope: Tensor = torch.linalg.vector_norm(gradient.flatten(1), dim=1)
        return ((slope - 1) ** 2).mean()


def _initialise(layer: nn.Conv2d | nn.Linear, *, gain: float) -> None:
    """Initialise with uniform weights of variance 2 gain² / (inputs + outputs) and zero bias, as in the paper's code."""
    nn.init.xavier_uniform_(layer.weight, gain=gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
