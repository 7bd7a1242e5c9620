"""`Denoiser`: the network of a diffusion model, a small U-Net of diffusers on patches of the image."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn
from torch.nn import functional

from anomaly.errors import UsageError


def num_groups(widths: Sequence[int]) -> int:
    """Number of groups in a network's norms: at most 8, with at least 4 channels each.

    A group of one channel is constant on flat images.
    """
    return math.gcd(8, max(1, math.gcd(*widths) // 4))


class Denoiser(nn.Module):
    """Predict the noise in noisy images: a U-Net conditioned on the step, with attention at its coarsest level only.

    J. Ho et al., 2020, arXiv 2006.11239, appendix B (as diffusers' `UNet2DModel`). T. Luhman and E. Luhman, "Improving
    Diffusion Model Efficiency Through Patching", 2022, arXiv 2207.04316: patches of pixels become channels, which saves the
    levels of the highest resolution. T. Salimans and J. Ho, "Progressive Distillation for Fast Sampling of Diffusion
    Models", 2022, arXiv 2202.00512, appendix D: the U-Net outputs the velocity v, and the noise is
    eps = √(1 - ᾱ_t) x_t + √ᾱ_t v. The predicted image then stays bounded at high noise levels.

    Args:
        size: side of the square input in pixels.
        in_channels: number of input channels, conditions included.
        out_channels: number of channels of the noise.
        widths: channels of each level, multiples of 4; each level has half the resolution of the one before.
        patch: side of the patches in pixels; 1 for no patches.
        alphas_cumprod: ᾱ_t of all steps.

    Raises:
        UsageError: invalid widths, or a size that the levels do not divide.
    """

    alphas_cumprod: Tensor

    def __init__(
        self,
        *,
        size: int,
        in_channels: int,
        out_channels: int,
        widths: Sequence[int],
        patch: int,
        alphas_cumprod: Sequence[float],
    ) -> None:
        super().__init__()
        if not widths or any(width < 4 or width % 4 for width in widths):
            raise UsageError(f"widths {list(widths)}: use a multiple of 4 for each level, e.g. [32, 64, 96]")
        step = patch * 2 ** (len(widths) - 1)
        if patch < 1 or size % step or size < step:
            raise UsageError(
                f"size {size} with patch {patch} and {len(widths)} levels: use a multiple of {max(step, 1)},"
                f" e.g. {max(step, size // max(step, 1) * step)}"
            )
        num_levels = len(widths)
        self.patch = patch
        self.register_buffer("alphas_cumprod", torch.tensor(alphas_cumprod), persistent=False)
        self.network = UNet2DModel(
            sample_size=size // patch,
            in_channels=in_channels * patch**2,
            out_channels=out_channels * patch**2,
            block_out_channels=tuple(widths),
            down_block_types=("DownBlock2D",) * (num_levels - 1) + ("AttnDownBlock2D",),
            up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * (num_levels - 1),
            layers_per_block=1,
            norm_num_groups=num_groups(widths),
            attention_head_dim=None,
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Predict the noise in states.

        Args:
            x: (N, in_channels, size, size), the noisy state, then the condition.
            t: (N,) int64, step from 0.

        Returns:
            (N, out_channels, size, size) float32.
        """
        output: Tensor = self.network(functional.pixel_unshuffle(x, self.patch), t, return_dict=False)[0]
        velocity = functional.pixel_shuffle(output, self.patch).float()
        a = self.alphas_cumprod.index_select(0, t).reshape(-1, 1, 1, 1)
        return torch.sqrt(1 - a) * x[:, : velocity.shape[1]] + torch.sqrt(a) * velocity

    def errors(self, predicted: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Squared errors of the velocity: those of the noise (N, C, h, w) over ᾱ_t, with similar weight for all steps."""
        return (predicted - noise) ** 2 / self.alphas_cumprod.index_select(0, t).reshape(-1, 1, 1, 1)
