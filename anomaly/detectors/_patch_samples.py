"""Random patches of many images, with their origin, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


def positions(paths: Sequence[str]) -> dict[str, int]:
    """Position of each image among all images, ordered by path."""
    return {path: n for n, path in enumerate(sorted(paths, key=lambda path: Path(path).as_posix()))}


def draw_patches(
    images: Iterable[tuple[str, Tensor]], *, num: int, rng: np.random.Generator
) -> list[tuple[str, Tensor, Tensor]]:
    """Draw patches, equally many per image and at least `num` in all; all patches where there are fewer.

    Args:
        images: path and patches (P, C) of each image; they are read one by one.
        num: number of patches.
        rng: source of the draws.

    Returns:
        Path, patches (each, C) and their numbers (each,) in the image, for each image.
    """
    drawn: list[tuple[str, Tensor, Tensor]] = []
    for path, f in images:
        each = -(-num // (len(drawn) + 1))
        cell = torch.from_numpy(rng.permutation(len(f))[:each])
        drawn.append((path, f[cell.to(f.device)], cell))
        if sum(len(cell) for _, _, cell in drawn) > 4 * max(num, len(drawn)):
            drawn = [(path, f[:each].clone(), cell[:each]) for path, f, cell in drawn]
    return [(path, f[:each].clone(), cell[:each]) for path, f, cell in drawn]


class Patches(NamedTuple):
    """Patches with their origin."""

    features: Tensor
    """(N, C)"""
    image: Tensor
    """(N,) number of the image"""
    cell: Tensor
    """(N,) number of the patch among those of its image"""

    @staticmethod
    def join(each: Sequence[tuple[Tensor, Tensor]], numbers: Sequence[int]) -> Patches:
        """Join the patches (N_i, C) and cells (N_i,) of images."""
        image = torch.cat([torch.full((len(cell),), n) for (_, cell), n in zip(each, numbers, strict=True)])
        return Patches(torch.cat([f for f, _ in each]), image, torch.cat([cell for _, cell in each]))

    def thinned(self, num: int, *, rng: np.random.Generator) -> Patches:
        """Keep `num` patches at random."""
        kept = torch.from_numpy(np.sort(rng.permutation(len(self.image))[:num]))
        return Patches(self.features[kept.to(self.features.device)], self.image[kept], self.cell[kept])
