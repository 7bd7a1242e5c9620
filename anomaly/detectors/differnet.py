"""DifferNet: a normalizing flow on globally averaged features of several scales.

M. Rudolph et al., "Same Same But DifferNet: Semi-Supervised Defect Detection with Normalizing Flows", WACV 2021,
arXiv 2008.12577.

Notation: x -> image (N, 3, h, w); K -> number of rotations; y -> feature vector of three scales (N, D); z -> its latent
(N, D); loss -> (|z|²/2 - log |det dz/dy|) / D, the negative log-likelihood per feature.

As in the paper: frozen backbone at three scales, global averages, eight couplings, the loss, the score (the mean of z² over
rotations), and the map. The map is the derivative of the loss with respect to the pixels: its absolute value is averaged over
channels, rotated back, averaged over rotations and blurred.
What differs, and why:
* Training uses a fixed set of rotations, so that features are computed once, not once per epoch (`augment: random` is the
  paper's way).
* The learning rate rises shortly and follows one cosine to zero, so that the last epoch has converged.
* The flow starts with a whitening linear step, because a short training fails without it. Its subnets are smooth and their
  inputs are bounded (see `coupling_1d`).
* The smaller scales are 2×2 means.
* The map takes absolute values before the blur, and it is not squared, which keeps the ranks.
* The map is divided by its typical value at each pixel on good training images. Dark flat regions change the loss on every
  part.
* The derivative is written by hand, so that the exported graph contains it. Corners of the backbone are rounded in it, so that
  all runtimes agree (see `input_gradient`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.nn import functional

from anomaly.detectors.base import Anomaly, Detector
from anomaly.detectors.tiling_support import WindowsOnly
from anomaly.errors import UsageError
from anomaly.nn.backbones import Backbone, default_backbone
from anomaly.nn.batch import Batch
from anomaly.nn.coupling_1d import VectorFlow
from anomaly.nn.feature_cache import FeatureCache
from anomaly.nn.input_gradient import InputGradient
from anomaly.nn.optim import one_cycle_adam
from anomaly.nn.preprocess import Preprocess, Resize
from anomaly.nn.rotation import equally_spaced, rotate
from anomaly.nn.score_pooling import Pooling, ScorePooling

Augment = Literal["fixed", "random"]
NUM_SCALES = 3
SIGMA = 3.0
"""Standard deviation in pixels of the blur of the derivative"""
NUM_TYPICAL = 48
"""Approximate number of training images for the typical map"""
CELL = 4
"""Side in pixels of a cell of pooling `top`"""
FLOOR = 0.3
"""Share of the image's mean that is added to the typical map, so that insensitive pixels do not dominate"""


class DifferNet(Detector):
    """DifferNet on a CNN.

    Args:
        size: side of the network's square input at the largest scale in pixels, a multiple of 4.
        resize: resizing rule, `stretch` or `letterbox`.
        backbone: name of a timm CNN, or torchvision's `alexnet` (in the paper) or `squeezenet1_1`; None is `resnet18`, or
            `tf_efficientnet_lite0` where only its weights are installed.
        layers: feature level of the backbone, exactly one.
        weights: weights of the backbone: `pretrained`, `none` (random), or the path of a `.safetensors` file or its folder.
        num_rotations: number of equally spaced rotations in a score; 1 for aligned parts.
        train_rotations: number of rotations of each training image per step.
        augment: rotations in training: `fixed` (equally spaced, with cached features) or `random` (new ones in each step).
        num_steps: number of couplings.
        hidden: units in each hidden layer of a coupling; 2048 in the paper.
        score: image score: `latent`, the paper's mean of z², or `map`, pooled from the map.
        pooling: pooling of the map to the score: `maximum`, or `top`, the mean of its largest cells.
        top: share of the cells that pooling `top` averages, in (0, 1].
        learning_rate: highest learning rate of Adam.
        weight_decay: L2 penalty of Adam.
        epochs: passes over the training images.
        batch_size: images per optimisation step.
        standardise: scaling of each pixel of the anomaly map by its mean over good training images.
        cache_gib: memory in GiB for features that stay in memory between epochs; 0 computes them each time.
        seed: random seed of the rotations of augment `random`.
    """

    tiling = WindowsOnly("its features are means over the whole input")
    kernel: Tensor
    typical: Tensor

    def __init__(
        self,
        *,
        size: int = 256,
        resize: Resize = "stretch",
        backbone: str | None = None,
        layers: Sequence[int] = (3,),
        weights: str = "pretrained",
        num_rotations: int = 4,
        train_rotations: int = 4,
        augment: Augment = "fixed",
        num_steps: int = 8,
        hidden: int = 128,
        score: Literal["latent", "map"] = "latent",
        pooling: Pooling = "maximum",
        top: float = 0.02,
        learning_rate: float = 5e-4,
        weight_decay: float = 1e-5,
        epochs: int = 12,
        batch_size: int = 24,
        standardise: bool = True,
        cache_gib: float = 1.0,
        seed: int = 0,
    ) -> None:
        if size % 4:
            raise UsageError(f"size {size} cannot be halved twice: use a multiple of 4, e.g. {size - size % 4 + 4}")
        if len(layers) != 1:
            raise UsageError(
                f"layers {list(layers)}: DifferNet needs exactly one feature level, e.g. {list(layers)[-1:] or [3]}"
            )
        if min(num_rotations, train_rotations) < 1:
            raise UsageError(
                f"num_rotations {num_rotations}, train_rotations {train_rotations}: use at least 1 for both"
            )
        backbone, reason = default_backbone(backbone, default="resnet18", weights=weights)
        network = Backbone(backbone, layers=layers, size=(size, size), weights=weights)
        super().__init__(
            preprocess=Preprocess(size=(size, size), resize=resize, mean=network.mean, std=network.std),
            epochs=epochs,
            batch_size=batch_size,
        )
        self.save_hyperparameters()
        self.backbone = network
        self.provenance = network.provenance | reason
        self._network = InputGradient(network.network, size=(size // 4, size // 4))
        self.dim = NUM_SCALES * network.shapes[0][0]
        self.flow = VectorFlow(self.dim, num_steps=num_steps, hidden=hidden, clamp=3.0)
        self.angles = equally_spaced(num_rotations)
        self.train_rotations = train_rotations
        self.augment = augment
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.standardise = standardise
        self.score, self.pooling = score, ScorePooling(pooling, top=top, cell=CELL)
        self.register_buffer("typical", torch.ones(size, size))
        self._cache = FeatureCache(max_bytes=int(cache_gib * 2**30))
        self._generator = torch.Generator().manual_seed(seed)
        reach = int(4 * SIGMA)
        at = torch.arange(-reach, reach + 1, dtype=torch.float32)
        kernel = torch.exp(-(at**2) / (2 * SIGMA**2))
        self.register_buffer("kernel", kernel / kernel.sum(), persistent=False)

    def _rotated(self, x: Tensor, degrees: float) -> Tensor:
        """Rotate the network's input, with black outside."""
        if degrees % 90 == 0:
            return rotate(x, degrees)
        black = -self.preprocess.mean / self.preprocess.std
        return rotate(x - black, degrees) + black

    def _features(self, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Feature vectors y (N, D) of x (N, 3, h, w), and the pullback from g_y to g_x."""
        averages, backs = [], []
        scaled = x
        for scale in range(NUM_SCALES):
            if scale:
                scaled = functional.avg_pool2d(scaled, 2)  # equal to bilinear interpolation to half the size
            level, back = self._network(scaled)
            averages.append(level.mean(dim=(2, 3)))
            backs.append((level, back))

        def pullback(g: Tensor) -> Tensor:
            g_x = torch.zeros((), device=g.device)
            for (level, back), share in reversed(list(zip(backs, g.chunk(NUM_SCALES, dim=1), strict=True))):
                g_level = (share / (level.shape[2] * level.shape[3]))[:, :, None, None].expand_as(level)
                if g_x.dim():  # gradient of the next smaller scale
                    g_x = functional.interpolate(g_x / 4, scale_factor=2.0, mode="nearest")
                g_x = back(g_level) + g_x
            return g_x

        return torch.cat(averages, dim=1), pullback

    def _training_features(self, batch: Batch) -> Tensor:
        """Feature vectors of all rotations of a batch, (N·rotations, D)."""

        def compute() -> list[Tensor]:
            x = self.preprocessed(batch)
            if self.augment == "fixed":
                rotated = (self._rotated(x, angle) for angle in equally_spaced(self.train_rotations))
            else:
                rotated = (self._rotated_at_random(x) for _ in range(self.train_rotations))
            return [torch.stack([self._features(r)[0] for r in rotated], dim=1)]

        # in full precision, equal to the features in calibration and export
        with torch.autocast(self.device.type, enabled=False), torch.no_grad():
            (y,) = self._cache.lookup(batch.path, compute) if self.augment == "fixed" else compute()
        return y.flatten(0, 1)

    def _rotated_at_random(self, x: Tensor) -> Tensor:
        angles = 360 * torch.rand(len(x), generator=self._generator)
        return torch.cat([self._rotated(x[n : n + 1], float(angle)) for n, angle in enumerate(angles)])

    def on_train_start(self) -> None:
        """Compute (and cache) all training features, and initialise the whitening with them."""
        if not self.flow.is_initialized:
            loader: Any = self.trainer.train_dataloader
            self.flow.initialize(torch.cat([self._training_features(batch) for batch in loader]))

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """Compute the negative log-likelihood per feature."""
        y = self._training_features(batch)
        if not self.flow.is_initialized:  # without a trainer, from the first batch
            self.flow.initialize(y)
        z, log_det = self.flow(y)
        loss: Tensor = (0.5 * (z * z).sum(dim=1) - log_det).mean() / self.dim
        self.log("nll", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Adam as in the paper, with a learning rate that rises over 15 % of the steps, then follows one cosine to zero."""
        return one_cycle_adam(
            self.flow.parameters(),
            num_steps=self.trainer.estimated_stepping_batches,
            learning_rate=self.learning_rate,
            betas=(0.8, 0.8),
            eps=1e-4,
            weight_decay=self.weight_decay,
        )

    @torch.no_grad()
    def on_train_end(self) -> None:
        """Compute the typical map: the mean map of some training images, with the final weights."""
        if not self.standardise:
            return
        self.eval()
        total, num = torch.zeros_like(self.typical), 0
        for x in self.training_inputs():
            total += torch.cat([self._sensitivity(one[None])[1] for one in x]).sum(dim=0)
            num += len(x)
            if num >= NUM_TYPICAL:
                break
        mean = total / num
        self.typical.copy_(mean + FLOOR * mean[self.preprocess.roi].mean())

    def _sensitivity(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Score (N,), and the absolute derivative of the loss with respect to each pixel (N, h, w)."""
        num = len(self.angles)
        y, to_pixels = self._features(torch.cat([self._rotated(x, angle) for angle in self.angles]))  # (K·N, D)
        z, _, to_features = self.flow.with_pullback(y)
        score = (z * z).mean(dim=1).reshape(num, -1).mean(dim=0)
        # times the number of pixels: the derivative by a change spread over the whole image
        one = torch.full_like(z[:, :1], x.shape[2] * x.shape[3] / self.dim)
        g = to_pixels(to_features(z * one, -one)).abs().mean(dim=1, keepdim=True).reshape(num, -1, 1, *x.shape[2:])
        back = torch.stack([rotate(g[k], -angle) for k, angle in enumerate(self.angles)]).mean(dim=0)  # (N, 1, h, w)
        reach = len(self.kernel) // 2
        across = functional.conv2d(functional.pad(back, (reach,) * 4, mode="reflect"), self.kernel.view(1, 1, 1, -1))
        return score, functional.conv2d(across, self.kernel.view(1, 1, -1, 1))[:, 0]

    def anomaly(self, x: Tensor) -> Anomaly:
        """Compute the map, the derivative of the loss over its typical value, and the score, latent or pooled from the map."""
        latent, sensitivity = self._sensitivity(x)
        anomaly_map = self.inside_roi(sensitivity / self.typical)
        return Anomaly(latent if self.score == "latent" else self.pooled_score(anomaly_map), anomaly_map)
