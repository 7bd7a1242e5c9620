"""FastFlow: normalizing flows on frozen feature maps.

J. Yu et al., "FastFlow: Unsupervised Anomaly Detection and Localization via 2D Normalizing Flows", 2021, arXiv 2111.07677.

Notation: y_i -> feature map of level i, (N, C, h, w); z_i -> its latent, same shape; e_i -> its energy (N, h, w), the mean
over channels of z_i²/2.

As in the paper: frozen backbone, one 2-D flow per level (eq. 1 and 2: the likelihood of y is the standard normal density of z
times |det dz/dy|), and the mean of the levels' maps.
What differs, and why: the public implementation's map is -mean_i exp(-e_i), which saturates at clear defects. Here it is
-log mean_i exp(-e_i), a monotone function of the same quantity with equal ranks and without saturation. Features are computed
once, not once per epoch, because the backbone is frozen. The learning rate rises shortly and follows one cosine to zero. The
last epoch has then converged, and no epoch is selected on test images. The backbone sees reflected surroundings, because its
zero padding puts most maxima of good images at the border. The score is the mean of the largest cells; in the paper it is the
maximum of the map. Drawn defects chose both.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.nn import functional

from anomaly.detectors.base import Anomaly, Detector
from anomaly.detectors.tiling_support import WindowsOnly
from anomaly.nn.backbones import Backbone, default_backbone
from anomaly.nn.batch import Batch
from anomaly.nn.coupling_2d import ConvCoupling
from anomaly.nn.feature_cache import FeatureCache
from anomaly.nn.optim import one_cycle_adam
from anomaly.nn.preprocess import Preprocess, Resize
from anomaly.nn.score_pooling import Pooling, ScorePooling


class MapNorm(nn.Module):
    """Layer norm over a whole map (C, h, w) with one weight and bias per element.

    The mean is taken over (h, w), then over channels: a single mean over all three loses four digits in some runtimes.
    """

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shape))
        self.bias = nn.Parameter(torch.zeros(shape))

    def forward(self, y: Tensor) -> Tensor:
        """Normalise each map (N, C, h, w) to zero mean and unit variance, then scale and shift."""
        centred = y - y.mean(dim=(2, 3), keepdim=True).mean(dim=1, keepdim=True)
        variance = (centred * centred).mean(dim=(2, 3), keepdim=True).mean(dim=1, keepdim=True)
        return centred * torch.rsqrt(variance + 1e-5) * self.weight + self.bias


class Flow2d(nn.Module):
    """Flow of one level: `num_steps` couplings."""

    def __init__(
        self, shape: tuple[int, int, int], *, norm: bool, num_steps: int, hidden_ratio: float, conv3x3_only: bool
    ) -> None:
        super().__init__()
        self.norm = MapNorm(shape) if norm else nn.Identity()
        self.steps = nn.ModuleList(
            ConvCoupling(
                shape[0],
                hidden_ratio=hidden_ratio,
                kernel=3 if conv3x3_only or step % 2 == 0 else 1,
                clamp=2.0,
                seed=step,
            )
            for step in range(num_steps)
        )

    def forward(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Map features (N, C, h, w) to z (N, C, h, w) and each pixel's share of the log-determinant (N, h, w)."""
        z = self.norm(y)
        log_det = torch.zeros((), device=y.device)
        for step in self.steps:
            z, share = step(z)
            log_det = log_det + share
        return z, log_det


class FastFlow(Detector):
    """FastFlow on any timm network with feature maps.

    Args:
        size: height and width of the network's input in pixels.
        resize: resizing rule, `stretch` or `letterbox`.
        backbone: timm model name; None is `resnet18`, or `tf_efficientnet_lite0` where only its weights are installed.
            `resnet18`, `wide_resnet50_2`, `deit_base_distilled_patch16_384` (size 384, layers 7) and
            `cait_m48_448` (size 448, layers 40) in the paper.
        layers: feature levels of the backbone: one per stride for CNNs, block numbers for ViTs.
        margin: width in pixels of the reflected surroundings of the image, a multiple of the coarsest level's stride; None is
            about 32 for a convolutional backbone, else 0.
        weights: weights of the backbone: `pretrained`, `none` (random), or the path of a `.safetensors` file or its folder.
        num_steps: number of couplings per level; 8 for ResNets and 20 for ViTs in the paper.
        hidden_ratio: hidden channels of a coupling per input channel; 1.0 for ResNets and 0.16 for ViTs in the paper.
        conv3x3_only: 3×3 kernels in all couplings, instead of 3×3 and 1×1 alternately.
        pooling: pooling of the map to the score: `maximum`, or `top`, the mean of its largest cells.
        top: share of the cells that pooling `top` averages, in (0, 1].
        learning_rate: highest learning rate of Adam.
        weight_decay: L2 penalty of Adam.
        epochs: passes over the training images.
        batch_size: images per optimisation step.
        cache_gib: memory in GiB for features that stay in memory between epochs; 0 computes them each time.
    """

    def __init__(
        self,
        *,
        size: int = 256,
        resize: Resize = "stretch",
        backbone: str | None = None,
        layers: Sequence[int] = (1, 2, 3),
        weights: str = "pretrained",
        margin: int | None = None,
        num_steps: int = 8,
        hidden_ratio: float = 1.0,
        conv3x3_only: bool = True,
        pooling: Pooling = "top",
        top: float = 0.02,
        learning_rate: float = 3e-3,
        weight_decay: float = 1e-5,
        epochs: int = 8,
        batch_size: int = 8,
        cache_gib: float = 4.0,
    ) -> None:
        backbone, reason = default_backbone(backbone, default="resnet18", weights=weights)
        network = Backbone(backbone, layers=layers, size=(size, size), weights=weights, margin=margin)
        margin = network.margin
        super().__init__(
            preprocess=Preprocess(size=(size, size), resize=resize, mean=network.mean, std=network.std),
            epochs=epochs,
            batch_size=batch_size,
        )
        self.save_hyperparameters()
        self.tiling = WindowsOnly(
            "each patch of its backbone attends to all others"
            if network.is_transformer
            else "its layer norm uses mean and variance of the whole map and has a weight for each position"
        )
        finest = max(height for _, height, _ in network.shapes)
        self.pooling = ScorePooling(pooling, top=top, cell=size // finest)
        self.backbone = network
        self.provenance = network.provenance | reason
        self.flows = nn.ModuleList(
            Flow2d(
                shape,
                norm=not network.is_transformer,  # the maps of ViTs are already normalised by their pretrained norm
                num_steps=num_steps,
                hidden_ratio=hidden_ratio,
                conv3x3_only=conv3x3_only,
            )
            for shape in network.shapes
        )
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self._cache = FeatureCache(max_bytes=int(cache_gib * 2**30))

    def _features(self, batch: Batch) -> list[Tensor]:
        def compute() -> list[Tensor]:
            with torch.autocast(self.device.type, enabled=False):  # equal to the features in calibration and export
                return self.backbone(self.preprocessed(batch))  # type: ignore[no-any-return]

        return self._cache.lookup(batch.path, compute)

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """Compute the negative log-likelihood of the features in nats per image, summed over levels (eq. 2)."""
        loss = torch.zeros((), device=self.device)
        for feature, flow in zip(self._features(batch), self.flows, strict=True):
            z, log_det = flow(feature)
            share = 0.5 * (z * z).sum(dim=1) - log_det  # (N, h, w)
            if self.preprocess.has_roi:
                inside = functional.adaptive_avg_pool2d(self.preprocess.roi[None].float(), share.shape[1:])
                share = share * inside
            loss = loss + share.sum(dim=(1, 2)).mean()
        self.log("nll", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Adam with a learning rate that rises over 15 % of the steps, then follows one cosine to zero."""
        return one_cycle_adam(
            self.flows.parameters(),
            num_steps=self.trainer.estimated_stepping_batches,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
        )

    def anomaly(self, x: Tensor) -> Anomaly:
        """Compute the map -log mean_i exp(-e_i) over the levels i, and pool it to the score."""
        energy = []
        for feature, flow in zip(self.backbone(x), self.flows, strict=True):
            z, _ = flow(feature)
            level = 0.5 * (z * z).mean(dim=1, keepdim=True)  # e_i, (N, 1, h, w)
            energy.append(functional.interpolate(level, self.preprocess.size, mode="bilinear", align_corners=False))
        levels = torch.cat(energy, dim=1)
        least = levels.amin(dim=1)  # subtracted from the exponent against underflow
        anomaly_map = least - torch.log(torch.exp(least[:, None] - levels).mean(dim=1))
        anomaly_map = self.inside_roi(anomaly_map)
        return Anomaly(self.pooled_score(anomaly_map), anomaly_map)
