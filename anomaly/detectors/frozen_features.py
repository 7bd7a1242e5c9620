"""A classical model of frozen features: one-class SVM, nearest neighbour, Gaussian mixture or principal components.

Patch features: K. Roth et al., "Towards Total Recall in Industrial Anomaly Detection" (PatchCore), 2022, arXiv 2106.08265,
section 3.1: levels of a frozen network, averaged over 3×3, resized to one grid and concatenated.
scikit-learn fits the models in one pass, and torch scores:

    one_class_svm       B. Schölkopf et al., "Estimating the Support of a High-Dimensional Distribution", 2001, eq. 3.8
    nearest_neighbour   distance to the nearest stored patch: PatchCore without coreset and reweighting
    gmm                 Gaussian mixture by expectation maximisation, full covariances
    pca                 H. Hoffmann, "Kernel PCA for Novelty Detection", 2007, section 2: squared reconstruction error

Notation: f -> feature of a patch, (D,); y -> f standardised and projected, (d,); s -> its score, higher is more anomalous.

What differs, and why: the SVM's decision is sum_i a_i k(y, y_i) - rho. It is -rho far from all support vectors, so that clear
defects tie. Here s = -log(sum_i a_i k(y, y_i) / rho), with the same ranks, the same boundary at 0, and no ties. The fit uses a
random sample of the patches, which bounds time and memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from anomaly.detectors._patch_models import Method, patch_model
from anomaly.detectors.base import Anomaly, Detector
from anomaly.detectors.tiling_support import Seamless, WindowsOnly
from anomaly.errors import UsageError
from anomaly.nn.backbones import Backbone
from anomaly.nn.batch import Batch
from anomaly.nn.map_scaling import check_window, smoothed
from anomaly.nn.preprocess import Preprocess, Resize


class FrozenFeatures(Detector):
    """A classical model of a frozen network's patch features.

    Args:
        size: height and width of the network's input in pixels.
        resize: resizing rule, `stretch` or `letterbox`.
        backbone: timm model name.
        layers: feature levels of the backbone, resized to the grid of the finest level.
        weights: weights of the backbone: `pretrained`, `none` (random), or the path of a `.safetensors` file or its folder.
        method: model of the patches.
        num_patches: number of random patches from all training images in the fit; fit time grows quadratically for method
            `one_class_svm`, scoring time linearly for `nearest_neighbour`.
        dimensions: number of dimensions d of a random projection before the model; 0 for no projection.
        nu: largest share of training patches outside the boundary of method `one_class_svm`, in (0, 1].
        num_gaussians: number of components of method `gmm`.
        num_components: number of principal components of method `pca`.
        smooth: side in pixels of the averaging window over the anomaly map, odd; 1 for no averaging.
        batch_size: images per optimisation step.
        seed: random seed of the sample, of the projection and of method `gmm`.
    """

    mean: Tensor
    std: Tensor
    projection: Tensor

    def __init__(
        self,
        *,
        size: int = 256,
        resize: Resize = "stretch",
        backbone: str = "resnet18",
        layers: Sequence[int] = (2, 3),
        weights: str = "pretrained",
        method: Method = "nearest_neighbour",
        num_patches: int = 4096,
        dimensions: int = 0,
        nu: float = 0.05,
        num_gaussians: int = 8,
        num_components: int = 128,
        smooth: int = 9,
        batch_size: int = 8,
        seed: int = 0,
    ) -> None:
        check_window(smooth)
        network = Backbone(backbone, layers=layers, size=(size, size), weights=weights)
        preprocess = Preprocess(size=(size, size), resize=resize, mean=network.mean, std=network.std)
        super().__init__(preprocess=preprocess, epochs=1, batch_size=batch_size)
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.backbone, self.provenance = network, network.provenance
        self.grid = max((h, w) for _, h, w in network.shapes)
        self.finest = [shape[1:] for shape in network.shapes].index(self.grid)
        self.tiling = (
            WindowsOnly("each patch of its backbone attends to all others (use a convolutional backbone)")
            if network.is_transformer
            else Seamless(stride=size // min(h for _, h, _ in network.shapes))
        )
        width = sum(channels for channels, _, _ in network.shapes)
        if not 0 <= dimensions <= width:
            raise UsageError(
                f"dimensions {dimensions}: the features have {width}; use 0 for all of them, or a smaller number"
            )
        if method == "pca" and not 1 <= num_components < (dimensions or width):
            raise UsageError(
                f"num_components {num_components}: use fewer than the {dimensions or width} dimensions of the features"
            )
        self.model = patch_model(method, nu=nu, num_gaussians=num_gaussians, num_components=num_components)
        self.num_patches, self.smooth, self.seed = num_patches, smooth, seed
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))
        self._generator = torch.Generator().manual_seed(seed)
        if dimensions:
            self.register_buffer(
                "projection", torch.linalg.qr(torch.randn(width, dimensions, generator=self._generator))[0]
            )
        self.has_projection = dimensions > 0
        self._keys, self._sample = torch.zeros(0), torch.zeros(0, width)

    def _patches(self, x: Tensor) -> Tensor:
        """Patch features (N, h, w, D) of inputs (N, 3, H, W), where (h, w) is the grid."""
        maps = self.backbone(x)
        grid, levels = maps[self.finest].shape[2:], []
        for level, (_, *shape) in zip(maps, self.backbone.shapes, strict=True):
            pooled = functional.avg_pool2d(level, 3, stride=1, padding=1, count_include_pad=False)
            if tuple(shape) != self.grid:
                pooled = functional.interpolate(pooled, grid, mode="bilinear", align_corners=False)
            levels.append(pooled)
        return torch.cat(levels, dim=1).permute(0, 2, 3, 1)

    def dependence(self, x: Tensor) -> Tensor:
        """Compute a map from the mean feature of each patch."""
        patches = self._patches(x)
        return self._enlarged(patches.mean(dim=3)[:, None], x)

    def _inside(self) -> Tensor:
        """Mask (h, w) of patches with more than half of their area in the region of interest."""
        return functional.adaptive_avg_pool2d(self.preprocess.roi[None].float(), self.grid)[0] > 0.5

    def training_step(self, batch: Batch, index: int) -> None:
        """Sample patches: each gets a random number, and the `num_patches` smallest numbers stay."""
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):  # equal to the features in scoring
            patches = self._patches(self.preprocessed(batch))
        inside = self._inside()
        if not inside.any():
            raise UsageError(
                f"the region of interest covers no patch of the {self.grid} grid: use a larger region or a larger size"
            )
        found = patches[:, inside].flatten(0, 1).cpu()
        keys = torch.cat((self._keys, torch.rand(len(found), generator=self._generator)))
        kept = keys.argsort(stable=True)[: self.num_patches]
        self._keys, self._sample = keys[kept], torch.cat((self._sample, found))[kept]

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
        sample = self._sample.double()
        std = sample.std(dim=0)
        self.mean.copy_(sample.mean(dim=0))
        self.std.copy_(
            std.clamp(min=max(1e-6, 1e-2 * float(std.mean())))
        )  # a nearly constant feature must not dominate
        y = self._standardised(self._sample.to(self.mean.device))
        self.model.fit(y.double().cpu().numpy(), seed=self.seed)
        self.model.to(self.mean.device)
        self._keys, self._sample = self._keys[:0], self._sample[:0]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the sample."""
        checkpoint["sample"] = self._sample

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the sample of a completed pass; restart an incomplete pass, so that each image counts once."""
        loop = checkpoint["loops"]["fit_loop"]
        if loop["epoch_progress"]["current"]["processed"]:
            self._sample = checkpoint["sample"]
        else:
            progress = loop["epoch_loop.batch_progress"]
            progress |= {part: dict.fromkeys(progress[part], 0) for part in ("total", "current")}

    def _standardised(self, patches: Tensor) -> Tensor:
        """Standardise and project features f (P, D), giving y (P, d)."""
        y = (patches - self.mean) / self.std
        return y @ self.projection if self.has_projection else y

    def anomaly(self, x: Tensor) -> Anomaly:
        """Score patches, enlarge their scores to a map, and smooth it; the score is the map's maximum.

        Raises:
            UsageError: the model is not fitted.
        """
        if not self.model.is_fitted:
            raise UsageError(f"the model {self.hparams['method']!r} is not fitted: train it first")
        patches = self._patches(x)
        height, width = patches.shape[1:3]
        scores = self.model(self._standardised(patches.flatten(0, 2))).view(-1, 1, height, width)
        if self.preprocess.has_roi:
            inside = self._inside()
            least = scores.masked_fill(~inside, torch.inf).amin(dim=(2, 3), keepdim=True)
            scores = torch.where(inside, scores, least)
        anomaly_map = self.inside_roi(self._enlarged(scores, x))
        return Anomaly(anomaly_map.amax(dim=(1, 2)), anomaly_map)

    def _enlarged(self, scores: Tensor, x: Tensor) -> Tensor:
        """Scores of patches (N, 1, h, w) as a smoothed map (N, H, W) of x's size."""
        enlarged = functional.interpolate(scores, x.shape[2:], mode="bilinear", align_corners=False)
        return smoothed(enlarged[:, 0], window=self.smooth)
