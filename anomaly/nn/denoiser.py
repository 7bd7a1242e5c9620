"""The network of a diffusion model: diffusers' U-Net, small, on patches of the image."""

from __future__ import annotations

import math
from collections.abc import Sequence

from diffusers import UNet2DModel
from torch import Tensor, nn
from torch.nn import functional

from anomaly.errors import UsageError


class Denoiser(nn.Module):
    """Says the noise in noisy images: a U-Net that knows the step, with attention at its coarsest level only.

    J. Ho et al., 2020, arXiv 2006.11239, appendix B (as diffusers' `UNet2DModel`); T. Luhman and E. Luhman, "Improving
    Diffusion Model Efficiency Through Patching", 2022, arXiv 2207.04316 (patches of pixels stand in the place of channels,
    which saves the levels of the highest resolution).

    Args:
        size: side of the square input.
        in_channels: of the input, conditions included.
        out_channels: of the noise.
        widths: channels of each level, each a multiple of 4, half the resolution from one to the next.
        patch: side of the patches; 1 has none.

    Raises:
        UsageError: widths or a size that do not go with the levels.
    """

    def __init__(self, *, size: int, in_channels: int, out_channels: int, widths: Sequence[int], patch: int) -> None:
        super().__init__()
        if not widths or any(width < 4 or width % 4 for width in widths):
            raise UsageError(f"widths {list(widths)}: each level has a multiple of 4 channels, e.g. [32, 64, 96]")
        step = patch * 2 ** (len(widths) - 1)
        if patch < 1 or size % step or size < step:
            raise UsageError(
                f"size {size} with patch {patch} and {len(widths)} levels: the input is a multiple of {max(step, 1)},"
                f" e.g. {max(step, size // max(step, 1) * step)}"
            )
        num_levels = len(widths)
        self.patch = patch
        self.network = UNet2DModel(
            sample_size=size // patch,
            in_channels=in_channels * patch**2,
            out_channels=out_channels * patch**2,
            block_out_channels=tuple(widths),
            down_block_types=("DownBlock2D",) * (num_levels - 1) + ("AttnDownBlock2D",),
            up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * (num_levels - 1),
            layers_per_block=1,
            norm_num_groups=math.gcd(8, *widths),
            attention_head_dim=None,
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Map x (N, in_channels, size, size) and steps t (N,) int64 to noise (N, out_channels, size, size), float32."""
        noise: Tensor = self.network(functional.pixel_unshuffle(x, self.patch), t, return_dict=False)[0]
        return functional.pixel_shuffle(noise, self.patch).float()
