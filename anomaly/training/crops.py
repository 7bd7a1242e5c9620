"""Crops of images at their own resolution, for models that see large images window by window."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset, Sampler

NUM_OPEN = 8
"""Images whose crops are mixed with one another, so that each is decoded once in an epoch"""
Crop = tuple[int, int, int]
"""Number of the image, and the crop's top row and left column"""


class Crops(Dataset[tuple[Tensor, str]]):
    """Square crops of images; the place in a image is part of a crop's path, since what is cached goes by paths.

    Args:
        images: by their number, as (H, W, 3) uint8 RGB and path.
        size: height and width of a crop in pixels.
    """

    def __init__(self, images: Dataset[tuple[Tensor, str]], *, size: tuple[int, int]) -> None:
        self._read = lru_cache(maxsize=NUM_OPEN)(images.__getitem__)
        self._size = size

    def __getitem__(self, crop: Crop) -> tuple[Tensor, str]:
        number, top, left = crop
        image, path = self._read(number)
        height, width = self._size
        return image[top : top + height, left : left + width].contiguous(), f"{path}#{top},{left}"


class CropOrder(Sampler[Crop]):
    """Crops of one epoch after the other: as many of a image as cover it, at random places spread evenly over it.

    One is centred in each cell of a grid over the image, at random, and moved inside where it sticks out: no part is
    left out for long, and the last pixel of the border is seen half as often as the others. Everything follows from the
    seed and the epoch's number.

    Args:
        shapes: height and width of the images.
        size: height and width of a crop in pixels, not above any of them.
        seed: of all epochs.
    """

    def __init__(self, shapes: Sequence[tuple[int, int]], *, size: tuple[int, int], seed: int) -> None:
        self._shapes = list(shapes)
        self._size = size
        self._seed = seed
        self._epoch = 0
        self._seen: dict[int, int] = {}
        self._num = sum(-(-height // size[0]) * -(-width // size[1]) for height, width in shapes)

    def skip(self, num_images: int, *, epoch: int) -> None:
        """Leave out the first crops of an epoch, which was interrupted after them, the next time that it is gone through."""
        self._seen[epoch] = num_images

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch is next; the trainer calls this."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._num

    def __iter__(self) -> Iterator[Crop]:
        draw = np.random.default_rng((self._seed, self._epoch))
        images = draw.permutation(len(self._shapes)).tolist()
        crops: list[Crop] = []
        for first in range(0, len(images), NUM_OPEN):
            mixed = [crop for n in images[first : first + NUM_OPEN] for crop in self._places(n, draw)]
            crops += [mixed[n] for n in draw.permutation(len(mixed))]
        return iter(crops[self._seen.pop(self._epoch, 0) :])

    def _places(self, number: int, draw: np.random.Generator) -> list[Crop]:
        (height, width), (h, w) = self._shapes[number], self._size
        num_rows, num_columns = -(-height // h), -(-width // w)
        row, column = np.mgrid[:num_rows, :num_columns]
        middle_y = (row + draw.random(row.shape)) * (height / num_rows)
        middle_x = (column + draw.random(row.shape)) * (width / num_columns)
        top = np.clip(np.rint(middle_y - h / 2), 0, height - h)
        left = np.clip(np.rint(middle_x - w / 2), 0, width - w)
        return [(number, int(y), int(x)) for y, x in zip(top.flat, left.flat, strict=True)]
