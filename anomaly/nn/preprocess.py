"""`Preprocess`: raw 8-bit images to the network's input, the same arithmetic in training and in the exported graph."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Resize = Literal["stretch", "letterbox"]
MOST_GAIN = 4.0
"""Largest brightness gain; beyond it an image is mostly noise"""


class Preprocess(nn.Module):
    """Resize, normalise, and set pixels outside the region of interest to zero.

    `stretch` resizes height and width independently (bilinear, antialiased; exported as one `Resize`).
    `letterbox` keeps the aspect ratio, centres the image and repeats its border. A flat padding would add an edge to every
    image, and this edge would dominate the score. The scale depends on the image, so `letterbox` is two matrix products
    with triangle-filter weights computed from the tensor's sizes.

    Args:
        size: height and width of the network's input in pixels.
        resize: resizing rule, `stretch` or `letterbox`.
        mean: mean of each channel, in [0, 1].
        std: standard deviation of each channel, in [0, 1].
    """

    mean: Tensor
    std: Tensor
    roi: Tensor
    level: Tensor
    """() float32, common mean grey level of levelled images, 0 to 255; 0 without levelling"""

    def __init__(self, *, size: tuple[int, int], resize: Resize, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.size = size
        self.resize: Resize | Literal["native"] = resize
        """`native` keeps the pixels: the images are windows of a large image (`anomaly.inference.tiles`)"""
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1) * 255.0)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1) * 255.0)
        self.register_buffer("roi", torch.ones(size, dtype=torch.bool))
        self.register_buffer("level", torch.zeros(()))
        self.has_roi = False
        """Whether any network pixel lies outside the region of interest"""
        self.levelled = False
        """Whether images are scaled to one mean grey level"""
        self.register_load_state_dict_pre_hook(_add_missing_level)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_post_hook(lambda module, _: module._update_flags())  # type: ignore[no-untyped-call]

    def set_roi(self, mask: Tensor) -> None:
        """Keep only network pixels whose whole filter support lies inside `mask`.

        Args:
            mask: (H, W) bool, True inside the region, at the size of the images.
        """
        parts = torch.stack((mask, ~mask)).to(torch.float32)[None]
        if self.resize == "stretch":
            parts = functional.interpolate(parts, self.size, mode="bilinear", antialias=True)
        else:
            parts = letterbox(parts, self.size)
        # pixels outside have a weight of exactly 0; the padding of a letterbox belongs to the border that it repeats
        self.roi.copy_((parts[0, 0] > 0.5) & (parts[0, 1] == 0))
        self._update_flags()

    @torch.no_grad()
    def level_brightness(self, batches: Iterable[Tensor | list[Tensor]]) -> None:
        """Scale every later image to the mean grey level of these images, by one factor for all channels.

        The factor is at most `MOST_GAIN`. Varying light then changes no score, and overall brightness is not a
        defect. The mean is taken over the region of interest, at the network's size.

        Args:
            batches: batches of images in the form that `forward` takes.
        """
        means = [self._mean_level(self._resized(part)) for batch in batches for part in _stacks(batch)]
        self.level.copy_(torch.cat(means).mean().clamp(min=1.0))
        self._update_flags()

    def _mean_level(self, x: Tensor) -> Tensor:
        """Mean grey level (N, 1, 1, 1) of images (N, 3, h, w) inside the region of interest."""
        mean = (x * self.roi if self.has_roi else x).mean(dim=(2, 3), keepdim=True).mean(dim=1, keepdim=True)
        return mean / self.roi.to(x.dtype).mean()

    def _update_flags(self) -> None:
        self.has_roi = not bool(self.roi.all())
        self.levelled = bool(self.level > 0)

    def forward(self, image: Tensor | list[Tensor]) -> Tensor:
        """Compute the network's input.

        Args:
            image: (N, H, W, 3) uint8 RGB, or a list of N images (H, W, 3) of any sizes.

        Returns:
            (N, 3, h, w) float32, normalised by `mean` and `std`; (h, w) is `size`, or the image's size under `native`.
        """
        if isinstance(image, list):
            return torch.cat([self(single[None]) for single in image])
        x = self._resized(image)
        if self.levelled:
            x = x * (self.level / torch.maximum(self._mean_level(x), self.level / MOST_GAIN))
        x = (x - self.mean) / self.std
        if self.has_roi:
            x = x * self.roi
        return x

    def _resized(self, image: Tensor) -> Tensor:
        """Images (N, H, W, 3) uint8 at the network's size, (N, 3, h, w) float32 in grey levels."""
        x = image.permute(0, 3, 1, 2).to(torch.float32)
        if self.resize == "stretch":
            return functional.interpolate(x, self.size, mode="bilinear", antialias=True, align_corners=False)
        return letterbox(x, self.size) if self.resize == "letterbox" else x


def _add_missing_level(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Load a state without `level` as one without levelling."""
    state.setdefault(f"{prefix}level", torch.zeros(()))


def _stacks(batch: Tensor | list[Tensor]) -> list[Tensor]:
    """Stacks (n, H, W, 3) of images of equal size."""
    return [single[None] for single in batch] if isinstance(batch, list) else [batch]


def letterbox(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize with the aspect ratio kept, centre, and repeat the border; antialiased bilinear (triangle as wide as the scale).

    Args:
        x: (N, C, H, W) float32.
        size: height and width of the result.

    Returns:
        (N, C, h, w) float32.
    """
    rows_at = torch.arange(x.shape[2], device=x.device, dtype=torch.float32) + 0.5
    columns_at = torch.arange(x.shape[3], device=x.device, dtype=torch.float32) + 0.5
    # source pixels per network pixel: with the larger ratio the whole image fits
    scale = torch.maximum((rows_at[-1] + 0.5) / size[0], (columns_at[-1] + 0.5) / size[1])
    rows = _triangle_weights(rows_at, size[0], scale)
    columns = _triangle_weights(columns_at, size[1], scale)
    return rows @ x @ columns.T


def _triangle_weights(source: Tensor, target: int, scale: Tensor) -> Tensor:
    """Weights (target, length) of a centred antialiased bilinear resize by `scale` source pixels per target pixel."""
    length = source[-1] + 0.5
    centre = (torch.arange(target, device=source.device, dtype=torch.float32) + 0.5 - target / 2) * scale + length / 2
    centre = torch.minimum(centre.clamp(min=0.5), length - 0.5)  # outside the image the border repeats
    weight = (1 - (centre[:, None] - source[None, :]).abs() / scale.clamp(min=1.0)).clamp(min=0.0)
    return weight / weight.sum(dim=1, keepdim=True)
