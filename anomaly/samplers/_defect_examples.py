"""Images of real defects with their masks, for a sampler that learns to draw defects."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from anomaly.data.folders import find_category
from anomaly.errors import DataError
from anomaly.imaging.image_file import read_image, read_mask
from anomaly.nn.preprocess import Preprocess

MAX_PIXELS = 100_000_000


def read_examples(folder: Path, preprocess: Preprocess) -> tuple[Tensor, Tensor]:
    """Read the defects with masks of a category, as the network sees images.

    Args:
        folder: a category in a known layout; never one that is tested on later.
        preprocess: of the sampler.

    Returns:
        Images (E, 3, h, w) float32 and masks (E, 1, h, w) in {0, 1}.

    Raises:
        DataError: no such category, or none of its defects has a mask.
    """
    samples = [sample for sample in find_category(folder).test if sample.label and sample.mask_path is not None]
    if not samples:
        raise DataError(f"{folder} holds no defect with a mask: give a category with test/KIND and ground_truth/KIND")
    images, masks = [], []
    for sample in samples:
        image = torch.from_numpy(read_image(sample.path, white=255, max_pixels=MAX_PIXELS))
        mask = torch.from_numpy(read_mask(str(sample.mask_path), max_pixels=MAX_PIXELS))
        if mask.shape != image.shape[:2]:
            raise DataError(
                f"{sample.mask_path} is {tuple(mask.shape)}, its image {tuple(image.shape[:2])}: make them equal"
            )
        images.append(preprocess(image[None]))
        painted = (mask[..., None] * 255).to(torch.uint8).expand(-1, -1, 3)
        masks.append((preprocess(painted[None])[:, :1] > 0).float())  # every pixel that the defect touches
    return torch.cat(images), torch.cat(masks)


def mix_in(
    good: Tensor, painted: Tensor, mask: Tensor, examples: tuple[Tensor, Tensor], *, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Put a random example in the place of about half of the painted images.

    Args:
        good: (N, 3, h, w).
        painted: (N, 3, h, w), the same with patterns.
        mask: (N, 1, h, w) in {0, 1}, where the patterns are.
        examples: of `read_examples`.
        generator: of all choices, on the CPU.

    Returns:
        Images known outside the mask, images, masks, and which of them are examples (N,) bool.
    """
    images, masks = (part.to(good.device) for part in examples)
    chosen = torch.randint(len(images), (len(good),), generator=generator).to(good.device)
    taken = (torch.rand(len(good), generator=generator) < 0.5).to(good.device) & mask.flatten(1).any(dim=1)
    some = taken.view(-1, 1, 1, 1)
    real, where = images.index_select(0, chosen), masks.index_select(0, chosen)
    return torch.where(some, real, good), torch.where(some, real, painted), torch.where(some, where, mask), taken
