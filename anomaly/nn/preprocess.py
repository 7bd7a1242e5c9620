"""From raw 8-bit images to the network's input: the only place where this is done.

The module is part of every exported graph, so the factory runs the very same arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Resize = Literal["stretch", "letterbox"]
MOST_GAIN = 4.0
"""By how much an image is made brighter at most: beyond it there is little but noise, which no model has learned"""


class Preprocess(nn.Module):
    """Resize, normalise and blank what lies outside the region of interest.

    `stretch` resizes height and width each to the network's size (bilinear, antialiased; exported as one `Resize`).
    `letterbox` keeps the aspect, centres the image and repeats its border around: a flat padding would be an edge that every
    good part has and that outweighs the part in a score. It is written as two matrix products
    with triangle-filter weights made from the tensor's own sizes, because its scale depends on the image.

    Args:
        size: height and width of the network's input in pixels.
        resize: `stretch` or `letterbox`.
        mean: of each channel, in [0, 1].
        std: of each channel, in [0, 1].
    """

    mean: Tensor
    std: Tensor
    roi: Tensor
    level: Tensor
    """mean grey level that every image is brought to, 0 to 255; 0 where images stay as bright as they are"""

    def __init__(self, *, size: tuple[int, int], resize: Resize, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.size = size
        self.resize: Resize | Literal["native"] = resize
        """`native` takes the pixels as they are: the images are windows of a large one (`anomaly.inference.tiles`)"""
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1) * 255.0)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1) * 255.0)
        self.register_buffer("roi", torch.ones(size, dtype=torch.bool))
        self.register_buffer("level", torch.zeros(()))
        self.has_roi = False
        """Whether any network pixel lies outside the region of interest"""
        self.levelled = False
        """Whether images are brought to one brightness"""
        self.register_load_state_dict_pre_hook(_complete)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_post_hook(lambda module, _: module._note())  # type: ignore[no-untyped-call]

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
        # what lies outside has no weight at all, not even a rounded one; the padding of a letterbox is what its border is
        self.roi.copy_((parts[0, 0] > 0.5) & (parts[0, 1] == 0))
        self._note()

    @torch.no_grad()
    def level_brightness(self, batches: Iterable[Tensor | list[Tensor]]) -> None:
        """Bring every image to the mean grey level of these images from now on, by one factor for all its channels.

        The factor is `MOST_GAIN` at most. A lamp that ages or an exposure that varies then moves no score, and a part that is
        too bright or too dark as a whole is no defect any more. The mean is that of the region of interest, at the
        network's size.

        Args:
            batches: of images, as `forward` takes them.
        """
        means = [self._mean_level(self._resized(part)) for batch in batches for part in _stacks(batch)]
        self.level.copy_(torch.cat(means).mean().clamp(min=1.0))
        self._note()

    def _mean_level(self, x: Tensor) -> Tensor:
        """Mean grey level (N, 1, 1, 1) inside the region of images (N, 3, h, w) in grey levels."""
        mean = (x * self.roi if self.has_roi else x).mean(dim=(2, 3), keepdim=True).mean(dim=1, keepdim=True)
        return mean / self.roi.to(x.dtype).mean()

    def _note(self) -> None:
        self.has_roi = not bool(self.roi.all())
        self.levelled = bool(self.level > 0)

    def forward(self, image: Tensor | list[Tensor]) -> Tensor:
        """Turn images into the network's input.

        Args:
            image: (N, H, W, 3) uint8 RGB, or a list of N such images (H, W, 3) of any sizes.

        Returns:
            (N, 3, h, w) float32, zero mean and unit deviation over the backbone's training set; h and w are those of
            `size`, or the image's own where nothing is resized.
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
        """Grey levels (N, 3, h, w) float32 of images (N, H, W, 3) uint8 at the network's size."""
        x = image.permute(0, 3, 1, 2).to(torch.float32)
        if self.resize == "stretch":
            return functional.interpolate(x, self.size, mode="bilinear", antialias=True, align_corners=False)
        return letterbox(x, self.size) if self.resize == "letterbox" else x


def _complete(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Let a state from before there was a level be loaded: images stay as bright as they are."""
    state.setdefault(f"{prefix}level", torch.zeros(()))


def _stacks(batch: Tensor | list[Tensor]) -> list[Tensor]:
    """Images (n, H, W, 3) of one size each."""
    return [single[None] for single in batch] if isinstance(batch, list) else [batch]


def letterbox(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize with the aspect kept, centred, its border repeated around; antialiased bilinear (triangle as wide as the scale).

    Args:
        x: (N, C, H, W) float32.
        size: (h, w) of the result.

    Returns:
        (N, C, h, w) float32.
    """
    rows_at = torch.arange(x.shape[2], device=x.device, dtype=torch.float32) + 0.5
    columns_at = torch.arange(x.shape[3], device=x.device, dtype=torch.float32) + 0.5
    # source pixels per network pixel: the larger of the two ratios makes the whole image fit
    scale = torch.maximum((rows_at[-1] + 0.5) / size[0], (columns_at[-1] + 0.5) / size[1])
    rows = _triangle_weights(rows_at, size[0], scale)
    columns = _triangle_weights(columns_at, size[1], scale)
    return rows @ x @ columns.T


def _triangle_weights(source: Tensor, target: int, scale: Tensor) -> Tensor:
    """Weights (target, length) of a centred antialiased bilinear resize by `scale` source pixels per target pixel."""
    length = source[-1] + 0.5
    centre = (torch.arange(target, device=source.device, dtype=torch.float32) + 0.5 - target / 2) * scale + length / 2
    centre = torch.minimum(centre.clamp(min=0.5), length - 0.5)  # beyond the image its border goes on
    weight = (1 - (centre[:, None] - source[None, :]).abs() / scale.clamp(min=1.0)).clamp(min=0.0)
    return weight / weight.sum(dim=1, keepdim=True)
