"""A classical model of frozen features: one-class SVM, nearest neighbour, Gaussian mixture or principal components.

Patch features: K. Roth et al., "Towards Total Recall in Industrial Anomaly Detection" (PatchCore), 2022, arXiv 2106.08265,
section 3.1: levels of a frozen network, averaged over 3×3, resized to one grid and concatenated.
scikit-learn fits the models in one pass, and torch scores:

    one_class_svm       B. Schölkopf et al., "Estimating the Support of a High-Dimensional Distribution", 2001, eq. 3.8
    nearest_neighbour   distance to the nearest stored patch: PatchCore without reweighting
    gmm                 Gaussian mixture by expectation maximisation, full covariances
    pca                 H. Hoffmann, "Kernel PCA for Novelty Detection", 2007, section 2: squared reconstruction error

Notation: f -> feature of a patch, (D,); y -> f standardised and projected, (d,); s -> its score, higher is more anomalous.

What differs, and why: the SVM's decision is sum_i a_i k(y, y_i) - rho. It is -rho far from all support vectors, so that clear
defects tie. Here s = -log(sum_i a_i k(y, y_i) / rho), with the same ranks, the same boundary at 0, and no ties. The fit uses a
random sample of the patches, which bounds time and memory. The average over 3×3 counts the zeros around a level. A mean of
fewer cells varies more, and puts the maxima of good images at the border. The score is the mean of the largest patch scores,
not the maximum. Drawn defects chose both.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from anomaly.detectors._patch_models import Bank, Method, patch_model
from anomaly.detectors.base import Anomaly, Detector
from anomaly.detectors.tiling_support import Seamless, WindowsOnly
from anomaly.errors import UsageError
from anomaly.nn.backbones import Backbone, default_backbone
from anomaly.nn.batch import Batch
from anomaly.nn.map_scaling import check_window, smoothed
from anomaly.nn.preprocess import Preprocess, Resize
from anomaly.nn.score_pooling import Pooling, ScorePooling

NUM_CANDIDATES, NUM_PATCHES = 40_000, 4096
"""Patches that a core set is chosen from, and patches of the other fits"""


class FrozenFeatures(Detector):
    """A classical model of a frozen network's patch features.

    Args:
        size: height and width of the network's input in pixels.
        resize: resizing rule, `stretch` or `letterbox`.
        backbone: timm model name; None is `resnet18`, or `tf_efficientnet_lite0` where only its weights are installed.
        layers: feature levels of the backbone, resized to the grid of the finest level.
        weights: weights of the backbone: `pretrained`, `none` (random), or the path of a `.safetensors` file or its folder.
        margin: width in pixels of the reflected surroundings of the image, a multiple of the coarsest level's stride; None is
            about 32 for a convolutional backbone, else 0.
        neighbourhood: side in cells of the averaging window over each level, odd; 1 for no averaging.
        count_padding: whether the zeros outside a level count in that average.
        method: model of the patches.
        num_patches: number of random patches from all training images in the fit; fit time grows quadratically for method
            `one_class_svm`; None is 40,000 for the core set of `nearest_neighbour`, else 4,096.
        bank_size: rows of method `nearest_neighbour`, a greedy core set of the patches.
        dimensions: number of dimensions d of a random projection before the model; 0 for no projection.
        nu: largest share of training patches outside the boundary of method `one_class_svm`, in (0, 1].
        num_gaussians: number of components of method `gmm`.
        num_components: number of principal components of method `pca`.
        smooth: side in pixels of the averaging window over the anomaly map, odd; 1 for no averaging.
        pooling: pooling to the score: the map's `maximum`, or `top`, the mean of the largest patch scores.
        top: share of the patches that pooling `top` averages, in (0, 1].
        exact: whether a theorem gives the leave-one-out guarantee of method `nearest_neighbour`: each image gives the same
            number of patches, without core set and standardisation. It detects less.
        batch_size: images per optimisation step.
        seed: random seed of the sample, of the projection and of the models.
    """

    mean: Tensor
    std: Tensor
    projection: Tensor
    image: Tensor
    """(M,) int32, image of each row of method `nearest_neighbour`: its position among the training images, by path"""

    def __init__(
        self,
        *,
        size: int = 256,
        resize: Resize = "stretch",
        backbone: str | None = None,
        layers: Sequence[int] = (2, 3),
        weights: str = "pretrained",
        margin: int | None = 0,
        neighbourhood: int = 3,
        count_padding: bool = True,
        method: Method = "nearest_neighbour",
        num_patches: int | None = None,
        bank_size: int = 2000,
        dimensions: int = 0,
        nu: float = 0.05,
        num_gaussians: int = 8,
        num_components: int = 128,
        smooth: int = 9,
        pooling: Pooling = "top",
        top: float = 0.02,
        exact: bool = False,
        batch_size: int = 8,
        seed: int = 0,
    ) -> None:
        check_window(smooth)
        if neighbourhood < 1 or neighbourhood % 2 == 0:
            raise UsageError(f"neighbourhood {neighbourhood}: give an odd number of cells, e.g. 3")
        if bank_size < 1:
            raise UsageError(f"bank_size {bank_size}: give 1 or more, e.g. 2000")
        if exact and method != "nearest_neighbour":
            raise UsageError(f"exact with method {method}: only nearest_neighbour can leave an image out")
        if num_patches is None:
            num_patches = NUM_CANDIDATES if method == "nearest_neighbour" and not exact else NUM_PATCHES
        backbone, reason = default_backbone(backbone, default="resnet18", weights=weights)
        network = Backbone(backbone, layers=layers, size=(size, size), weights=weights, margin=margin)
        margin = network.margin
        preprocess = Preprocess(size=(size, size), resize=resize, mean=network.mean, std=network.std)
        super().__init__(preprocess=preprocess, epochs=1, batch_size=batch_size)
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.backbone, self.provenance = network, network.provenance | reason
        self.grid = max((h, w) for _, h, w in network.shapes)
        self.finest = [shape[1:] for shape in network.shapes].index(self.grid)
        self.pooling = ScorePooling(pooling, top=top)
        self.tiling = _tiling_support(network, size=size, pooling=pooling)
        width = sum(channels for channels, _, _ in network.shapes)
        if not 0 <= dimensions <= width:
            raise UsageError(
                f"dimensions {dimensions}: the features have {width}; use 0 for all of them, or a smaller number"
            )
        if method == "pca" and not 1 <= num_components < (dimensions or width):
            raise UsageError(
                f"num_components {num_components}: use fewer than the {dimensions or width} dimensions of the features"
            )
        self.model = patch_model(
            method,
            nu=nu,
            num_gaussians=num_gaussians,
            num_components=num_components,
            bank_size=num_patches if exact else bank_size,
        )
        self.supports_leave_one_out = method == "nearest_neighbour"
        self.neighbourhood, self.count_padding, self.exact = neighbourhood, count_padding, exact
        self.num_patches, self.smooth, self.seed = num_patches, smooth, seed
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))
        self.register_buffer("image", torch.zeros(0, dtype=torch.int32))
        self._generator = torch.Generator().manual_seed(seed)
        if dimensions:
            self.register_buffer(
                "projection", torch.linalg.qr(torch.randn(width, dimensions, generator=self._generator))[0]
            )
        self.has_projection = dimensions > 0
        self._clear_sample()

    def _clear_sample(self) -> None:
        self._keys, self._sample = torch.zeros(0), torch.zeros(0, len(self.mean))
        self._origin = torch.zeros(0, dtype=torch.int64)
        self._paths: list[str] = []

    def _patches(self, x: Tensor) -> Tensor:
        """Patch features (N, h, w, D) of inputs (N, 3, H, W), where (h, w) is the grid."""
        side, outside = self.neighbourhood, self.count_padding
        # averaged with the surroundings: a mean of fewer cells varies more
        maps = self.backbone.cut(
            [
                functional.avg_pool2d(level, side, stride=1, padding=side // 2, count_include_pad=outside)
                for level in self.backbone.surrounded(x)
            ]
        )
        grid, levels = maps[self.finest].shape[2:], []
        for pooled, (_, *shape) in zip(maps, self.backbone.shapes, strict=True):
            if tuple(shape) != self.grid:
                pooled = functional.interpolate(pooled, grid, mode="bilinear", align_corners=False)
            levels.append(pooled)
        return torch.cat(levels, dim=1).permute(0, 2, 3, 1)

    def dependence(self, x: Tensor) -> Tensor:
        """Compute a map from the mean feature of each patch."""
        patches = self._patches(x)
        return self._enlarged(patches.mean(dim=3), x)

    def _inside(self) -> Tensor:
        """Mask (h, w) of patches with more than half of their area in the region of interest."""
        return functional.adaptive_avg_pool2d(self.preprocess.roi[None].float(), self.grid)[0] > 0.5

    def training_step(self, batch: Batch, index: int) -> None:
        """Sample patches: each gets a random number, and the `num_patches` smallest numbers stay.

        With `exact`, the smallest numbers of each image stay.
        """
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):  # equal to the features in scoring
            patches = self._patches(self.preprocessed(batch))
        inside = self._inside()
        if not inside.any():
            raise UsageError(
                f"the region of interest covers no patch of the {self.grid} grid: use a larger region or a larger size"
            )
        each = patches[:, inside].cpu()  # (N, P, D)
        drawn = torch.rand(each.shape[0] * each.shape[1], generator=self._generator).view(each.shape[:2])
        origin = (len(self._paths) + torch.arange(len(each)))[:, None].expand_as(drawn)
        self._paths += batch.path
        if self.exact:
            kept = drawn.argsort(dim=1, stable=True)[:, : max(1, self.num_patches // self._most_images())]
            each = each.gather(1, kept[:, :, None].expand(-1, -1, each.shape[2]))
            drawn, origin = drawn.gather(1, kept), origin.gather(1, kept)
        keys = torch.cat((self._keys, drawn.flatten()))
        kept = torch.arange(len(keys)) if self.exact else keys.argsort(stable=True)[: self.num_patches]
        self._keys, self._sample = keys[kept], torch.cat((self._sample, each.flatten(0, 1)))[kept]
        self._origin = torch.cat((self._origin, origin.flatten()))[kept]

    def _most_images(self) -> int:
        """Number of training images, up to a full last batch."""
        return int(self.trainer.num_training_batches) * self.batch_size

    def configure_optimizers(self) -> None:
        """No optimiser: training uses no gradient."""

    def on_fit_end(self) -> None:
        """Fit the model on the sample.

        It runs after the last epoch, because a fit resumed from a checkpoint at that moment has no further epoch.

        Raises:
            UsageError: too few patches for the model.
        """
        found, least = len(self._sample), self.model.min_patches
        if found < least:
            raise UsageError(
                f"{found} patches are too few for method {self.hparams['method']!r}: set num_patches to {least} or more"
            )
        if not self.exact:
            sample = self._sample.double()
            std = sample.std(dim=0)
            self.mean.copy_(sample.mean(dim=0))
            self.std.copy_(
                std.clamp(min=max(1e-6, 1e-2 * float(std.mean())))
            )  # a nearly constant feature must not dominate
        y = self._standardised(self._sample.to(self.mean.device))
        self.model.fit(y.double().cpu().numpy(), seed=self.seed)
        self.model.to(self.mean.device)
        if isinstance(self.model, Bank):
            self.image = _numbers(self._paths)[self._origin[self.model.patch]].to(self.mean.device)
        self._clear_sample()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the sample."""
        checkpoint["sample"], checkpoint["origin"], checkpoint["paths"] = self._sample, self._origin, self._paths

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the sample of a completed pass; restart an incomplete pass, so that each image counts once."""
        loop = checkpoint["loops"]["fit_loop"]
        if loop["epoch_progress"]["current"]["processed"]:
            self._sample, self._origin, self._paths = (checkpoint[key] for key in ("sample", "origin", "paths"))
        else:
            progress = loop["epoch_loop.batch_progress"]
            progress |= {part: dict.fromkeys(progress[part], 0) for part in ("total", "current")}

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        # models of earlier versions have no image numbers
        image = state_dict.setdefault(prefix + "image", torch.zeros(0, dtype=torch.int32))
        self.image = self.image.new_zeros(image.shape)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _standardised(self, patches: Tensor) -> Tensor:
        """Standardise and project features f (P, D), giving y (P, d)."""
        y = (patches - self.mean) / self.std
        return y @ self.projection if self.has_projection else y

    def anomaly(self, x: Tensor) -> Anomaly:
        """Score patches, enlarge their scores to a map, smooth it, and pool it to the score.

        Raises:
            UsageError: the model is not fitted.
        """
        y, shape = self._embedded(x)
        return self._pooled(self.model(y).view(shape), x)

    def anomaly_without(self, x: Tensor, images: Collection[int]) -> Anomaly:
        """Score patches without the rows of some training images; the standardisation stays.

        Raises:
            UsageError: the model is not fitted, has no rows, or no rows of other images.
        """
        if not isinstance(self.model, Bank):
            return super().anomaly_without(x, images)
        y, shape = self._embedded(x)
        if len(self.image) != len(self.model.rows):
            raise UsageError("the fitted model does not name the image of each row: fit it again")
        kept = ~torch.isin(self.image, torch.tensor(sorted(images), dtype=torch.int32, device=self.image.device))
        if not kept.any():
            raise UsageError("all rows belong to the left-out images: give images of more parts")
        return self._pooled(self.model.nearest(y, self.model.rows[kept]).view(shape), x)

    @property
    def leave_one_out_is_exact(self) -> bool:
        """Whether the rows of each image, the projection and the brightness are independent of the other images."""
        return self.exact and not self.preprocess.levelled

    def _embedded(self, x: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
        """Standardised patches (N·h·w, d) of inputs, and the shape (N, h, w)."""
        if not self.model.is_fitted:
            raise UsageError(f"the model {self.hparams['method']!r} is not fitted: train it first")
        patches = self._patches(x)
        return self._standardised(patches.flatten(0, 2)), (-1, *patches.shape[1:3])

    def _pooled(self, scores: Tensor, x: Tensor) -> Anomaly:
        """Scores (N,) and maps (N, H, W) of x's size from patch scores (N, h, w)."""
        inside = self._inside() if self.preprocess.has_roi else None
        if inside is not None:
            least = scores.masked_fill(~inside, torch.inf).amin(dim=(1, 2), keepdim=True)
            scores = torch.where(inside, scores, least)
        anomaly_map = self.inside_roi(self._enlarged(scores, x))
        if self.pooling.pooling == "maximum":
            return Anomaly(self.pooled_score(anomaly_map), anomaly_map)
        return Anomaly(self.pooling(scores, inside=inside), anomaly_map)

    def _enlarged(self, scores: Tensor, x: Tensor) -> Tensor:
        """Scores of patches (N, h, w) as a smoothed map (N, H, W) of x's size."""
        enlarged = functional.interpolate(scores[:, None], x.shape[2:], mode="bilinear", align_corners=False)
        return smoothed(enlarged[:, 0], window=self.smooth)


def _tiling_support(network: Backbone, *, size: int, pooling: Pooling) -> Seamless | WindowsOnly:
    if network.is_transformer:
        return WindowsOnly("each patch of its backbone attends to all others (use a convolutional backbone)")
    needed = ["margin 0"] * (network.margin > 0) + ["pooling maximum"] * (pooling != "maximum")
    if needed:
        return WindowsOnly(f"its reflected border or its score needs the whole image (use {' and '.join(needed)})")
    return Seamless(stride=size // min(h for _, h, _ in network.shapes))


def _numbers(paths: Sequence[str]) -> Tensor:
    """Position of each image among all images, ordered by path, (n,) int32."""
    position = {path: n for n, path in enumerate(sorted(paths, key=lambda path: Path(path).as_posix()))}
    return torch.tensor([position[path] for path in paths], dtype=torch.int32)
