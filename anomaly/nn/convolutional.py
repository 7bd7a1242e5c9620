"""Encoder-decoder networks on images."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn


def _block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.LeakyReLU(0.1),
    )


class UNet(nn.Module):
    """U-Net from images to images with sigmoid output.

    O. Ronneberger et al., "U-Net", 2015, arXiv 1505.04597. What differs: strided convolutions replace pooling, and a strided
    stem saves time at full resolution. Only the `skips` coarsest levels have additive skip connections.

    Args:
        widths: channels of each level, from half the resolution down.
        skips: number of coarsest inner levels with a skip connection; finer detail passes through the bottleneck, so that
            a defect is not copied to the output.
    """

    def __init__(self, *, widths: tuple[int, ...], skips: int) -> None:
        super().__init__()
        self.skips = skips
        self.stem = nn.Sequential(nn.Conv2d(3, widths[0], 4, stride=2, padding=1), nn.LeakyReLU(0.1))
        pairs = list(itertools.pairwise(widths))
        self.down = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(fine, coarse, 4, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(coarse),
                nn.LeakyReLU(0.1),
                _block(coarse, coarse),
            )
            for fine, coarse in pairs
        )
        self.up = nn.ModuleList(nn.ConvTranspose2d(coarse, fine, 4, stride=2, padding=1) for fine, coarse in pairs)
        self.mix = nn.ModuleList(_block(fine, fine) for fine, _ in pairs)
        self.head = nn.ConvTranspose2d(widths[0], 3, 4, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, 3, H, W) to images (N, 3, H, W) in [0, 1]; H and W are multiples of 2^len(widths)."""
        x = self.stem(x)
        passed = []
        for down in self.down:
            passed.append(x)
            x = down(x)
        for level in reversed(range(len(self.up))):
            x = self.up[level](x)
            if level >= len(self.up) - self.skips:
                x = x + passed[level]
            x = self.mix[level](x)
        return torch.sigmoid(self.head(x))


class StridedAutoencoder(nn.Module):
    """Convolutional autoencoder with sigmoid output: P. Bergmann et al., 2018, arXiv 1807.02011, table 1.

    Args:
        size: side of the square input in pixels, a multiple of 16; 128 in the paper, one more strided layer from 256 up.
        latent: number of channels of the code.
    """

    def __init__(self, *, size: int, latent: int) -> None:
        super().__init__()
        strided = [(3, 32), (32, 32), (32, 32)] if size >= 256 else [(3, 32), (32, 32)]
        # (inputs, outputs, stride): 4x4 kernels halve the map, 3x3 kernels keep it
        layers = [(*pair, 2) for pair in strided]
        layers += [(32, 32, 1), (32, 64, 2), (64, 64, 1), (64, 128, 2), (128, 64, 1), (64, 32, 1)]
        grid = size // 2 ** sum(stride == 2 for *_, stride in layers)
        encoder: list[nn.Module] = []
        for inputs, outputs, stride in layers:
            encoder += [_conv(inputs, outputs, stride), nn.LeakyReLU(0.2)]
        self.encoder = nn.Sequential(*encoder, nn.Conv2d(32, latent, grid))
        decoder: list[nn.Module] = [nn.ConvTranspose2d(latent, 32, grid), nn.LeakyReLU(0.2)]
        for outputs, inputs, stride in reversed(layers):
            decoder += [_deconv(inputs, outputs, stride), nn.LeakyReLU(0.2)]
        self.decoder = nn.Sequential(*decoder[:-1], nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, 3, size, size) to reconstructions of the same shape in [0, 1]."""
        return self.decoder(self.encoder(x))  # type: ignore[no-any-return]


def _conv(inputs: int, outputs: int, stride: int) -> nn.Module:
    return nn.Conv2d(inputs, outputs, 4 if stride == 2 else 3, stride=stride, padding=1)


def _deconv(inputs: int, outputs: int, stride: int) -> nn.Module:
    return nn.ConvTranspose2d(inputs, outputs, 4 if stride == 2 else 3, stride=stride, padding=1)
