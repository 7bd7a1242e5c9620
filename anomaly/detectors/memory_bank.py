"""Memory bank: distance to the nearest patch of good images, in units of its usual value at that place.

Based on K. Roth et al., "Towards Total Recall in Industrial Anomaly Detection" (PatchCore), 2022, arXiv 2106.08265:
sections 3.1 (locally aware patch features), 3.2 (greedy core set) and 3.3 (nearest-neighbour distance).

Notation: y -> embedding of a patch, (d,); B -> bank, (M, d); D -> distance map of an image, (h, w); u -> usual distance at
a place, (h, w); s -> score, higher is more anomalous.

    y    two levels of a frozen network, half-whitened (`_patch_embedding`)
    B    core set of the patches of all training images (`_core_set`)
    D    min over B of |y - b|
    u    usual D of good images at that place, from banks without these images: border × place (`_usual_distance`)
    s    mean of the largest 1 % of cells of the sum over backbones of D / u, averaged over 3×3 cells
    map  the same cells times the mean place factor, so that only the border is scaled

Differences from the paper: half-whitening replaces the raw features; the scale u replaces the reweighting of section 3.3,
because distances differ by place more than by density; the mean of the largest cells replaces the maximum, because one
odd cell on one good image would set the threshold. The map has a milder scale than the score, because a scale by place
hides the middle of wide defects.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from anomaly.detectors._patch_embedding import PatchEmbedding
from anomaly.detectors._patch_samples import Patches, draw_patches, positions
from anomaly.detectors._usual_distance import POWER, usual_distance
from anomaly.detectors.base import Anomaly, Detector
from anomaly.detectors.tiling_support import WindowsOnly
from anomaly.errors import UsageError
from anomaly.inference.core_set import core_set
from anomaly.nn.batch import Batch
from anomaly.nn.feature_cache import FeatureCache
from anomaly.nn.map_scaling import smoothed
from anomaly.nn.preprocess import Preprocess, Resize
from anomaly.nn.score_pooling import Pooling, ScorePooling

LEVELS = {"tf_efficientnet_lite0": (2, 3), "mobilenetv2_100": (2, 3), "resnet18": (2, 3)}
"""Backbone -> levels of stride 8 and 16; any other backbone needs the option `layers`"""
MAX_BYTES = 4 * 2**30
"""Largest memory for the distances of one batch"""
SQUARE = (384, 384)
"""Input size for nearly square images"""
OBLONG_AREA = 320 * 320
"""Area of the input for other images"""
NUM_FOLDS = 5
"""Parts of the training images whose distances are measured with a bank of the other parts"""


def proportional_size(height: float, width: float) -> tuple[int, int]:
    """Choose an input size, in multiples of 32 pixels, for images of a height and width."""
    if max(height, width) <= 1.1 * min(height, width):
        return SQUARE
    scale = (OBLONG_AREA / (height * width)) ** 0.5
    return max(32, 32 * round(height * scale / 32)), max(32, 32 * round(width * scale / 32))


class Bank(nn.Module):
    """Rows of one backbone, the usual distance at each place with its factor `place`, and the origin of each row.

    `image` is the position of its image among the training images, ordered by path. `cell` is its place in the grid,
    row by row.
    """

    rows: Tensor
    image: Tensor
    cell: Tensor
    usual: Tensor
    place: Tensor

    def __init__(self, grid: tuple[int, int]) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(0, 0))
        self.register_buffer("image", torch.zeros(0, dtype=torch.int32))
        self.register_buffer("cell", torch.zeros(0, dtype=torch.int32))
        self.register_buffer("usual", torch.ones(grid))
        self.register_buffer("place", torch.ones(grid))

    def forward(self, y: Tensor) -> Tensor:
        """Distance of patches (N, h, w, d) to the nearest row, (N, h, w), in units of the usual distance."""
        return nearest(y, self.rows) / self.usual

    def without(self, y: Tensor, images: Collection[int]) -> Tensor:
        """Distance as in `forward`, to the nearest row of all other images.

        Raises:
            UsageError: all rows belong to these images.
        """
        kept = ~torch.isin(self.image, torch.tensor(sorted(images), dtype=torch.int32, device=self.image.device))
        if not kept.any():
            raise UsageError("all rows of the bank belong to the left-out images: give images of more parts")
        return nearest(y, self.rows[kept]) / self.usual

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name in ("rows", "image", "cell"):
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
        size: height and width of the network's input in pixels, multiples of 32; None is 384 × 384 for nearly square
            images, else about 320 × 320 pixels in the proportion of the images.
        resize: `stretch` or `letterbox`.
        backbones: timm names; the maps of several backbones are added.
        layers: feature levels of every backbone; None takes those of stride 8 and 16.
        weights: `pretrained`, `none`, or a folder of weights (see `Backbone`).
        dimensions: principal components of a patch embedding.
        bank_size: rows of the bank of a backbone.
        num_candidates: patches, drawn at random from all training images, that the bank is chosen from.
        num_projected: patches that the principal components are fitted on.
        position_scale: whether distances are divided by their usual value at each place; False, for parts in free
            rotation, divides them by that of their distance from the border only; None is True unless `exact`.
        exact: whether a theorem gives the leave-one-out guarantee: each image chooses its rows alone, the projection is
            random, and there is no position scale. It detects less.
        pooling: `top` scores an image by the mean of its largest cells, `maximum` by the largest one.
        top: share of cells that `top` averages, in (0, 1].
        batch_size: images per step.
        cache_gib: memory in GiB for features of the training images; images beyond it are computed again.
        seed: random seed of all draws.
    """

    supports_leave_one_out = True
    tiling = WindowsOnly("its usual distances belong to places of the whole image")

    def __init__(
        self,
        *,
        size: Sequence[int] | None = None,
        resize: Resize = "stretch",
        backbones: Sequence[str] = ("tf_efficientnet_lite0",),
        layers: Sequence[int] | None = None,
        weights: str = "pretrained",
        dimensions: int = 128,
        bank_size: int = 2000,
        num_candidates: int = 40_000,
        num_projected: int = 20_000,
        position_scale: bool | None = None,
        exact: bool = False,
        pooling: Pooling = "top",
        top: float = 0.01,
        batch_size: int = 8,
        cache_gib: float = 4.0,
        seed: int = 0,
    ) -> None:
        height, width = size or SQUARE
        if height % 32 or width % 32:
            raise UsageError(f"size {height}, {width}: give multiples of 32, e.g. 384, 384")
        if exact and position_scale:
            raise UsageError("exact with position_scale: the scale depends on all images; give one of them")
        if bank_size < 1 or num_candidates < 1 or num_projected < 2:
            raise UsageError(
                f"bank_size {bank_size}, num_candidates {num_candidates}, num_projected {num_projected}:"
                " give 1 or more, and 2 or more projected patches"
            )
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
        num_bytes = 4 * batch_size * self.grid[0] * self.grid[1] * min(bank_size, num_candidates)
        if num_bytes > MAX_BYTES:
            raise UsageError(
                f"bank_size {bank_size}: the distances of {batch_size} images take {num_bytes / 2**30:.1f} GiB, more than"
                f" {MAX_BYTES / 2**30:g}; give a smaller bank_size or batch_size"
            )
        self.embeddings = nn.ModuleList(embeddings)
        self.banks = nn.ModuleList(Bank(self.grid) for _ in embeddings)
        origins = [embedding.backbone.provenance for embedding in embeddings]
        self.provenance = {
            key: "; ".join(o.get(key, "-") for o in origins) for key in {k: 0 for o in origins for k in o}
        }
        self.bank_size, self.num_candidates, self.num_projected = bank_size, num_candidates, num_projected
        self.position_scale = not exact if position_scale is None else position_scale
        self.exact, self.pooling, self.seed = exact, ScorePooling(pooling, top=top), seed
        self._cache = FeatureCache(max_bytes=int(cache_gib * 2**30))

    def training_step(self, batch: Batch, index: int) -> None:
        """Compute nothing: the bank needs all images at once."""

    def configure_optimizers(self) -> None:
        """Return no optimiser."""

    def on_fit_end(self) -> None:
        """Fit the projections, choose the rows, and measure the usual distances."""
        for number, (embedding, _) in enumerate(self._pairs()):
            self.fit_bank(number, partial(self._images, embedding))
            self._cache.clear()
        super().on_fit_end()

    @torch.no_grad()
    def fit_bank(self, number: int, images: Callable[[], Iterable[tuple[str, Tensor]]]) -> None:
        """Fit the projection, the rows and the usual distances of one backbone.

        Args:
            number: number of the backbone.
            images: function that gives path and pooled features (h, w, C) of every training image, each time in one order.
        """
        embedding, bank = self._pairs()[number]
        rng, inside = np.random.default_rng(self.seed), self.inside_cells()
        if not inside.any():
            raise UsageError(f"the region of interest covers no cell of the {self.grid} grid: enlarge it or the size")
        if self.exact:
            embedding.fix(seed=self.seed)
            paths, each = zip(*((path, f[inside]) for path, f in images()), strict=True)
            position = positions(paths)
            rows = [self._rows_of(embedding, f, num=len(paths)) for f in each]
            drawn = Patches.join(rows, [position[path] for path in paths])
        else:
            patches = draw_patches(((path, f[inside]) for path, f in images()), num=self.num_candidates, rng=rng)
            position = positions([path for path, _, _ in patches])
            numbers = [position[path] for path, _, _ in patches]
            share = -(-self.num_projected // len(patches))
            embedding.fit(torch.cat([f[:share] for _, f, _ in patches])[: self.num_projected])
            drawn = Patches.join([(f, cell) for _, f, cell in patches], numbers).thinned(self.num_candidates, rng=rng)
        num, points = len(position), embedding.project(drawn.features.to(self.device)).cpu()
        chosen = torch.arange(len(points)) if self.exact else self._core_set(points)
        places = inside.flatten().nonzero().flatten().cpu()
        bank.rows = points[chosen].to(self.device)
        bank.image = drawn.image[chosen].int().to(self.device)
        bank.cell = places[drawn.cell[chosen]].int().to(self.device)
        bank.usual.fill_(1.0)
        bank.place.fill_(1.0)
        if not self.exact and num >= 2 * NUM_FOLDS:
            fold = torch.from_numpy(rng.permutation(num) % NUM_FOLDS)
            banks = []
            for k in range(NUM_FOLDS):
                others = points[fold[drawn.image] != k]
                banks.append(others[self._core_set(others)].to(self.device))
            distance = torch.stack(
                [nearest(embedding.project(f), banks[int(fold[position[path]])]).cpu() for path, f in images()]
            )
            self.set_usual(number, distance)

    def set_usual(self, number: int, distance: Tensor) -> None:
        """Set the usual distances of one backbone.

        Args:
            number: number of the backbone.
            distance: (n, h, w) distance maps of good images, from banks without these images.
        """
        _, bank = self._pairs()[number]
        usual = usual_distance(distance, self.inside_cells(), power=POWER if self.position_scale else 0.0)
        bank.usual.copy_(usual.usual)
        bank.place.copy_(usual.place)

    def _rows_of(self, embedding: PatchEmbedding, features: Tensor, *, num: int) -> tuple[Tensor, Tensor]:
        """Choose the rows of one image by its own patches (P, C) alone; gives their features and their cells."""
        points = embedding.project(features).cpu().numpy()
        cell = torch.from_numpy(core_set(points, max(1, self.bank_size // num), seed=self.seed))
        return features[cell.to(features.device)], cell

    def _pairs(self) -> list[tuple[PatchEmbedding, Bank]]:
        """Embedding and bank of every backbone."""
        return cast("list[tuple[PatchEmbedding, Bank]]", list(zip(self.embeddings, self.banks, strict=True)))

    def _images(self, embedding: PatchEmbedding) -> Iterator[tuple[str, Tensor]]:
        """Path and pooled features (h, w, C) of every training image."""
        loader: Any = self.trainer.train_dataloader
        for batch in itertools.islice(loader, int(self.trainer.num_training_batches)):

            def compute(batch: Batch = batch) -> list[Tensor]:
                return [embedding.features(self.preprocessed(batch))]

            yield from zip(batch.path, self._cache.lookup(batch.path, compute)[0], strict=True)

    def inside_cells(self) -> Tensor:
        """Cells of the grid (h, w) with more than half of their area in the region of interest."""
        return functional.adaptive_avg_pool2d(self.preprocess.roi[None].float(), self.grid)[0] > 0.5

    def _core_set(self, points: Tensor) -> Tensor:
        return torch.from_numpy(core_set(points.numpy(), self.bank_size, seed=self.seed))

    def anomaly(self, x: Tensor) -> Anomaly:
        """Score patches and pool them.

        Raises:
            UsageError: the bank is empty.
        """
        return self.score_embeddings([embedding(x) for embedding, _ in self._pairs()], size=x.shape[2:])

    def anomaly_without(self, x: Tensor, images: Collection[int]) -> Anomaly:
        """Score patches without the rows of some training images; the projection and the usual distances stay.

        Raises:
            UsageError: the bank is empty, or holds no other rows.
        """
        return self.score_embeddings([embedding(x) for embedding, _ in self._pairs()], size=x.shape[2:], without=images)

    def score_embeddings(
        self, embeddings: Sequence[Tensor], *, size: Sequence[int], without: Collection[int] = ()
    ) -> Anomaly:
        """Score patch embeddings (N, h, w, d) of each backbone.

        Args:
            embeddings: embeddings by backbone.
            size: height and width of the map.
            without: numbers of left-out training images.

        Raises:
            UsageError: the bank is empty, or holds no other rows.
        """
        banks = [bank for _, bank in self._pairs()]
        if not all(bank.rows.numel() for bank in banks):
            raise UsageError("the memory bank is empty: fit it first")
        distances = [
            bank.without(y, without) if without else bank(y) for bank, y in zip(banks, embeddings, strict=True)
        ]
        place = torch.stack([bank.place for bank in banks]).mean(dim=0)
        return self.pooled(torch.stack(distances).sum(dim=0), size, place=place)

    @property
    def leave_one_out_is_exact(self) -> bool:
        """Whether each image's rows, the projection and the brightness are independent of the other images."""
        return self.exact and not self.preprocess.levelled

    def pooled(self, distance: Tensor, size: Sequence[int], *, place: Tensor | None = None) -> Anomaly:
        """Pool scaled distances to scores and maps.

        Args:
            distance: (N, h, w).
            size: height H and width W of the maps.
            place: (h, w) factor of the map's cells; None is 1.

        Returns:
            Scores (N,) and maps (N, H, W).
        """
        inside = self.inside_cells() if self.preprocess.has_roi else None
        if inside is not None:
            least = distance.masked_fill(~inside, torch.inf).amin(dim=(1, 2), keepdim=True)
            distance = torch.where(inside, distance, least)
        cells = smoothed(distance, window=3)
        # `top` averages over 3×3 cells itself
        score = self.pooling(distance if self.pooling.pooling == "top" else cells, inside=inside)
        shown = cells if place is None else cells * place
        enlarged = functional.interpolate(shown[:, None], size, mode="bilinear", align_corners=False)[:, 0]
        return Anomaly(score, self.inside_roi(enlarged))


def _layers(name: str, layers: Sequence[int] | None) -> Sequence[int]:
    if layers is not None:
        return layers
    if name not in LEVELS:
        raise UsageError(f"backbone {name!r}: its levels of stride 8 and 16 are unknown; give --model.layers")
    return LEVELS[name]
