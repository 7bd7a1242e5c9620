"""Crops of training images at their own resolution, for models that score large images window by window."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset, Sampler

NUM_OPEN = 8
"""Number of images whose crops are mixed, so that each image is decoded once per epoch"""
Crop = tuple[int, int, int]
"""Number of the image, top row and left column of the crop"""


class Crops(Dataset[tuple[Tensor, str]]):
    """Square crops of images. The crop's position is part of its path, because caches use paths as keys.

    Args:
        images: dataset of (H, W, 3) uint8 RGB images and their paths.
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
    """Random crops of each epoch, as many per image as cover it.

    One crop is centred at random in each cell of a grid over the image, and moved inside the border. Every area of an image
    is seen regularly; the outermost pixels are seen half as often as the others. Seed and epoch number determine the order.

    Args:
        shapes: height and width of each image.
        size: height and width of a crop in pixels, at most those of the smallest image.
        seed: seed of all epochs.
    """

    def __init__(self, shapes: Sequence[tuple[int, int]], *, size: tuple[int, int], seed: int) -> None:
        self._shapes = list(shapes)
        self._size = size
        self._seed = seed
        self._epoch = 0
        self._num_skipped: dict[int, int] = {}
        self._num = sum(-(-height // size[0]) * -(-width // size[1]) for height, width in shapes)

    def skip(self, num_images: int, *, epoch: int) -> None:
        """Skip the first crops of an interrupted epoch in its next pass."""
        self._num_skipped[epoch] = num_images

    def set_epoch(self, epoch: int) -> None:
        """Set the number of the next epoch; called by the trainer."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._num

    def __iter__(self) -> Iterator[Crop]:
        draw = np.random.default_rng((self._seed, self._epoch))
        images = draw.permutation(len(self._shapes)).tolist()
        crops: list[Crop] = []
        for first in range(0, len(images), NUM_OPEN):
            mixed = [crop for n in images[first : first + NUM_OPEN] for crop in self._crops(n, draw)]
            crops += [mixed[n] for n in draw.permutation(len(mixed))]
        return iter(crops[self._num_skipped.pop(self._epoch, 0) :])

    def _crops(self, number: int, draw: np.random.Generator) -> list[Crop]:
        (height, width), (h, w) = self._shapes[number], self._size
        num_rows, num_columns = -(-height // h), -(-width // w)
        row, column = np.mgrid[:num_rows, :num_columns]
        middle_y = (row + draw.random(row.shape)) * (height / num_rows)
        middle_x = (column + draw.random(row.shape)) * (width / num_columns)
        top = np.clip(np.rint(middle_y - h / 2), 0, height - h)
        left = np.clip(np.rint(middle_x - w / 2), 0, width - w)
        return [(number, int(y), int(x)) for y, x in zip(top.flat, left.flat, strict=True)]
