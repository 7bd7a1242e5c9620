"""Frozen features and a classical model of them: one-class SVM, nearest neighbour, Gaussian mixture, principal components.

The patch features are those of K. Roth et al., "Towards Total Recall in Industrial Anomaly Detection" (PatchCore), 2022,
arXiv 2106.08265, section 3.1: levels of a frozen network, averaged over 3×3, brought to one grid and concatenated.
The models are fitted by scikit-learn in one pass and scored by torch:

    one_class_svm       B. Schölkopf et al., "Estimating the Support of a High-Dimensional Distribution", 2001, eq. 3.8
    nearest_neighbour   distance to the nearest patch kept, PatchCore without its coreset and its reweighting
    gmm                 Gaussian mixture by expectation maximisation, full covariances
    pca                 H. Hoffmann, "Kernel PCA for Novelty Detection", 2007, section 2: squared reconstruction error

Notation: f -> feature of a patch, (D,); y -> f standardised and projected, (d,); s -> its score, higher is more anomalous.

What differs, and why: the SVM's decision is sum_i a_i k(y, y_i) - rho, which is -rho wherever y is far from all support
vectors, so that clear defects tie. Here s = -log(sum_i a_i k(y, y_i) / rho): the same ranks and the same boundary at 0, with
the range kept. Only a random sample of the patches is fitted on, so that time and memory have a bound.
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from sklearn.svm import OneClassSVM
from torch import Tensor, nn
from torch.nn import functional

from anomaly.detectors.base import Anomaly, Detector
from anomaly.detectors.tiling_support import Seamless, WindowsOnly
from anomaly.errors import UsageError
from anomaly.nn.backbones import Backbone
from anomaly.nn.batch import Batch
from anomaly.nn.map_scaling import smoothed
from anomaly.nn.preprocess import Preprocess, Resize

Method = Literal["one_class_svm", "nearest_neighbour", "gmm", "pca"]
Matrix = NDArray[np.float64]
MAX_ROWS = 2048
"""Rows that patches are compared with at once: 16 images of 1024 patches take 128 MiB then"""


class PatchModel(nn.Module, ABC):
    """What a model of patches learned, as buffers whose sizes the data decide; empty before it is fitted."""

    def __init__(self, *names: str, min_patches: int) -> None:
        super().__init__()
        self.min_patches = min_patches
        """How many patches a fit needs at least"""
        for name in names:
            self.register_buffer(name, torch.zeros(0))

    @abstractmethod
    def fit(self, y: Matrix, *, seed: int) -> None:
        """Learn from patches (P, d)."""

    @abstractmethod
    def forward(self, y: Tensor) -> Tensor:
        """Score patches (P, d), giving (P,)."""

    @property
    def is_fitted(self) -> bool:
        """Whether anything was learned."""
        return all(held.numel() for held in self.buffers())

    def _learn(self, **values: Matrix) -> None:
        for name, value in values.items():
            setattr(self, name, torch.as_tensor(value, dtype=torch.float32).contiguous())

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name, held in list(self.named_buffers(recurse=False)):
            if prefix + name in state_dict:
                setattr(self, name, held.new_zeros(state_dict[prefix + name].shape))
        super()._load_from_state_dict(state_dict, prefix, *rest)


class SupportVectors(PatchModel):
    """One-class SVM with k(y, y_i) = exp(-gamma |y - y_i|²): s = -log(sum_i a_i k(y, y_i) / rho)."""

    vectors: Tensor
    log_weight: Tensor
    gamma: Tensor

    def __init__(self, *, nu: float) -> None:
        super().__init__("vectors", "log_weight", "gamma", min_patches=2)
        self._nu = nu

    def fit(self, y: Matrix, *, seed: int) -> None:
        """Keep the support vectors y_i, log(a_i / rho) and gamma = 1 / (d · variance)."""
        gamma = 1 / (y.shape[1] * y.var())  # scikit-learn's "scale"
        model = OneClassSVM(kernel="rbf", gamma=gamma, nu=self._nu, cache_size=500).fit(y)
        weight = model.dual_coef_[0] / model.offset_[0]  # a_i / rho
        self._learn(vectors=model.support_vectors_, log_weight=np.log(weight), gamma=np.array([gamma]))

    def forward(self, y: Tensor) -> Tensor:
        """Score patches; 0 is the SVM's own boundary."""
        logs = []
        for vectors, log_weight in zip(
            torch.split(self.vectors, MAX_ROWS), torch.split(self.log_weight, MAX_ROWS), strict=True
        ):
            squares = (y * y).sum(dim=1, keepdim=True) + (vectors * vectors).sum(dim=1) - 2 * y @ vectors.T
            logs.append(torch.logsumexp(log_weight - self.gamma * squares, dim=1))
        return -torch.logsumexp(torch.stack(logs, dim=1), dim=1)


class Bank(PatchModel):
    """Nearest neighbour: s = min_i |y - y_i|."""

    rows: Tensor

    def __init__(self) -> None:
        super().__init__("rows", min_patches=1)

    def fit(self, y: Matrix, *, seed: int) -> None:
        """Keep all patches."""
        self._learn(rows=y)

    def forward(self, y: Tensor) -> Tensor:
        """Find the nearest by |y_i|² - 2 y·y_i, then measure its distance by differences: squares of sums lose digits."""
        distances = []
        for rows in torch.split(self.rows, MAX_ROWS):
            nearest = ((rows * rows).sum(dim=1) - 2 * y @ rows.T).argmin(dim=1)
            distances.append((y - rows.index_select(0, nearest)).square().sum(dim=1))
        return torch.stack(distances, dim=1).amin(dim=1).sqrt()


class Mixture(PatchModel):
    """Gaussian mixture: s = -log sum_k w_k N(y; m_k, S_k) in nats, through the Cholesky factors of the precisions."""

    log_weight: Tensor
    means: Tensor
    roots: Tensor

    def __init__(self, *, num_gaussians: int) -> None:
        super().__init__("log_weight", "means", "roots", min_patches=max(2, num_gaussians))
        self._num_gaussians = num_gaussians

    def fit(self, y: Matrix, *, seed: int) -> None:
        """Keep m_k, L_k with S_k⁻¹ = L_k L_kᵀ, and log w_k + log det L_k - d/2 log 2π."""
        model = GaussianMixture(self._num_gaussians, reg_covar=1e-3, random_state=seed)
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", ConvergenceWarning
            )  # a likelihood that could still rise is one all the same
            model.fit(y)
        roots = model.precisions_cholesky_  # (K, d, d)
        log_det = np.log(np.diagonal(roots, axis1=1, axis2=2)).sum(axis=1)
        log_weight = np.log(model.weights_) + log_det - y.shape[1] / 2 * math.log(2 * math.pi)
        self._learn(log_weight=log_weight, means=model.means_, roots=roots)

    def forward(self, y: Tensor) -> Tensor:
        """Negative log-likelihood of patches."""
        logs = []
        for log_weight, mean, root in zip(self.log_weight, self.means, self.roots, strict=True):
            logs.append(log_weight - 0.5 * ((y - mean) @ root).square().sum(dim=1))
        return -torch.logsumexp(torch.stack(logs, dim=1), dim=1)


class Subspace(PatchModel):
    """Principal components v_j: s = |r|² with r = (y - m) - sum_j v_j v_jᵀ (y - m)."""

    mean: Tensor
    components: Tensor

    def __init__(self, *, num_components: int) -> None:
        super().__init__("mean", "components", min_patches=num_components + 1)
        self._num_components = num_components

    def fit(self, y: Matrix, *, seed: int) -> None:
        """Keep m and v_j."""
        model = PCA(self._num_components, svd_solver="covariance_eigh").fit(y)
        self._learn(mean=model.mean_, components=model.components_)

    def forward(self, y: Tensor) -> Tensor:
        """Squared reconstruction error of patches."""
        centred = y - self.mean
        return (centred - centred @ self.components.T @ self.components).square().sum(dim=1)


class FrozenFeatures(Detector):
    """A classical model of a frozen network's patch features.

    Args:
        size: height and width of the network's input in pixels.
        resize: `stretch` or `letterbox`.
        backbone: a timm model name.
        layers: feature levels; all are brought to the grid of the finest.
        weights: `pretrained`, `none`, or a path (see `Backbone`).
        method: the model of the patches.
        num_patches: how many, drawn at random from all training images, are fitted on; the time of `one_class_svm` grows
            with its square, the time of scoring by `nearest_neighbour` in proportion.
        dimensions: d, to which features are projected at random before the model; 0 leaves all D.
        nu: of `one_class_svm`, bound of the share of training patches outside its boundary, in (0, 1].
        num_gaussians: of `gmm`.
        num_components: principal ones, of `pca`.
        smooth: side in pixels of the averaging window over the map, odd; 1 leaves it.
        batch_size: images per step.
        seed: of the sample, the projection and the mixture's start.
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
        if smooth % 2 == 0:
            raise UsageError(f"smooth {smooth}: the averaging window has an odd side, e.g. {smooth + 1}")
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
            raise UsageError(f"dimensions {dimensions}: the features have {width}; take 0 for all of them, or fewer")
        if method == "pca" and not 1 <= num_components < (dimensions or width):
            raise UsageError(
                f"num_components {num_components}: less than the {dimensions or width} dimensions leaves an error"
            )
        self.model = _model(method, nu=nu, num_gaussians=num_gaussians, num_components=num_components)
        self.num_patches, self.smooth, self.seed = num_patches, smooth, seed
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))
        self._generator = torch.Generator().manual_seed(seed)
        if dimensions:
            self.register_buffer(
                "projection", torch.linalg.qr(torch.randn(width, dimensions, generator=self._generator))[0]
            )
        self.has_projection = dimensions > 0
        self._drawn, self._sample = torch.zeros(0), torch.zeros(0, width)

    def _patches(self, x: Tensor) -> Tensor:
        """Features of the patches of images: (N, 3, size, size) to (N, h, w, D), h and w those of the grid."""
        maps = self.backbone(x)
        grid, levels = maps[self.finest].shape[2:], []
        for level, (_, *shape) in zip(maps, self.backbone.shapes, strict=True):
            pooled = functional.avg_pool2d(level, 3, stride=1, padding=1, count_include_pad=False)
            if tuple(shape) != self.grid:
                pooled = functional.interpolate(pooled, grid, mode="bilinear", align_corners=False)
            levels.append(pooled)
        return torch.cat(levels, dim=1).permute(0, 2, 3, 1)

    def dependence(self, x: Tensor) -> Tensor:
        """The map of a model that takes the mean of each patch."""
        patches = self._patches(x)
        return self._enlarged(patches.mean(dim=3)[:, None], x)

    def _inside(self) -> Tensor:
        """Patches of the grid (h, w) that lie in the region of interest by more than half."""
        return functional.adaptive_avg_pool2d(self.preprocess.roi[None].float(), self.grid)[0] > 0.5

    def training_step(self, batch: Batch, index: int) -> None:
        """Draw patches: each gets a random number, and those with the `num_patches` smallest so far are kept."""
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):  # the features that scoring sees
            patches = self._patches(self.preprocessed(batch))
        inside = self._inside()
        if not inside.any():
            raise UsageError(f"the region of interest covers no patch of the {self.grid} grid: make it or size larger")
        found = patches[:, inside].flatten(0, 1).cpu()
        drawn = torch.cat((self._drawn, torch.rand(len(found), generator=self._generator)))
        kept = drawn.argsort(stable=True)[: self.num_patches]
        self._drawn, self._sample = drawn[kept], torch.cat((self._sample, found))[kept]

    def configure_optimizers(self) -> None:
        """None: nothing descends a gradient."""

    def on_fit_end(self) -> None:
        """Fit the model on the sample.

        Not at the end of the epoch: a fit that goes on from a checkpoint of that moment has no further epoch.

        Raises:
            UsageError: fewer patches than the model has parts.
        """
        found, least = len(self._sample), self.model.min_patches
        if found < least:
            raise UsageError(
                f"{found} patches cannot fit {self.hparams['method']!r}: raise num_patches to {least} or more"
            )
        sample = self._sample.double()
        std = sample.std(dim=0)
        self.mean.copy_(sample.mean(dim=0))
        self.std.copy_(std.clamp(min=max(1e-6, 1e-2 * float(std.mean()))))  # a feature that is silent must not deafen
        y = self._standardised(self._sample.to(self.mean.device))
        self.model.fit(y.double().cpu().numpy(), seed=self.seed)
        self.model.to(self.mean.device)
        self._drawn, self._sample = self._drawn[:0], self._sample[:0]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the sample."""
        checkpoint["sample"] = self._sample

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the sample of a pass that was over; one that was not begins anew, so that each image counts once."""
        loop = checkpoint["loops"]["fit_loop"]
        if loop["epoch_progress"]["current"]["processed"]:
            self._sample = checkpoint["sample"]
        else:
            progress = loop["epoch_loop.batch_progress"]
            progress |= {part: dict.fromkeys(progress[part], 0) for part in ("total", "current")}

    def _standardised(self, patches: Tensor) -> Tensor:
        """Features f (P, D) to y (P, d)."""
        y = (patches - self.mean) / self.std
        return y @ self.projection if self.has_projection else y

    def anomaly(self, x: Tensor) -> Anomaly:
        """Score patches, enlarge their scores to the map, smooth it; score is its maximum.

        Raises:
            UsageError: it was not fitted.
        """
        if not self.model.is_fitted:
            raise UsageError(f"{self.hparams['method']!r} has learned from no image yet: fit it first")
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


def _model(method: Method, *, nu: float, num_gaussians: int, num_components: int) -> PatchModel:
    if method == "one_class_svm":
        return SupportVectors(nu=nu)
    if method == "nearest_neighbour":
        return Bank()
    if method == "gmm":
        return Mixture(num_gaussians=num_gaussians)
    return Subspace(num_components=num_components)
