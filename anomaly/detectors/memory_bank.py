"""Memory bank: distance to the nearest patch of good images, in units of its usual value at that place.

Based on K. Roth et al., "Towards Total Recall in Industrial Anomaly Detection" (PatchCore), 2022, arXiv 2106.08265:
sections 3.1 (locally aware patch features), 3.2 (greedy core set) and 3.3 (nearest-neighbour distance).

Notation: y -> embedding of a patch, (d,); B -> bank, (M, d); D -> distance map of an image, (h, w); u -> usual distance at
a place, (h, w); s -> score, higher is more anomalous.

    y    two levels of a frozen network, half-whitened (`_patch_embedding`)
    B    core set of the patches of all training images (`_core_set`)
    D    min over B of |y - b|
    u    mean + 2 deviations of D over good images at that place, from banks without these images
    map  sum over backbones of D / u, averaged over 3×3 cells
    s    mean of the largest 1 % of the map's cells

Differences from the paper: half-whitening replaces the raw features; the scale u replaces the reweighting of section 3.3,
because distances differ by place more than by density; the mean of the largest cells replaces the maximum, because one
odd cell on one good image would set the threshold.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from anomaly.detectors._core_set import core_set
from anomaly.detectors._patch_embedding import PatchEmbedding
from anomaly.detectors.base import Anomaly, Detector
from anomaly.detectors.tiling_support import WindowsOnly
from anomaly.errors import UsageError
from anomaly.nn.batch import Batch
from anomaly.nn.feature_cache import FeatureCache
from anomaly.nn.map_scaling import smoothed
from anomaly.nn.preprocess import Preprocess, Resize

Pooling = Literal["top", "maximum"]
LEVELS = {"tf_efficientnet_lite0": (2, 3), "mobilenetv2_100": (2, 3), "resnet18": (2, 3)}
"""Backbone -> levels of stride 8 and 16; any other backbone needs the option `layers`"""
NUM_FOLDS = 5
"""Parts of the training images whose distances are measured with a bank of the other parts"""
PRIOR_IMAGES = 10.0
"""Weight, in images, of the deviation's mean over all places against the deviation at one place"""
SMOOTH_CELLS = 2.0
"""Standard deviation, in cells, of the Gaussian that smooths the usual distance"""


class Bank(nn.Module):
    """Rows of one backbone, and the usual distance at each place."""

    rows: Tensor
    image: Tensor
    usual: Tensor

    def __init__(self, grid: tuple[int, int]) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(0, 0))
        self.register_buffer("image", torch.zeros(0, dtype=torch.int32))
        self.register_buffer("usual", torch.ones(grid))

    def forward(self, y: Tensor) -> Tensor:
        """Distance of patches (N, h, w, d) to the nearest row, (N, h, w), in units of the usual distance."""
        return nearest(y, self.rows) / self.usual

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name in ("rows", "image"):
            if prefix + name in state_dict:
                setattr(self, name, getattr(self, name).new_zeros(state_dict[prefix + name].shape))
        super()._load_from_state_dict(state_dict, prefix, *rest)


def nearest(y: Tensor, rows: Tensor) -> Tensor:
    """Distance of patches (..., d) to the nearest of the rows (M, d), (...).

    The row is found by |b|² - 2 y·b; its distance is measured by differences, because the expanded square loses digits.
    """
    flat = y.reshape(-1, y.shape[-1])
    at = ((rows * rows).sum(dim=1) - 2 * flat @ rows.T).argmin(dim=1)
    return (flat - rows.index_select(0, at)).square().sum(dim=1).sqrt().view(y.shape[:-1])


class MemoryBank(Detector):
    """Nearest-neighbour distances to a bank of good patches.

    Args:
        size: height and width of the network's input in pixels, multiples of 32.
        resize: `stretch` or `letterbox`.
        backbones: timm names; the maps of several backbones are added.
        layers: feature levels of every backbone; None takes those of stride 8 and 16.
        weights: `pretrained`, `none`, or a folder of weights (see `Backbone`).
        dimensions: principal components of a patch embedding.
        bank_size: rows of the bank of a backbone.
        num_candidates: patches, drawn at random from all training images, that the bank is chosen from.
        num_projected: patches that the principal components are fitted on.
        position_scale: whether distances are divided by their usual value at each place; False for parts in free rotation.
        pooling: `top` scores an image by the mean of its largest cells, `maximum` by the largest one.
        top: share of cells that `top` averages, in (0, 1].
        batch_size: images per step.
        cache_gib: memory in GiB for features of the training images; images beyond it are computed again.
        seed: random seed of all draws.
    """

    tiling = WindowsOnly("its usual distances belong to places of the whole image")

    def __init__(
        self,
        *,
        size: Sequence[int] = (384, 384),
        resize: Resize = "stretch",
        backbones: Sequence[str] = ("tf_efficientnet_lite0",),
        layers: Sequence[int] | None = None,
        weights: str = "pretrained",
        dimensions: int = 128,
        bank_size: int = 2000,
        num_candidates: int = 40_000,
        num_projected: int = 20_000,
        position_scale: bool = True,
        pooling: Pooling = "top",
        top: float = 0.01,
        batch_size: int = 8,
        cache_gib: float = 4.0,
        seed: int = 0,
    ) -> None:
        height, width = size
        if height % 32 or width % 32:
            raise UsageError(f"size {height}, {width}: give multiples of 32, e.g. 384, 384")
        if not 0 < top <= 1:
            raise UsageError(f"top {top}: give a share of the cells above 0, at most 1")
        preprocess = Preprocess(size=(height, width), resize=resize, mean=(0.0,) * 3, std=(1.0,) * 3)
        super().__init__(preprocess=preprocess, epochs=1, batch_size=batch_size)
        self.save_hyperparameters()
        self.automatic_optimization = False
        embeddings = [
            PatchEmbedding(
                name, layers=_layers(name, layers), size=(height, width), weights=weights, dimensions=dimensions
            )
            for name in backbones
        ]
        self.grid: tuple[int, int] = embeddings[0].grid
        if any(embedding.grid != self.grid for embedding in embeddings):
            raise UsageError(f"backbones {', '.join(backbones)}: their grids differ; give the layers of equal stride")
        self.embeddings = nn.ModuleList(embeddings)
        self.banks = nn.ModuleList(Bank(self.grid) for _ in embeddings)
        origins = [embedding.backbone.provenance for embedding in embeddings]
        self.provenance = {
            key: "; ".join(o.get(key, "-") for o in origins) for key in {k: 0 for o in origins for k in o}
        }
        self.bank_size, self.num_candidates, self.num_projected = bank_size, num_candidates, num_projected
        self.position_scale, self.pooling, self.top, self.seed = position_scale, pooling, top, seed
        self._cache = FeatureCache(max_bytes=int(cache_gib * 2**30))

    def training_step(self, batch: Batch, index: int) -> None:
        """Compute nothing: the bank needs all images at once."""

    def configure_optimizers(self) -> None:
        """Return no optimiser."""

    def on_fit_end(self) -> None:
        """Fit the projections, choose the rows, and measure the usual distances."""
        for embedding, bank in self._pairs():
            self._fit_bank(embedding, bank)
            self._cache.clear()
        super().on_fit_end()

    @torch.no_grad()
    def _fit_bank(self, embedding: PatchEmbedding, bank: Bank) -> None:
        rng, inside = np.random.default_rng(self.seed), self._inside()
        features = [f[inside] for _, f in self._images(embedding)]
        embedding.fit(_drawn(features, self.num_projected, rng)[0])
        candidates, image = _drawn(features, self.num_candidates, rng)
        num, points = len(features), embedding.project(candidates.to(self.device)).cpu()
        del features
        chosen = self._core_set(points)
        bank.rows, bank.image = points[chosen].to(self.device), image[chosen].int().to(self.device)
        if self.position_scale and num >= 2 * NUM_FOLDS:
            fold = torch.from_numpy(rng.permutation(num) % NUM_FOLDS)
            rows = []
            for k in range(NUM_FOLDS):
                others = points[fold[image] != k]
                rows.append(others[self._core_set(others)].to(self.device))
            distance = torch.stack(
                [nearest(embedding.project(f), rows[int(fold[n])]).cpu() for n, f in self._images(embedding)]
            )
            bank.usual.copy_(_usual_distance(distance, inside))

    def _pairs(self) -> list[tuple[PatchEmbedding, Bank]]:
        """Embedding and bank of every backbone."""
        return cast("list[tuple[PatchEmbedding, Bank]]", list(zip(self.embeddings, self.banks, strict=True)))

    def _images(self, embedding: PatchEmbedding) -> Iterator[tuple[int, Tensor]]:
        """Number and pooled features (h, w, C) of every training image."""
        loader: Any = self.trainer.train_dataloader
        number = itertools.count()
        for batch in itertools.islice(loader, int(self.trainer.num_training_batches)):

            def compute(batch: Batch = batch) -> list[Tensor]:
                return [embedding.features(self.preprocessed(batch))]

            for features in self._cache.lookup(batch.path, compute)[0]:
                yield next(number), features

    def _inside(self) -> Tensor:
        """Cells of the grid (h, w) with more than half of their area in the region of interest."""
        roi: Tensor = functional.adaptive_avg_pool2d(self.preprocess.roi[None].float(), self.grid)[0] > 0.5
        if not roi.any():
            raise UsageError(f"the region of interest covers no cell of the {self.grid} grid: enlarge it or the size")
        return roi

    def _core_set(self, points: Tensor) -> Tensor:
        return torch.from_numpy(core_set(points.numpy(), self.bank_size, seed=self.seed))

    def anomaly(self, x: Tensor) -> Anomaly:
        """Score patches and pool them.

        Raises:
            UsageError: the bank is empty.
        """
        pairs = self._pairs()
        if not all(bank.rows.numel() for _, bank in pairs):
            raise UsageError("the memory bank is empty: fit it first")
        total = torch.stack([bank(embedding(x)) for embedding, bank in pairs]).sum(dim=0)
        return self._pooled(total, tuple(x.shape[2:]))

    def _pooled(self, distance: Tensor, size: Sequence[int]) -> Anomaly:
        """Scores (N,) and maps (N, H, W) of distances (N, h, w)."""
        if self.preprocess.has_roi:
            inside = self._inside()
            least = distance.masked_fill(~inside, torch.inf).amin(dim=(1, 2), keepdim=True)
            distance = torch.where(inside, distance, least)
        cells = smoothed(distance, window=3)
        num = max(1, round(self.top * cells[0].numel())) if self.pooling == "top" else 1
        score = cells.flatten(1).topk(num, dim=1).values.mean(dim=1)
        enlarged = functional.interpolate(cells[:, None], size, mode="bilinear", align_corners=False)[:, 0]
        return Anomaly(score, self.inside_roi(enlarged))


def _drawn(features: Sequence[Tensor], num: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Draw about `num` patches, equally many per image.

    Args:
        features: patches (P, C) of each image.
        num: number of patches; all patches where there are fewer.
        rng: source of the draws.

    Returns:
        The patches (N, C), and the number of the image of each patch, (N,).
    """
    each = -(-num // len(features))
    drawn = [f[torch.from_numpy(rng.permutation(len(f))[:each]).to(f.device)] for f in features]
    image = torch.cat([torch.full((len(f),), n) for n, f in enumerate(drawn)])
    kept = torch.from_numpy(np.sort(rng.permutation(len(image))[:num]))
    return torch.cat(drawn)[kept.to(drawn[0].device)], image[kept]


def _usual_distance(distance: Tensor, inside: Tensor) -> Tensor:
    """Usual distance at each place, (h, w), from distance maps (n, h, w) of good images.

    The deviation at a place is drawn towards the mean deviation with the weight of `PRIOR_IMAGES` images: few images
    estimate it badly.
    """
    num, mean, deviation = len(distance), distance.mean(dim=0), distance.std(dim=0)
    typical = deviation[inside.cpu()].mean()
    deviation = (num * deviation + PRIOR_IMAGES * typical) / (num + PRIOR_IMAGES)
    return gaussian(mean + 2 * deviation, sigma=SMOOTH_CELLS)


def gaussian(values: Tensor, *, sigma: float) -> Tensor:
    """Smooth (h, w) by a Gaussian; the border's values continue outside."""
    reach = int(3 * sigma)
    weight = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=values.dtype) / sigma) ** 2)
    weight = weight / weight.sum()
    padded = functional.pad(values[None, None], (reach,) * 4, mode="replicate")
    rows = functional.conv2d(padded, weight.view(1, 1, -1, 1))
    return functional.conv2d(rows, weight.view(1, 1, 1, -1))[0, 0]


def _layers(name: str, layers: Sequence[int] | None) -> Sequence[int]:
    if layers is not None:
        return layers
    if name not in LEVELS:
        raise UsageError(f"backbone {name!r}: its levels of stride 8 and 16 are unknown; give --model.layers")
    return LEVELS[name]
