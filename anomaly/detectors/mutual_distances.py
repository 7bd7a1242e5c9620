"""Mutual distances: distance of the patches of each image to the patches of the other images.

Based on X. Li et al., "MuSc: Zero-Shot Industrial Anomaly Classification and Segmentation with Mutual Scoring of the
Unlabeled Images", 2024, arXiv 2401.16753: images without labels score each other.

Notation: y -> embedding of a patch, (d,); R_j -> patches that stand for image j, (k, d); a -> distance map of an image.

    a_i(p; S)   min over j in S of min over r in R_j of |y_ip - r|
    S           all images except image i, the images of its part group, and the left-out images

Differences from the paper: the nearest image counts, not the mean over the nearest 30 %. Parts in free rotation have few
similar images. A core set of each image stands for it, because the cost grows with the square of the patches. No image is
chosen by looking at others, so similar defects cannot displace good images from a bank.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from anomaly.detectors._patch_embedding import PatchEmbedding
from anomaly.detectors.memory_bank import LEVELS, proportional_size
from anomaly.inference.core_set import PROJECTED, core_set
from anomaly.nn.preprocess import Preprocess
from anomaly.system.progress import progress_bar

BACKBONE = "tf_efficientnet_lite0"
"""Network of the patches; an installed package holds its weights"""
DIMENSIONS = 128
"""Principal components of a patch, before the random projection"""
NUM_FITTED, PATCHES_FITTED = 128, 160
"""Images, and patches per image, that the principal components are fitted on"""
ROWS_PER_IMAGE = 64
"""Patches that stand for an image"""
NUM_REFERENCES = 400
"""Largest number of images that the others are compared with"""
NUM_NEAREST = 32
"""Nearest images that are kept for each patch"""
MOST_ENLARGED = 3
"""Largest enlargement of a small image"""


@dataclass(frozen=True, eq=False)
class MutualDistances:
    """Distances of the patches of n images to the nearest of the other images."""

    distance: NDArray[np.float16]
    """(n, P, K) distances in ascending order"""
    image: NDArray[np.int32]
    """(n, P, K) numbers of the images at these distances"""
    grid: tuple[int, int]
    """rows and columns of the P patches"""

    def maps(self, *, without: Collection[int] = ()) -> NDArray[np.float32]:
        """Distance map of every image, (n, h, w), as if some images were missing.

        If all K nearest images of a patch are missing, its distance is that of the last of them.

        Args:
            without: numbers of the missing images.
        """
        missing = np.isin(self.image, np.array(sorted(without), dtype=np.int32))
        missing[..., -1] = False
        nearest = np.take_along_axis(self.distance, missing.argmin(axis=-1)[..., None], axis=-1)
        return nearest[..., 0].astype(np.float32).reshape(-1, *self.grid)


class Patches:
    """Embedding of an image's patches on a grid of stride 16.

    Args:
        height: height of the images in pixels.
        width: width of the images in pixels.
        weights: source of the backbone's weights (see `Backbone`).

    Raises:
        WeightsError: the backbone's weights are missing.
    """

    def __init__(self, height: int, width: int, *, weights: str = "pretrained") -> None:
        wanted = proportional_size(height, width)
        rows, columns = (
            min(side, max(32, -(-MOST_ENLARGED * own // 32) * 32))
            for side, own in zip(wanted, (height, width), strict=True)
        )
        self._preprocess = Preprocess(size=(rows, columns), resize="stretch", mean=(0.0,) * 3, std=(1.0,) * 3)
        self._embedding = PatchEmbedding(
            BACKBONE, layers=LEVELS[BACKBONE], size=(rows, columns), weights=weights, dimensions=DIMENSIONS
        )
        self.grid = (self._embedding.grid[0] // 2, self._embedding.grid[1] // 2)

    @torch.no_grad()
    def features(self, image: NDArray[np.uint8]) -> Tensor:
        """Features of the patches (P, C) of an image (H, W, 3) uint8 RGB."""
        fine = self._embedding.features(self._preprocess(torch.from_numpy(image[None])))
        return functional.avg_pool2d(fine.permute(0, 3, 1, 2), 2)[0].flatten(1).T

    def fit(self, features: Tensor) -> None:
        """Fit the principal components on features (m, C).

        Raises:
            UsageError: equal features.
        """
        self._embedding.fit(features)

    def embed(self, features: Tensor) -> Tensor:
        """Embed features (P, C) as (P, d)."""
        return self._embedding.project(features)


@torch.no_grad()
def mutual_distances(
    patches: Patches, features: Callable[[int], Tensor], groups: Sequence[int], *, seed: int
) -> MutualDistances:
    """Compare the patches of all images with each other.

    Args:
        patches: embedding; it is fitted.
        features: function that gives the features (P, C) of an image by its number.
        groups: part group of each of the n images; images of one group are not compared.
        seed: seed of all draws.

    Raises:
        UsageError: all images look alike to the network.
    """
    num, rng = len(groups), np.random.default_rng(seed)
    drawn = {n: features(n) for n in sorted(rng.permutation(num)[:NUM_FITTED].tolist())}
    patches.fit(torch.cat([f[torch.from_numpy(rng.permutation(len(f))[:PATCHES_FITTED])] for f in drawn.values()]))
    directions = torch.randn(DIMENSIONS, PROJECTED, generator=torch.Generator().manual_seed(seed)) / PROJECTED**0.5
    embedded = torch.stack(
        [patches.embed(drawn.pop(n) if n in drawn else features(n)) @ directions for n in range(num)]
    )
    references = np.sort(rng.permutation(num)[:NUM_REFERENCES])
    rows = torch.stack(
        [y[torch.from_numpy(core_set(y.numpy(), ROWS_PER_IMAGE, seed=seed))] for y in embedded[references]]
    )
    group = torch.tensor(list(groups))
    of_references = group[references]
    kept = min(NUM_NEAREST, len(references))
    distance, image = [], []
    with progress_bar("compare the images") as report:
        for n in range(num):
            found = _distances(embedded[n], rows)
            largest = float(found.max())
            found[:, of_references == group[n]] = torch.inf
            nearest = found.topk(kept, dim=1, largest=False)
            distance.append(nearest.values.clamp(max=largest).half().numpy())
            image.append(references[nearest.indices.numpy()].astype(np.int32))
            report(n + 1, num)
    return MutualDistances(np.stack(distance), np.stack(image), patches.grid)


def _distances(y: Tensor, rows: Tensor) -> Tensor:
    """Distance of patches (P, d) to the nearest row of each image (n, k, d), (P, n)."""
    num, per_image, _ = rows.shape
    step = max(1, 2**19 // (len(y) * per_image))  # the block stays in the processor's cache
    found = torch.empty(num, len(y))
    for begin in range(0, num, step):
        block = rows[begin : begin + step].flatten(0, 1)
        squares = (block * block).sum(dim=1, keepdim=True)
        found[begin : begin + step] = torch.addmm(squares, block, y.T, alpha=-2).view(-1, per_image, len(y)).amin(dim=1)
    return (found.T + (y * y).sum(dim=1, keepdim=True)).clamp(min=0).sqrt()
