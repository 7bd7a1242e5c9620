"""Images of real defects with masks, for a sampler that learns to draw defects."""

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
    """Read a category's defects with masks at the network's size.

    Args:
        folder: category in a known layout; it must not be evaluated later.
        preprocess: preprocessing of the sampler.

    Returns:
        Images (E, 3, h, w) float32 and masks (E, 1, h, w) in {0, 1}.

    Raises:
        DataError: the category does not exist, or no defect has a mask.
    """
    samples = [sample for sample in find_category(folder).test if sample.label and sample.mask_path is not None]
    if not samples:
        raise DataError(f"{folder} has no defect with a mask: give a category with test/KIND and ground_truth/KIND")
    images, masks = [], []
    for sample in samples:
        image = torch.from_numpy(read_image(sample.path, white=255, max_pixels=MAX_PIXELS))
        mask = torch.from_numpy(read_mask(str(sample.mask_path), max_pixels=MAX_PIXELS))
        if mask.shape != image.shape[:2]:
            raise DataError(
                f"{sample.mask_path} has {mask.shape[1]}×{mask.shape[0]} pixels, its image {image.shape[1]}×{image.shape[0]}:"
                " make them equal"
            )
        images.append(preprocess(image[None]))
        drawn = (mask[..., None] * 255).to(torch.uint8).expand(-1, -1, 3)
        masks.append((preprocess(drawn[None])[:, :1] > 0).float())  # every pixel with a part of the defect
    return torch.cat(images), torch.cat(masks)


def mix_in(
    good: Tensor, painted: Tensor, mask: Tensor, examples: tuple[Tensor, Tensor], *, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Replace about half of the painted images by random examples.

    Args:
        good: good images (N, 3, h, w).
        painted: good images with patterns, (N, 3, h, w).
        mask: masks of the patterns, (N, 1, h, w) in {0, 1}.
        examples: images and masks from `read_examples`.
        generator: random generator of all choices, on the CPU.

    Returns:
        Images that are known outside the mask, images with patterns or defects, masks, and the replaced images (N,) bool.
    """
    images, masks = (part.to(good.device) for part in examples)
    chosen = torch.randint(len(images), (len(good),), generator=generator).to(good.device)
    replaced = (torch.rand(len(good), generator=generator) < 0.5).to(good.device) & mask.flatten(1).any(dim=1)
    replace = replaced.view(-1, 1, 1, 1)
    real, where = images.index_select(0, chosen), masks.index_select(0, chosen)
    return (
        torch.where(replace, real, good),
        torch.where(replace, real, painted),
        torch.where(replace, where, mask),
        replaced,
    )
