"""Reconstruction autoencoder: the residual of the reconstruction is the anomaly map.

P. Bergmann et al., "Improving Unsupervised Defect Segmentation by Applying Structural Similarity to Autoencoders", 2018,
arXiv 1807.02011 (network of table 1; L2 and SSIM losses, eq. 1 to 3).
Denoising variant: the network restores the clean image from a corrupted one (P. Vincent et al., 2008). The corruption is
coarse noise (A. Kascenas et al., 2022) or structured patterns (V. Zavrtanik et al., "DRAEM", 2021, arXiv 2108.07610). The map
is the multi-scale gradient similarity of RIAD (V. Zavrtanik et al., 2021).

Notation: x -> image in [0, 1], (N, 3, h, w); x_hat -> its reconstruction; r -> residual map, (N, h, w).
What differs, and why: the map is averaged over a window before its maximum is taken, as in RIAD. A single pixel with a high
residual is not a defect. The learning rate follows one cosine to zero, so that the last epoch has converged.
"""

from __future__ import annotations

from typing import Literal

import torch
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from anomaly.detectors._drawn_defects import draw_defects
from anomaly.detectors.base import Anomaly, Detector
from anomaly.detectors.tiling_support import Seamless, TilingSupport, WindowsOnly, pooled_tiling
from anomaly.errors import UsageError
from anomaly.nn.batch import Batch
from anomaly.nn.convolutional import StridedAutoencoder, UNet
from anomaly.nn.corruption import add_noise, corrupt
from anomaly.nn.feature_cache import FeatureCache
from anomaly.nn.map_scaling import PixelScale, check_window, smoothed
from anomaly.nn.optim import cosine_adam
from anomaly.nn.preprocess import Preprocess, Resize
from anomaly.nn.score_pooling import Pooling, ScorePooling
from anomaly.nn.similarity import GradientSimilarity, Ssim

Measure = Literal["l2", "ssim", "msgms", "ssim+msgms"]
CELL = 4
"""Side in pixels of a cell of pooling `top`"""


class Autoencoder(Detector):
    """Reconstruction autoencoder.

    Args:
        size: side of the network's square input in pixels, a multiple of 32.
        resize: resizing rule, `stretch` or `letterbox`.
        network: architecture: `strided` (table 1 of the paper) or `unet` (for the denoising variant).
        latent: channels of the code of network `strided`; 100 for textures and 500 for objects in the paper.
        width: channels of the finest level of network `unet`.
        skips: number of levels of network `unet` with a skip connection.
        corruption: corruption of the training images: `none`, coarse `noise`, `structured` patterns, or synthetic defects
            (`drawn`, as in `anomaly synthesize`).
        loss: training loss: `l2`, `ssim`, `msgms` (gradients), or `ssim+msgms`, which adds L2.
        score: measure of the anomaly map: `l2`, `ssim`, `msgms` (gradients) or `ssim+msgms`.
        smooth: side in pixels of the averaging window over the anomaly map, odd; 1 for no averaging.
        standardise: scaling of each pixel of the anomaly map by its mean and deviation over the training images.
        pooling: pooling of the map to the score: `maximum`, or `top`, the mean of its largest cells.
        top: share of the cells that pooling `top` averages, in (0, 1].
        learning_rate: learning rate of Adam at the start of the cosine.
        weight_decay: L2 penalty of Adam.
        epochs: passes over the training images.
        batch_size: images per optimisation step.
        seed: random seed of the corruption.
        cache_gib: memory in GiB for preprocessed images that stay in memory between epochs; 0 for none.
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
        pooling: Pooling = "maximum",
        top: float = 0.02,
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-5,
        epochs: int = 40,
        batch_size: int = 16,
        seed: int = 0,
        cache_gib: float = 2.0,
    ) -> None:
        if size % 32 or size < 64:
            raise UsageError(
                f"size {size}: the autoencoder needs a multiple of 32 from 64 up, e.g. {max(64, size // 32 * 32)}"
            )
        check_window(smooth)
        # images in [0, 1], the range of the sigmoid output
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
        self.pooling = ScorePooling(pooling, top=top, cell=CELL)
        self.tiling = pooled_tiling(
            _tiling_support(network, score=score, standardise=standardise), pooling=self.pooling
        )
        self.scale = PixelScale((size, size))
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.ssim, self.msgms = Ssim(), GradientSimilarity()
        self._random = torch.Generator().manual_seed(seed)
        self._cache = FeatureCache(max_bytes=int(cache_gib * 2**30))

    def _residual(self, measure: Measure, x: Tensor, x_hat: Tensor) -> Tensor:
        """Residual map r (N, h, w), 0 where x_hat equals x (L2: eq. 1; SSIM: eq. 2 and 3)."""
        r = torch.zeros((), device=x.device)
        if measure == "l2":
            r = r + ((x - x_hat) ** 2).mean(dim=1)
        if "ssim" in measure:
            r = r + 1 - self.ssim(x, x_hat)
        if "msgms" in measure:
            r = r + 1 - self.msgms(x, x_hat)
        return r

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """Compute the mean residual between the reconstruction and the clean image."""
        (x,) = self._cache.lookup(batch.path, lambda: [self.preprocessed(batch)])
        corrupted = x
        if self.corruption == "noise":
            corrupted = add_noise(x, generator=self._random)
        elif self.corruption == "structured":
            corrupted = corrupt(x, generator=self._random)[0]
        elif self.corruption == "drawn":
            corrupted = draw_defects(x, generator=self._random)
        if self.preprocess.has_roi:
            corrupted = corrupted * self.preprocess.roi
        x_hat = self.network(corrupted).float()
        with torch.autocast(self.device.type, enabled=False):  # a difference of squares needs full precision
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
        """Measure mean and deviation of each pixel's residual over the training images, with the final weights."""
        if self.standardise:
            self.eval()
            self.scale.measure((self._map(x) for x in self.training_inputs()), roi=self.preprocess.roi)

    def _map(self, x: Tensor) -> Tensor:
        return smoothed(self._residual(self.score, x, self.network(x)), window=self.smooth)

    def anomaly(self, x: Tensor) -> Anomaly:
        """Compute the smoothed, standardised residual map, and pool it to the score."""
        r = self._map(x)
        anomaly_map = self.inside_roi(self.scale(r) if self.standardise else r)
        return Anomaly(self.pooled_score(anomaly_map), anomaly_map)


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
