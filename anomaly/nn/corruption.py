"""Corruption of good images for models that learn to repair: coarse noise, and structured patterns.

Coarse noise: A. Kascenas et al., "Denoising autoencoders for unsupervised anomaly detection in brain MRI", 2022.
Structured patterns: V. Zavrtanik et al., "DRAEM", 2021, arXiv 2108.07610 (§3.3: noise masks times a source texture,
blended). What differs: the textures need no external data. They are noise at several scales, stripes, flat colours, and other
regions of the batch's own images. arXiv 2511.07233 shows that such patterns suffice.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional


def corrupt(x: Tensor, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Paint random patterns onto random regions.

    Args:
        x: (N, 3, H, W) float in [0, 1].
        generator: random generator on the CPU.

    Returns:
        The corrupted images in [0, 1], and the opacity of the patterns (N, 1, H, W) in [0, 1], 0 in unchanged pixels.
    """
    opacity = torch.stack([_opacity(x.shape[2], x.shape[3], generator) for _ in range(len(x))]).to(x.device)
    pattern = torch.stack([_pattern(x, index, generator) for index in range(len(x))])
    return torch.lerp(x, pattern, opacity).clamp(0, 1), opacity


def add_noise(x: Tensor, *, generator: torch.Generator) -> Tensor:
    """Add coarse Gaussian noise: an enlarged grid with a random cell size per image, about the size of a defect.

    Args:
        x: (N, 3, H, W) float in [0, 1].
        generator: random generator on the CPU.

    Returns:
        (N, 3, H, W) in [0, 1].
    """
    height, width = x.shape[2:]
    noise = [
        _noise(3, height, width, 2 ** _uniform(0.0, 5.0, generator), generator) * _uniform(0.05, 0.3, generator)
        for _ in range(len(x))
    ]
    return (x + torch.stack(noise).to(x.device)).clamp(0, 1)


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * torch.rand((), generator=generator).item()


def _noise(channels: int, height: int, width: int, cell: float, generator: torch.Generator) -> Tensor:
    """Smooth noise (channels, height, width) with features about `cell` pixels wide, mean 0, deviation about 1."""
    rows, columns = max(2, round(height / cell) + 1), max(2, round(width / cell) + 1)
    coarse = torch.randn(1, channels, rows, columns, generator=generator)
    return functional.interpolate(coarse, (height, width), mode="bicubic", align_corners=True)[0]


def _opacity(height: int, width: int, generator: torch.Generator) -> Tensor:
    """Opacity (1, height, width) of one to three regions with random scale and shape."""
    opacity = torch.zeros(1, height, width)
    short = min(height, width)
    for _ in range(int(torch.randint(1, 4, (), generator=generator))):
        extent = short * 2 ** _uniform(-6.0, -1.3, generator)  # from 1/64 to 2/5 of the image
        rows = torch.arange(height) - _uniform(0, height, generator)
        columns = torch.arange(width) - _uniform(0, width, generator)
        angle, stretch = _uniform(0, math.pi, generator), 2 ** _uniform(0, 2.5, generator)
        along = (math.cos(angle) * columns[None, :] + math.sin(angle) * rows[:, None]) / stretch**0.5
        across = (math.cos(angle) * rows[:, None] - math.sin(angle) * columns[None, :]) * stretch**0.5
        distance = torch.sqrt(along**2 + across**2) / (extent / 2)
        ragged = 0.35 * _noise(1, height, width, max(extent / 2, 3.0), generator)[0]
        edge = torch.sigmoid((1 - distance + ragged) * _uniform(4.0, 20.0, generator))
        opacity = torch.maximum(opacity, edge * (edge > 0.05) * _uniform(0.25, 1.0, generator))
    return opacity


def _pattern(x: Tensor, index: int, generator: torch.Generator) -> Tensor:
    """Random pattern for image `index`, (3, H, W) in [0, 1]."""
    height, width = x.shape[2:]
    kind = int(torch.randint(0, 4, (), generator=generator))
    if kind == 0:  # another region of one of the batch's images
        other = x[int(torch.randint(0, len(x), (), generator=generator))]
        shift = [int(torch.randint(1, side, (), generator=generator)) for side in (height, width)]
        moved = torch.roll(other, shift, dims=(1, 2))
        flips = [axis for axis in (1, 2) if _uniform(0, 1, generator) < 0.5]
        return (moved.flip(flips) * _uniform(0.7, 1.3, generator) + _uniform(-0.15, 0.15, generator)).clamp(0, 1)
    colour = torch.rand(3, 1, 1, generator=generator)
    if kind == 1:  # a flat colour, close to the image's mean colour or far from it
        return (
            (x[index].mean(dim=(1, 2), keepdim=True) + 0.8 * (colour.to(x.device) - 0.5))
            .clamp(0, 1)
            .expand(3, height, width)
        )
    cell = 2 ** _uniform(0.5, 5.5, generator)
    if kind == 2:  # noise of one scale
        channels = 1 if _uniform(0, 1, generator) < 0.5 else 3
        texture = _noise(channels, height, width, cell, generator) * _uniform(0.1, 0.4, generator)
    else:  # stripes
        angle = _uniform(0, math.pi, generator)
        ramp = math.cos(angle) * torch.arange(width)[None, :] + math.sin(angle) * torch.arange(height)[:, None]
        texture = torch.sin(ramp * (2 * math.pi / max(cell, 3.0)))[None] * _uniform(0.1, 0.5, generator)
    return (colour + texture).clamp(0, 1).expand(3, height, width).to(x.device)
