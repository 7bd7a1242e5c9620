"""Reconstruction autoencoder: what the network cannot rebuild is anomalous.

P. Bergmann et al., "Improving Unsupervised Defect Segmentation by Applying Structural Similarity to Autoencoders", 2018,
arXiv 1807.02011 (network of table 1; L2 and SSIM losses, eq. 1 to 3).
The denoising variant: the network sees a corrupted image and must give the clean one back (P. Vincent et al., 2008), with
coarse noise (A. Kascenas et al., 2022) or structured patterns, as in V. Zavrtanik et al., "DRAEM", 2021, arXiv 2108.07610,
scored by the multi-scale gradient similarity of their RIAD, 2021.

Notation: x -> image in [0, 1]; x_hat -> its reconstruction; r -> residual map.
What differs, and why: the map is averaged over a window before its maximum is taken, as RIAD does, because a single
ill-fitting pixel is no defect; the rate follows one cosine to zero, so that the last epoch is a settled one.
"""

from __future__ import annotations

from typing import Literal

import torch
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from anomaly.detectors._drawn_defects import draw_defects
from anomaly.detectors.base import Anomaly, Detector
from anomaly.detectors.tiling_support import Seamless, TilingSupport, WindowsOnly
from anomaly.errors import UsageError
from anomaly.nn.batch import Batch
from anomaly.nn.convolutional import StridedAutoencoder, UNet
from anomaly.nn.corruption import add_noise, corrupt
from anomaly.nn.feature_cache import FeatureCache
from anomaly.nn.map_scaling import PixelScale, smoothed
from anomaly.nn.optim import cosine_adam
from anomaly.nn.preprocess import Preprocess, Resize
from anomaly.nn.similarity import GradientSimilarity, Ssim

Measure = Literal["l2", "ssim", "msgms", "ssim+msgms"]


class Autoencoder(Detector):
    """Reconstruction autoencoder.

    Args:
        size: side of the network's square input in pixels, a multiple of 32.
        resize: `stretch` or `letterbox`.
        network: `strided` is the paper's, `unet` one with skips, for the repair variant.
        latent: channels of the code of `strided`; the paper's is 100 for textures, 500 for objects.
        width: channels of the finest level of `unet`.
        skips: how many inner levels of `unet` pass their maps across.
        corruption: what the network learns to repair: `none`, coarse `noise`, `structured` patterns, or defects `drawn` as
            `anomaly synthesize` draws them.
        loss: what training minimises; `l2`, `ssim`, or both with gradients (`ssim+msgms` adds L2).
        score: what the map measures.
        smooth: side in pixels of the averaging window over the map, odd; 1 leaves it.
        standardise: whether each pixel of the map is measured by mean and deviation of the training images there.
        learning_rate: of Adam, at the start of the cosine.
        weight_decay: of Adam.
        epochs: passes over the training images.
        batch_size: images per step.
        seed: of the corruption.
        cache_gib: memory in GiB for preprocessed images kept between epochs.
    """

    max_gradient_norm = 1.0  # one batch of heavy corruption must not undo the training

    def __init__(
        self,
        *,
        size: int = 128,
        resize: Resize = "stretch",
        network: Literal["strided", "unet"] = "unet",
        latent: int = 100,
        width: int = 32,
        skips: int = 0,
        corruption: Literal["none", "noise", "structured", "drawn"] = "structured",
        loss: Measure = "ssim+msgms",
        score: Measure = "msgms",
        smooth: int = 5,
        standardise: bool = True,
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-5,
        epochs: int = 40,
        batch_size: int = 16,
        seed: int = 0,
        cache_gib: float = 2.0,
    ) -> None:
        if size % 32 or size < 64:
            raise UsageError(
                f"size {size}: the autoencoder's input is a multiple of 32 from 64 on, e.g. {max(64, size // 32 * 32)}"
            )
        if smooth % 2 == 0:
            raise UsageError(f"smooth {smooth}: the averaging window has an odd side, e.g. {smooth + 1}")
        # images in [0, 1]: both ends of the autoencoder speak the same unit
        preprocess = Preprocess(size=(size, size), resize=resize, mean=(0.0,) * 3, std=(1.0,) * 3)
        super().__init__(preprocess=preprocess, epochs=epochs, batch_size=batch_size)
        self.save_hyperparameters()
        self.network: nn.Module
        if network == "strided":
            self.network = StridedAutoencoder(size=size, latent=latent)
        else:
            self.network = UNet(widths=(width, 2 * width, 4 * width, 6 * width, 8 * width), skips=skips)
        self.corruption = corruption
        self.loss, self.score, self.smooth, self.standardise = loss, score, smooth, standardise
        self.tiling = _tiling_support(network, score=score, standardise=standardise)
        self.scale = PixelScale((size, size))
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.ssim, self.msgms = Ssim(), GradientSimilarity()
        self._random = torch.Generator().manual_seed(seed)
        self._cache = FeatureCache(max_bytes=int(cache_gib * 2**30))

    def _residual(self, measure: Measure, x: Tensor, x_hat: Tensor) -> Tensor:
        """Residual map (N, H, W), 0 where x_hat equals x."""
        r = torch.zeros((), device=x.device)
        if measure == "l2":
            r = r + ((x - x_hat) ** 2).mean(dim=1)
        if "ssim" in measure:
            r = r + 1 - self.ssim(x, x_hat)
        if "msgms" in measure:
            r = r + 1 - self.msgms(x, x_hat)
        return r

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """Mean residual of the reconstruction against the clean image."""
        (x,) = self._cache.lookup(batch.path, lambda: [self.preprocessed(batch)])
        seen = x
        if self.corruption == "noise":
            seen = add_noise(x, generator=self._random)
        elif self.corruption == "structured":
            seen = corrupt(x, generator=self._random)[0]
        elif self.corruption == "drawn":
            seen = draw_defects(x, generator=self._random)
        if self.preprocess.has_roi:
            seen = seen * self.preprocess.roi
        x_hat = self.network(seen).float()
        with torch.autocast(self.device.type, enabled=False):  # a variance as difference of squares needs all digits
            r = self._residual(self.loss, x, x_hat)
            if self.loss == "ssim+msgms":
                r = r + ((x - x_hat) ** 2).mean(dim=1)
        if self.preprocess.has_roi:
            r = r[:, self.preprocess.roi]
        loss = r.mean()
        self.log("residual", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Adam with one cosine to zero over the whole training."""
        return cosine_adam(
            self.network.parameters(),
            num_steps=self.trainer.estimated_stepping_batches,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
        )

    @torch.no_grad()
    def on_train_end(self) -> None:
        """Measure the residual at each pixel over the training images, with the final weights."""
        if self.standardise:
            self.eval()
            self.scale.measure((self._map(x) for x in self.training_inputs()), roi=self.preprocess.roi)

    def _map(self, x: Tensor) -> Tensor:
        return smoothed(self._residual(self.score, x, self.network(x)), window=self.smooth)

    def anomaly(self, x: Tensor) -> Anomaly:
        """Score by the residual of the reconstruction, smoothed, in its scale: score is the map's maximum."""
        r = self._map(x)
        anomaly_map = self.inside_roi(self.scale(r) if self.standardise else r)
        return Anomaly(anomaly_map.amax(dim=(1, 2)), anomaly_map)


def _tiling_support(network: str, *, score: Measure, standardise: bool) -> TilingSupport:
    if network == "strided":
        return WindowsOnly("its code is one vector of the whole input (use network unet)")
    if standardise:
        return WindowsOnly(
            "each pixel of its map has its own scale, by its position in the input (use standardise false)"
        )
    if "ssim" in score:
        return WindowsOnly("its SSIM uses the mean of the whole input (use score l2 or msgms)")
    return Seamless(stride=32)
