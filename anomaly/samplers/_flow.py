"""`Flow`: base of the normalizing flows on images, with dequantisation, logit, training by likelihood, density and latent.

Sources: L. Dinh et al., "Density estimation using Real NVP", 2016, arXiv 1605.08803 (§4.1: uniform dequantisation, logit); D.
Kingma and P. Dhariwal, "Glow", 2018, arXiv 1807.03039 (eq. 1 and 2: bits per dimension).

Notation: x -> image in [0, 1]; u -> position within the bin of a grey level; x' -> dequantised image in [0, 1]; v -> its
logit; z -> latent; D -> 3 · h · w.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from anomaly.errors import UsageError
from anomaly.nn.batch import Batch
from anomaly.nn.feature_cache import FeatureCache
from anomaly.nn.flow_steps import Logit, Step
from anomaly.nn.multi_scale_flow import MultiScale
from anomaly.nn.preprocess import Resize
from anomaly.samplers.base import Density, Sampler, Score

WARM_UP = 0.05
"""Share of the training with a rising learning rate"""


class Flow(Sampler):
    """Base of the flows. A subclass builds the steps of the scales.

    `log_prob` is the density of x' in [0, 1]^D at the bins' centres, u = 0.5. In training u is uniform on [0, 1). The density
    covers whole images. Pixels outside a region of interest are blank in every image and add a nearly constant term.

    Args:
        scales: steps of each scale.
        mixes: whether the steps mix the channels.
        bits: bits of the dequantised grey levels; the training noise has the width 2^-bits.
        learning_rate: highest learning rate of Adam, between a short rise and a cosine to zero.
        seed: seed of the dequantisation.
        cache_gib: memory for preprocessed images between epochs in GiB.
        size, resize, score, smooth, standardise, epochs: as in `Sampler`.
        batch_size: images per optimisation step; the first batch initialises the actnorms.
    """

    max_gradient_norm = 1.0  # one unusual image must not undo the training
    density: ClassVar[Density] = "exact"
    loop: ClassVar[str] = "decoder"
    unsupported: ClassVar[dict[str, str]] = {
        "inpaint": "a flow reproduces every image exactly, so that encoding and decoding changes no unknown pixel;"
        " take an autoencoding sampler, e.g. vae, or a diffusion model"
    }

    def __init__(
        self,
        *,
        size: int,
        resize: Resize,
        scales: Sequence[Sequence[Step]],
        mixes: bool,
        bits: int,
        score: Score,
        smooth: int,
        standardise: bool,
        learning_rate: float,
        epochs: int,
        batch_size: int,
        seed: int,
        cache_gib: float,
    ) -> None:
        if not 1 <= bits <= 16:
            raise UsageError(f"bits {bits}: grey levels have 1 to 16 bits, e.g. 8")
        super().__init__(
            size=size,
            resize=resize,
            score=score,
            smooth=smooth,
            standardise=standardise,
            epochs=epochs,
            batch_size=batch_size,
        )
        self.level_bits = float(bits)
        self.logit = Logit(levels=2**bits, margin=0.05)
        self.flow = MultiScale(scales, shape=(3, size, size), mixes=mixes)
        self.learning_rate = learning_rate
        self._random = torch.Generator().manual_seed(seed)
        self._cache = FeatureCache(max_bytes=int(cache_gib * 2**30))

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one vector with as many values as the image: the outputs of the scales, finest first."""
        return (3 * self.preprocess.size[0] * self.preprocess.size[1],)

    def encode(self, x: Tensor) -> Tensor:
        """Map images (N, 3, h, w) to z (N, D)."""
        v, _ = self.logit(x, 0.5)
        z, _ = self.flow(v)
        return z  # type: ignore[no-any-return]

    def decode(self, z: Tensor) -> Tensor:
        """Map z (N, D) to images (N, 3, h, w) in [0, 1], the inverse of `encode`."""
        return self.logit.inverse(self.flow.inverse(z))

    def _pixel_nll(self, x: Tensor, u: Tensor | float) -> Tensor:
        """Each pixel's share of -log p(x'), summed over channels, (N, h, w)."""
        v, log_det = self.logit(x, u)
        _, shares = self.flow(v)
        return (shares - log_det).sum(dim=1)  # type: ignore[no-any-return]

    def anomaly_map(self, x: Tensor) -> Tensor:
        """Compute each pixel's share of -log p in nats, (N, h, w); the map sums to `-log_prob(x)`.

        Latent and log-determinant of each scale are assigned to their pixels. Those of channel-mixing steps are spread evenly
        over their block of pixels.
        """
        return self._pixel_nll(x, 0.5)

    def log_prob(self, x: Tensor) -> Tensor:
        """Compute the log-density of images (N, 3, h, w) at the bins' centres in nats per image, (N,)."""
        return -self.anomaly_map(x).sum(dim=2).sum(dim=1)

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """Bits per dimension at random positions within the bins."""
        (x,) = self._cache.lookup(batch.path, lambda: [self.preprocessed(batch)])
        u = torch.rand(x.shape, generator=self._random).to(x.device)
        if not self.flow.is_initialized:
            self.flow.initialize(self.logit(x, u)[0])
        num_values = math.prod(self.latent_shape)
        loss = self._pixel_nll(x, u).sum(dim=(1, 2)).mean() / (num_values * math.log(2)) + self.level_bits
        self.log("bits_per_dim", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Return Adam with a rising learning rate at first, then one cosine to zero."""
        optimizer = torch.optim.Adam(self.flow.parameters(), lr=self.learning_rate)
        total = max(1, int(self.trainer.estimated_stepping_batches))
        num_rising = max(1, round(WARM_UP * total))

        def share(step: int) -> float:
            return min((step + 1) / num_rising, 0.5 * (1 + math.cos(math.pi * min(1.0, step / total))))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
