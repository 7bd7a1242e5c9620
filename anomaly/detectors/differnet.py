"""DifferNet: a normalizing flow on globally averaged features of several scales.

M. Rudolph et al., "Same Same But DifferNet: Semi-Supervised Defect Detection with Normalizing Flows", WACV 2021,
arXiv 2008.12577.

Notation: x -> image; K -> number of rotations; y -> feature vector of three scales; z -> its latent; D -> their length;
loss -> (|z|²/2 - log |det dz/dy|) / D, the negative log-likelihood per feature.

What is the paper's: frozen backbone at three scales, global averages, eight couplings, the loss, the score (the mean of z²
over rotations), the map (the loss's derivative by the pixels, its absolute value averaged over channels, turned back and
averaged over rotations, blurred).
What differs, and why: training sees a fixed set of rotations, so that features are computed once, not once an epoch
(`augment: random` is the paper's way); the learning rate rises shortly and follows one cosine to zero, so that the last epoch
is a settled one; the flow begins with a linear step that whitens, without which a short training does not get far, and its
subnets are smooth and see bounded values (see `vector_coupling`); the smaller scales are means of 2×2 pixels; the map takes
absolute values before the blur, not after it, and is not squared at the end, which changes no rank; it is divided by what it
typically is at that pixel on good training images, because some places (dark flat ones) move the loss on every part. The
derivative is written by hand, so that the exported graph has it; corners of the backbone are rounded in it, so that every
runtime gives the same (see `input_gradient`).
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
from anomaly.nn.backbones import Backbone
from anomaly.nn.batch import Batch
from anomaly.nn.coupling_1d import VectorFlow
from anomaly.nn.feature_cache import FeatureCache
from anomaly.nn.input_gradient import InputGradient
from anomaly.nn.optim import one_cycle_adam
from anomaly.nn.preprocess import Preprocess, Resize
from anomaly.nn.rotation import equally_spaced, rotate

Augment = Literal["fixed", "random"]
NUM_SCALES = 3
SIGMA = 3.0
"""Deviation in pixels of the blur of the derivative"""
NUM_TYPICAL = 48
"""Good training images, about, that say what the map usually is"""
FLOOR = 0.3
"""Share of the mean over the image that is added to it: a pixel that never mattered must not outweigh all others"""


class DifferNet(Detector):
    """DifferNet on a CNN.

    Args:
        size: height and width of the network's input at the largest scale in pixels, a multiple of 4.
        resize: `stretch` or `letterbox`.
        backbone: a timm CNN, or `alexnet` (the paper's) or `squeezenet1_1` of torchvision.
        layers: the one feature level that is averaged.
        weights: `pretrained`, `none`, or a path (see `Backbone`).
        num_rotations: equally spaced rotations that a score is averaged over; 1 for parts that always lie alike.
        train_rotations: rotations of each image per step.
        augment: `fixed` trains on equally spaced rotations, whose features are kept; `random` on rotations drawn anew.
        num_steps: couplings.
        hidden: units of each hidden layer of a coupling; 2048 in the paper.
        learning_rate: of Adam, at its highest.
        weight_decay: of Adam.
        epochs: passes over the training images.
        batch_size: images per step.
        standardise: whether the map is divided, pixel by pixel, by its mean over good training images.
        cache_gib: memory in GiB for features kept between epochs; 0 computes them anew each time.
        seed: of the random rotations.
    """

    tiling = WindowsOnly("its features are means over the whole input")
    kernel: Tensor
    typical: Tensor

    def __init__(
        self,
        *,
        size: int = 256,
        resize: Resize = "stretch",
        backbone: str = "resnet18",
        layers: Sequence[int] = (3,),
        weights: str = "pretrained",
        num_rotations: int = 4,
        train_rotations: int = 4,
        augment: Augment = "fixed",
        num_steps: int = 8,
        hidden: int = 128,
        learning_rate: float = 5e-4,
        weight_decay: float = 1e-5,
        epochs: int = 12,
        batch_size: int = 24,
        standardise: bool = True,
        cache_gib: float = 1.0,
        seed: int = 0,
    ) -> None:
        if size % 4:
            raise UsageError(f"size {size} cannot be halved twice: take a multiple of 4, e.g. {size - size % 4 + 4}")
        if len(layers) != 1:
            raise UsageError(
                f"layers {list(layers)}: DifferNet averages one feature level, e.g. {list(layers)[-1:] or [3]}"
            )
        if min(num_rotations, train_rotations) < 1:
            raise UsageError(
                f"num_rotations {num_rotations}, train_rotations {train_rotations}: at least 1 each, the image itself"
            )
        network = Backbone(backbone, layers=layers, size=(size, size), weights=weights)
        super().__init__(
            preprocess=Preprocess(size=(size, size), resize=resize, mean=network.mean, std=network.std),
            epochs=epochs,
            batch_size=batch_size,
        )
        self.save_hyperparameters()
        self.backbone = network
        self.provenance = network.provenance
        self._network = InputGradient(network.network, size=(size // 4, size // 4))
        self.dim = NUM_SCALES * network.shapes[0][0]
        self.flow = VectorFlow(self.dim, num_steps=num_steps, hidden=hidden, clamp=3.0)
        self.angles = equally_spaced(num_rotations)
        self.train_rotations = train_rotations
        self.augment = augment
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.standardise = standardise
        self.register_buffer("typical", torch.ones(size, size))
        self._cache = FeatureCache(max_bytes=int(cache_gib * 2**30))
        self._drawn = torch.Generator().manual_seed(seed)
        reach = int(4 * SIGMA)
        at = torch.arange(-reach, reach + 1, dtype=torch.float32)
        kernel = torch.exp(-(at**2) / (2 * SIGMA**2))
        self.register_buffer("kernel", kernel / kernel.sum(), persistent=False)

    def _turned(self, x: Tensor, degrees: float) -> Tensor:
        """Rotate the network's input; black comes in from outside, as in a image that is turned."""
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
                scaled = functional.avg_pool2d(scaled, 2)  # bilinear interpolation to half the size
            level, back = self._network(scaled)
            averages.append(level.mean(dim=(2, 3)))
            backs.append((level, back))

        def pullback(g: Tensor) -> Tensor:
            g_x = torch.zeros((), device=g.device)
            for (level, back), share in reversed(list(zip(backs, g.chunk(NUM_SCALES, dim=1), strict=True))):
                g_level = (share / (level.shape[2] * level.shape[3]))[:, :, None, None].expand_as(level)
                if g_x.dim():  # what the next smaller scale says
                    g_x = functional.interpolate(g_x / 4, scale_factor=2.0, mode="nearest")
                g_x = back(g_level) + g_x
            return g_x

        return torch.cat(averages, dim=1), pullback

    def _training_features(self, batch: Batch) -> Tensor:
        """Feature vectors of all rotations of a batch, (N·rotations, D)."""

        def compute() -> list[Tensor]:
            x = self.preprocessed(batch)
            if self.augment == "fixed":
                turned = (self._turned(x, angle) for angle in equally_spaced(self.train_rotations))
            else:
                turned = (self._turned_at_random(x) for _ in range(self.train_rotations))
            return [torch.stack([self._features(t)[0] for t in turned], dim=1)]

        with torch.autocast(self.device.type, enabled=False), torch.no_grad():  # as calibration and export see them
            (y,) = self._cache.lookup(batch.path, compute) if self.augment == "fixed" else compute()
        return y.flatten(0, 1)

    def _turned_at_random(self, x: Tensor) -> Tensor:
        angles = 360 * torch.rand(len(x), generator=self._drawn)
        return torch.cat([self._turned(x[n : n + 1], float(angle)) for n, angle in enumerate(angles)])

    def on_train_start(self) -> None:
        """Look once at all training features, which are then kept, to whiten them."""
        if not self.flow.is_initialized:
            loader: Any = self.trainer.train_dataloader
            self.flow.initialize(torch.cat([self._training_features(batch) for batch in loader]))

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """Negative log-likelihood of the features, per feature."""
        y = self._training_features(batch)
        if not self.flow.is_initialized:  # without a trainer the first batch stands for all
            self.flow.initialize(y)
        z, log_det = self.flow(y)
        loss: Tensor = (0.5 * (z * z).sum(dim=1) - log_det).mean() / self.dim
        self.log("nll", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Adam as in the paper; the rate rises over the first 15 % of the steps, then follows one cosine to zero."""
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
        """Take the mean map of some good training images, with the final weights."""
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
        """Score (N,), and how much the loss moves with each pixel, (N, h, w)."""
        num = len(self.angles)
        y, to_pixels = self._features(torch.cat([self._turned(x, angle) for angle in self.angles]))  # (K·N, D)
        z, _, to_features = self.flow.with_pullback(y)
        score = (z * z).mean(dim=1).reshape(num, -1).mean(dim=0)
        # times the number of pixels: the derivative by a change that is spread over the whole image
        one = torch.full_like(z[:, :1], x.shape[2] * x.shape[3] / self.dim)
        g = to_pixels(to_features(z * one, -one)).abs().mean(dim=1, keepdim=True).reshape(num, -1, 1, *x.shape[2:])
        back = torch.stack([rotate(g[k], -angle) for k, angle in enumerate(self.angles)]).mean(dim=0)  # (N, 1, h, w)
        reach = len(self.kernel) // 2
        across = functional.conv2d(functional.pad(back, (reach,) * 4, mode="reflect"), self.kernel.view(1, 1, 1, -1))
        return score, functional.conv2d(across, self.kernel.view(1, 1, -1, 1))[:, 0]

    def anomaly(self, x: Tensor) -> Anomaly:
        """Score by the mean of z² over rotations; the map is the derivative of the loss by the pixels, over its usual one."""
        score, sensitivity = self._sensitivity(x)
        return Anomaly(score, self.inside_roi(sensitivity / self.typical))
