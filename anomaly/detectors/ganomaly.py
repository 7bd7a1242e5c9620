"""GANomaly: an adversarial autoencoder that compares the code of an image with the code of its reconstruction.

S. Akcay et al., "GANomaly: Semi-Supervised Anomaly Detection via Adversarial Training", 2018, arXiv 1805.06725.

Notation: x -> image in [-1, 1], (N, 3, h, w); z = G_E(x) -> its code; x_hat = G_D(z) -> its reconstruction;
z_hat = E(x_hat) -> code of the reconstruction; D -> discriminator; f -> its features before the last layer; r -> residual map.

As in the paper: the three DCGAN networks, the losses of eq. 1 to 4 with their weights, one generator step and then one
discriminator step on the same reconstruction, and the score `latent` (eq. 5).
What differs, and why:
* The weights of the last epoch are kept; the public code keeps the epoch with the best test result.
* The paper has no map. Here it is the residual |x - x_hat| or the dissimilarity of gradients, averaged over a window. Good
  training images standardise it at each pixel, because sharp edges have a high residual on good parts too.
* A newly initialised discriminator starts with empty optimiser moments.
* The binary cross entropy is computed from logits, the same function without overflow.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from anomaly.detectors.base import Anomaly, Detector
from anomaly.detectors.tiling_support import WindowsOnly
from anomaly.errors import UsageError
from anomaly.nn.batch import Batch
from anomaly.nn.dcgan import DcganDecoder, DcganEncoder, init_dcgan
from anomaly.nn.feature_cache import FeatureCache
from anomaly.nn.map_scaling import PixelScale, check_window, smoothed
from anomaly.nn.optim import cosine_adam
from anomaly.nn.preprocess import Preprocess, Resize
from anomaly.nn.score_pooling import Pooling, ScorePooling
from anomaly.nn.similarity import GradientSimilarity

ADVERSARIAL, RECONSTRUCTION, LATENT = 1.0, 50.0, 1.0
"""Weights of the generator's three losses (eq. 4)"""
COLLAPSED = 1e-5
"""Discriminator loss below which the discriminator is initialised again"""

CELL = 4
"""Side in pixels of a cell of pooling `top`"""


class Generator(nn.Module):
    """Generator: encoder, decoder, and a second encoder of the reconstruction.

    Args:
        size: side of the square images in pixels.
        width: channels of the finest level.
        latent: channels of the code.
    """

    def __init__(self, *, size: int, width: int, latent: int) -> None:
        super().__init__()
        self.encoder = DcganEncoder(size=size, width=width, outputs=latent)
        self.decoder = DcganDecoder(size=size, width=width, inputs=latent)
        self.second_encoder = DcganEncoder(size=size, width=width, outputs=latent)

    def forward(self, x: Tensor, *, roi: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstruct images (N, 3, size, size), zero outside `roi` (size, size) bool.

        Returns:
            x_hat (N, 3, size, size), z and z_hat (N, latent, 1, 1), float32.
        """
        z = self.encoder(x)
        x_hat = self.decoder(z) * roi
        return x_hat.float(), z.float(), self.second_encoder(x_hat).float()


class Ganomaly(Detector):
    """GANomaly.

    Args:
        size: side of the network's square input in pixels, a power of two from 16 up; 32 in the paper.
        resize: resizing rule, `stretch` or `letterbox`.
        width: channels of the finest level of all networks; 64 in the paper.
        latent: channels of the code.
        score: image score: `latent`, the paper's mean squared distance of the codes, or `map`, pooled from the map.
        measure: measure of the anomaly map: `l1`, the residual of colours, or `msgms`, gradients at four scales.
        smooth: side in pixels of the averaging window over the anomaly map, odd; 1 for no averaging.
        standardise: scaling of each pixel of the anomaly map by its mean and deviation over the training images.
        pooling: pooling of the map to the score: `maximum`, or `top`, the mean of its largest cells.
        top: share of the cells that pooling `top` averages, in (0, 1].
        learning_rate: initial learning rate of both Adam optimisers; 2e-4 in the paper.
        schedule: schedule of the learning rate: `constant`, as in the paper, or `cosine`, which falls to zero.
        epochs: passes over the training images; 15 in the paper, which are about 10,000 steps on its data.
        batch_size: images per optimisation step, at least 2.
        cache_gib: memory in GiB for preprocessed images that stay in memory between epochs; 0 for none.

    Raises:
        UsageError: invalid size, window or batch size.
    """

    tiling = WindowsOnly("its encoder outputs one code for the whole input")

    def __init__(
        self,
        *,
        size: int = 128,
        resize: Resize = "stretch",
        width: int = 16,
        latent: int = 100,
        score: Literal["latent", "map"] = "map",
        measure: Literal["l1", "msgms"] = "msgms",
        smooth: int = 7,
        standardise: bool = True,
        pooling: Pooling = "maximum",
        top: float = 0.02,
        learning_rate: float = 1e-3,
        schedule: Literal["constant", "cosine"] = "cosine",
        epochs: int = 30,
        batch_size: int = 16,
        cache_gib: float = 2.0,
    ) -> None:
        check_window(smooth)
        if batch_size < 2:
            raise UsageError(f"batch_size {batch_size}: batch norm needs at least two images, e.g. 2")
        # images in [-1, 1], the range of the decoder's tanh
        preprocess = Preprocess(size=(size, size), resize=resize, mean=(0.5,) * 3, std=(0.5,) * 3)
        super().__init__(preprocess=preprocess, epochs=epochs, batch_size=batch_size)
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.generator = Generator(size=size, width=width, latent=latent)
        self.discriminator = DcganEncoder(size=size, width=width, outputs=1)
        self.msgms = GradientSimilarity()
        self.scale = PixelScale((size, size))
        self.pooling = ScorePooling(pooling, top=top, cell=CELL)
        self.score, self.measure, self.smooth, self.standardise = score, measure, smooth, standardise
        self.learning_rate, self.schedule = learning_rate, schedule
        self._cache = FeatureCache(max_bytes=int(cache_gib * 2**30))

    def training_step(self, batch: Batch, index: int) -> None:
        """Train the generator, then the discriminator on the same reconstruction.

        A batch of one image is skipped, because batch norm needs at least two.
        """
        if len(batch.path) < 2:
            return
        optimizers: Any = self.optimizers()
        generator_optimizer, discriminator_optimizer = optimizers
        (x,) = self._cache.lookup(batch.path, lambda: [self.preprocessed(batch)])
        x_hat, z, z_hat = self.generator(x, roi=self.preprocess.roi)
        f, f_hat = self.discriminator.features(x), self.discriminator.features(x_hat)

        inside = self.preprocess.roi
        adversarial = functional.mse_loss(f_hat.float(), f.detach().float())  # eq. 1
        reconstruction = (x - x_hat).abs()[:, :, inside].mean()  # eq. 2
        latent = functional.mse_loss(z_hat, z)  # eq. 3
        self.log("adversarial", adversarial)
        self.log("reconstruction", reconstruction, prog_bar=True)
        self.log("latent", latent)
        loss = ADVERSARIAL * adversarial + RECONSTRUCTION * reconstruction + LATENT * latent  # eq. 4
        generator_optimizer.zero_grad()
        # gradients of one network only, so that one pass through the discriminator serves both steps
        self.manual_backward(loss, inputs=list(self.generator.parameters()), retain_graph=True)
        generator_optimizer.step()

        real, fake = self.discriminator.head(f).float(), self.discriminator.head(f_hat).float()
        loss = 0.5 * (
            functional.binary_cross_entropy_with_logits(real, torch.ones_like(real))
            + functional.binary_cross_entropy_with_logits(fake, torch.zeros_like(fake))
        )
        self.log("discriminator", loss)
        discriminator_optimizer.zero_grad()
        self.manual_backward(loss, inputs=list(self.discriminator.parameters()))
        discriminator_optimizer.step()
        if loss.item() < COLLAPSED:
            self.discriminator.apply(init_dcgan)
            discriminator_optimizer.optimizer.state.clear()
        schedules: Any = self.lr_schedulers() or []
        for schedule in schedules:
            schedule.step()

    def configure_optimizers(self) -> Any:
        """One Adam for the generator's three networks, and one for the discriminator."""
        networks, betas = (self.generator, self.discriminator), (0.5, 0.999)
        if self.schedule == "constant":
            return [torch.optim.Adam(network.parameters(), lr=self.learning_rate, betas=betas) for network in networks]
        num_steps = self.trainer.estimated_stepping_batches
        return [
            cosine_adam(network.parameters(), num_steps=num_steps, learning_rate=self.learning_rate, betas=betas)
            for network in networks
        ]

    @torch.no_grad()
    def on_train_end(self) -> None:
        """Measure mean and deviation of each pixel's residual over the training images, with the final weights."""
        if self.standardise:
            self.eval()
            roi = self.preprocess.roi
            residuals = (self._residual(x, self.generator(x, roi=roi)[0]) for x in self.training_inputs())
            self.scale.measure(residuals, roi=roi)

    def _residual(self, x: Tensor, x_hat: Tensor) -> Tensor:
        """Smoothed residual map r (N, h, w), 0 where x_hat equals x."""
        r = (x - x_hat).abs().mean(dim=1) if self.measure == "l1" else 1 - self.msgms((x + 1) / 2, (x_hat + 1) / 2)
        return smoothed(r, window=self.smooth)

    def anomaly(self, x: Tensor) -> Anomaly:
        """Compute the standardised residual map; the score is the distance of the codes (eq. 5) or pooled from the map."""
        x_hat, z, z_hat = self.generator(x, roi=self.preprocess.roi)
        anomaly_map = self.inside_roi(self.scale(self._residual(x, x_hat)))
        if self.score == "latent":
            return Anomaly(((z - z_hat) ** 2).mean(dim=(1, 2, 3)), anomaly_map)
        return Anomaly(self.pooled_score(anomaly_map), anomaly_map)
