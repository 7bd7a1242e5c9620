"""Patch embeddings of a frozen network: two feature levels on one grid, projected by half-whitened principal components.

Average pooling, upsampling and the projection are linear, so they commute: each level is projected by a 1×1 convolution
at its own stride, which costs less and exports as two convolutions.

Notation: f_l -> feature map of level l, (N, C_l, h_l, w_l); y -> embedding of a patch, (d,); V, λ -> principal components
and variances of the concatenated features; y = λ^(-1/4) Vᵀ (f - mean).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from anomaly.errors import UsageError
from anomaly.nn.backbones import Backbone

LEAST_VARIANCE = 1e-8
"""Share of the largest variance below which a principal component counts as constant"""


class PatchEmbedding(nn.Module):
    """Embedding of patches by one backbone.

    Args:
        name: timm name of the backbone.
        layers: feature levels; the finest gives the grid.
        size: height and width of the network's input in pixels.
        weights: `pretrained`, `none`, or a path (see `Backbone`).
        dimensions: d, at most the number of channels of all levels.
    """

    mean: Tensor
    projection: Tensor
    centre: Tensor
    spread: Tensor

    def __init__(
        self, name: str, *, layers: Sequence[int], size: tuple[int, int], weights: str, dimensions: int
    ) -> None:
        super().__init__()
        self.backbone = Backbone(name, layers=layers, size=size, weights=weights)
        self.channels = [channels for channels, _, _ in self.backbone.shapes]
        self.grid = max((h, w) for _, h, w in self.backbone.shapes)
        if not 1 <= dimensions <= sum(self.channels):
            raise UsageError(
                f"dimensions {dimensions}: backbone {name!r} has {sum(self.channels)} channels; take fewer"
            )
        self.register_buffer("centre", torch.tensor(self.backbone.mean).view(1, 3, 1, 1))
        self.register_buffer("spread", torch.tensor(self.backbone.std).view(1, 3, 1, 1))
        self.register_buffer("mean", torch.zeros(sum(self.channels)))
        self.register_buffer("projection", torch.zeros(dimensions, sum(self.channels)))

    def features(self, x: Tensor) -> Tensor:
        """Pool and concatenate the levels: (N, 3, H, W) to (N, h, w, C)."""
        return torch.cat([self._on_grid(level) for level in self._levels(x)], dim=1).permute(0, 2, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Embed patches: (N, 3, H, W) to (N, h, w, d)."""
        parts = torch.split(self.projection, self.channels, dim=1)
        levels = [
            self._on_grid(functional.conv2d(level, part[:, :, None, None]))
            for level, part in zip(self._levels(x), parts, strict=True)
        ]
        total = levels[0]
        for level in levels[1:]:
            total = total + level
        return total.permute(0, 2, 3, 1) - self.projection @ self.mean

    def _levels(self, x: Tensor) -> list[Tensor]:
        """Feature levels of images in [0, 1], normalised as the backbone was trained."""
        levels: list[Tensor] = self.backbone((x - self.centre) / self.spread)
        return levels

    def _on_grid(self, level: Tensor) -> Tensor:
        pooled = functional.avg_pool2d(level, 3, stride=1, padding=1, count_include_pad=False)
        if tuple(level.shape[2:]) == self.grid:
            return pooled
        return functional.interpolate(pooled, self.grid, mode="bilinear", align_corners=False)

    def project(self, features: Tensor) -> Tensor:
        """Embed pooled features: (..., C) to (..., d)."""
        return (features - self.mean) @ self.projection.T

    @torch.no_grad()
    def fix(self, *, seed: int) -> None:
        """Set a random orthonormal projection, which depends on no image."""
        dimensions, channels = self.projection.shape
        draw = torch.randn(channels, dimensions, generator=torch.Generator().manual_seed(seed))
        self.mean.zero_()
        self.projection.copy_(torch.linalg.qr(draw)[0].T)

    @torch.no_grad()
    def fit(self, features: Tensor) -> None:
        """Fit the projection on features of training patches.

        Args:
            features: (P, C), P at least 2.

        Raises:
            UsageError: equal features.
        """
        f = features.double()
        mean = f.mean(dim=0)
        variances, directions = torch.linalg.eigh(torch.cov(f.T))
        kept = slice(len(variances) - len(self.projection), None)
        variances, directions = variances[kept].flip(0), directions[:, kept].flip(1)
        if not variances[0] > 0:
            raise UsageError("all training patches look alike to the backbone: are the images empty or identical?")
        scale = variances.clamp(min=LEAST_VARIANCE * float(variances[0])) ** -0.25
        self.mean.copy_(mean)
        self.projection.copy_((directions * scale).T)
