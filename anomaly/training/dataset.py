"""Datasets and data loaders of good images, in `Batch`es of uint8 images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from anomaly.data.folders import Sample
from anomaly.imaging.header import image_header
from anomaly.imaging.image_file import read_file, read_image
from anomaly.nn.batch import Batch
from anomaly.training.crops import Crop, CropOrder, Crops


class GoodImages(Dataset[tuple[Tensor, str]]):
    """Good images, decoded once and cached up to a memory limit.

    Args:
        samples: good samples; a defect is refused.
        white: stored value of a 16-bit image that becomes 255.
        max_pixels: largest width × height that is decoded.
        cache_gib: memory for decoded images in GiB.
    """

    def __init__(self, samples: Sequence[Sample], *, white: int, max_pixels: int, cache_gib: float) -> None:
        defects = [s.path for s in samples if s.label]
        if defects:
            raise ValueError(f"{len(defects)} defects among the good images, first {defects[0]}")
        self.samples = list(samples)
        self._white = white
        self._max_pixels = max_pixels
        self._free_bytes = int(cache_gib * 2**30)
        self._cache: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.samples)

    def sizes(self) -> list[tuple[int, int]]:
        """Read height and width of the images from their headers.

        Raises:
            ImageError: a file cannot be read or is not an image.
        """
        headers = (image_header(read_file(s.path, max_pixels=self._max_pixels), name=str(s.path)) for s in self.samples)
        return [(header.height, header.width) for header in headers]

    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        path = str(self.samples[index].path)
        if index in self._cache:
            return self._cache[index], path
        image = torch.from_numpy(read_image(path, white=self._white, max_pixels=self._max_pixels))
        if image.numel() <= self._free_bytes:
            self._free_bytes -= image.numel()
            self._cache[index] = image
        return image, path


def collate(items: Sequence[tuple[Tensor, str]]) -> Batch:
    """Stack images of equal size to (N, H, W, 3); images of different sizes stay a list."""
    images = [image for image, _ in items]
    label = torch.zeros(len(items), dtype=torch.bool)
    path = [path for _, path in items]
    if len({image.shape for image in images}) == 1:
        stacked = torch.stack(images)
        return Batch(stacked, torch.zeros(stacked.shape[:3], dtype=torch.bool), label, path)
    masks = [torch.zeros(image.shape[:2], dtype=torch.bool) for image in images]
    return Batch(images, masks, label, path)


class SeededOrder(Sampler[int]):
    """Random training order of each epoch. Seed and epoch number determine it, so a resumed fit repeats it.

    Args:
        num_images: number of images.
        seed: seed of all epochs.
    """

    def __init__(self, num_images: int, *, seed: int) -> None:
        self._num_images = num_images
        self._seed = seed
        self._epoch = 0
        self._num_skipped: dict[int, int] = {}

    def skip(self, num_images: int, *, epoch: int) -> None:
        """Skip the first images of an interrupted epoch in its next pass."""
        self._num_skipped[epoch] = num_images

    def set_epoch(self, epoch: int) -> None:
        """Set the number of the next epoch; called by the trainer."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._num_images

    def __iter__(self) -> Iterator[int]:
        draw = np.random.default_rng((self._seed, self._epoch))
        return iter(draw.permutation(self._num_images)[self._num_skipped.pop(self._epoch, 0) :].tolist())


class GoodData(pl.LightningDataModule):
    """Data loaders of a training: `train` in random order, `stopping` in the given order.

    Args:
        train: training samples.
        stopping: early-stopping validation samples, disjoint from `train`; may be empty.
        batch_size: images per batch.
        read: function that builds the dataset of some samples.
        seed: seed of the training order.
        crop: height and width of training crops at the images' own resolution; None trains on whole images.
    """

    def __init__(
        self,
        *,
        train: Sequence[Sample],
        stopping: Sequence[Sample],
        batch_size: int,
        read: Callable[[Sequence[Sample]], GoodImages],
        seed: int,
        crop: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.train = tuple(train)
        self._batch_size = batch_size
        images = read(train), read(stopping)
        self._train: Dataset[tuple[Tensor, str]] = images[0]
        self._stopping: Dataset[tuple[Tensor, str]] = images[1]
        self._order: SeededOrder | CropOrder = SeededOrder(len(train), seed=seed)
        self._stopping_order: Sequence[int] | Sequence[Crop] = range(len(stopping))
        if crop:
            self._train, self._stopping = (Crops(some, size=crop) for some in images)
            self._order, fixed = (CropOrder(some.sizes(), size=crop, seed=seed) for some in images)
            self._stopping_order = list(fixed)  # the same crops in each epoch

    def train_dataloader(self) -> DataLoader[Any]:
        """Return training batches in random order."""
        return DataLoader(self._train, batch_size=self._batch_size, sampler=self._order, collate_fn=collate)

    def skip_batches(self, num: int, *, epoch: int) -> None:
        """Skip the first batches of an interrupted epoch."""
        self._order.skip(num * self._batch_size, epoch=epoch)

    def probe_dataloader(self, batch_size: int) -> DataLoader[Any]:
        """Return training batches of another size, for the search of a size that fits into memory."""
        return DataLoader(self._train, batch_size=batch_size, sampler=list(self._order), collate_fn=collate)

    def stopping_dataloader(self) -> DataLoader[Any]:
        """Return early-stopping validation batches in order."""
        order: Any = self._stopping_order
        return DataLoader(self._stopping, batch_size=self._batch_size, sampler=order, collate_fn=collate)
