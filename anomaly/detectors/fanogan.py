"""f-AnoGAN: what a generator of good images cannot show is anomalous.

T. Schlegl et al., "f-AnoGAN: Fast unsupervised anomaly detection with generative adversarial networks", Medical Image
Analysis, 2019.

Notation: x -> image in [-1, 1], (N, 3, h, w); z -> code; G -> generator; D -> critic; f -> its features; E -> encoder;
x_hat -> G(E(x)); A_R -> mean of (x - x_hat)²; A_D -> mean of (f(x) - f(x_hat))²; A -> A_R + kappa · A_D.

What is the paper's: residual WGAN-GP first, then, with G and D frozen, an encoder that minimises A, which is the score.
What differs, and why: whole images in place of patches, because the shape of a part is what is learned.
The paper's codes end in tanh, in [-1, 1], although G was trained on N(0, 1): a third of each of its coordinates, and nearly
every code in whole, is out of the encoder's reach; `code_range` widens them to r · tanh(u / r), r = 1 being the paper's.
With r = 3 in place of 1 the same G rebuilt calibration images with half the squared error.
Both phases share one fit and their rates each follow one cosine to zero, so that the last step of each is a settled one.
Map and score: the maximum of a smoothed gradient-similarity map finds drawn defects that A, a mean over the whole image,
drowns; the paper's map and score remain options.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import Tensor, nn

from anomaly.detectors.base import Anomaly, Detector
from anomaly.detectors.tiling_support import WindowsOnly
from anomaly.errors import UsageError
from anomaly.nn.batch import Batch
from anomaly.nn.feature_cache import FeatureCache
from anomaly.nn.map_scaling import PixelScale, smoothed
from anomaly.nn.preprocess import Preprocess, Resize
from anomaly.nn.residual_gan import Critic, Generator, Trunk, gradient_penalty
from anomaly.nn.similarity import GradientSimilarity


class Encoder(nn.Module):
    """E: the critic's trunk with batch norm, then r · tanh(u / r) of a linear map, r being `code_range`.

    Args:
        size: side of the images in pixels, a power of two.
        width: channels of the finest map.
        latent: length of the code.
        code_range: largest value of a code.
    """

    def __init__(self, *, size: int, width: int, latent: int, code_range: float) -> None:
        super().__init__()
        self.trunk = Trunk(size=size, width=width, norm=nn.BatchNorm2d)
        self.leave = nn.Linear(self.trunk.num_features, latent)
        self.code_range = code_range

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, 3, size, size) to codes (N, latent) in [-code_range, code_range], float32."""
        return self.code_range * torch.tanh(self.leave(self.trunk(x).flatten(1)).float() / self.code_range)


class FAnoGan(Detector):
    """f-AnoGAN with the residual WGAN-GP.

    Args:
        size: side of the network's square input in pixels, a power of two from 16 on; the paper's is 64.
        resize: `stretch` or `letterbox`.
        width: channels of the finest map; the paper's DIM, 64.
        latent: length of the code.
        code_range: largest value of the encoder's codes; the paper's is 1.
        gan_share: share of the steps that train generator and critic; the rest trains the encoder.
        critic_steps: steps of the critic for each of the generator; the paper's are 5.
        penalty: weight of the gradient penalty.
        kappa: weight of A_D beside A_R.
        measure: what the map shows; `l1`, |x - x_hat|, is the paper's, `msgms` compares gradients at four scales.
        score: `izi_f` is the paper's A, `map` the map's maximum.
        smooth: side in pixels of the averaging window over the map, odd; 1 leaves it.
        standardise: whether each pixel of the map is measured by mean and deviation of the training images there.
        learning_rate: of Adam for generator and critic, at the start of the cosine.
        encoder_learning_rate: of RMSProp for the encoder, at the start of the cosine.
        epochs: passes over the training images, of both phases together.
        batch_size: images per step.
        seed: of the codes and of the places of the gradient penalty.
        cache_gib: memory in GiB for preprocessed images kept between epochs.
    """

    tiling = WindowsOnly("its encoder outputs one code for the whole input")
    num_steps: Tensor
    """() int64, steps done; it decides the phase, so that an interrupted fit goes on in its own"""

    def __init__(
        self,
        *,
        size: int = 64,
        resize: Resize = "stretch",
        width: int = 8,
        latent: int = 128,
        code_range: float = 3.0,
        gan_share: float = 0.4,
        critic_steps: int = 2,
        penalty: float = 10.0,
        kappa: float = 1.0,
        measure: Literal["l1", "msgms"] = "msgms",
        score: Literal["izi_f", "map"] = "map",
        smooth: int = 9,
        standardise: bool = True,
        learning_rate: float = 1e-3,
        encoder_learning_rate: float = 2e-4,
        epochs: int = 100,
        batch_size: int = 8,
        seed: int = 0,
        cache_gib: float = 2.0,
    ) -> None:
        if smooth % 2 == 0:
            raise UsageError(f"smooth {smooth}: the averaging window has an odd side, e.g. {smooth + 1}")
        if not 0 < gan_share < 1:
            raise UsageError(f"gan_share {gan_share}: both phases need steps; give a share between 0 and 1, e.g. 0.5")
        preprocess = Preprocess(size=(size, size), resize=resize, mean=(0.5,) * 3, std=(0.5,) * 3)  # in [-1, 1], as G's
        super().__init__(preprocess=preprocess, epochs=epochs, batch_size=batch_size)
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.generator = Generator(size=size, width=width, latent=latent)
        self.critic = Critic(size=size, width=width)
        self.encoder = Encoder(size=size, width=width, latent=latent, code_range=code_range)
        self.latent, self.gan_share, self.critic_steps = latent, gan_share, critic_steps
        self.penalty, self.kappa = penalty, kappa
        self.measure, self.score, self.smooth, self.standardise = measure, score, smooth, standardise
        self.scale = PixelScale((size, size))
        self.msgms = GradientSimilarity()
        self.learning_rate, self.encoder_learning_rate = learning_rate, encoder_learning_rate
        self.register_buffer("num_steps", torch.zeros((), dtype=torch.int64))
        self._random = torch.Generator().manual_seed(seed)
        self._cache = FeatureCache(max_bytes=int(cache_gib * 2**30))

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Adam for the generator and for the critic, RMSProp for the encoder."""
        betas = (0.0, 0.9)
        return [
            torch.optim.Adam(self.generator.parameters(), lr=self.learning_rate, betas=betas),
            torch.optim.Adam(self.critic.parameters(), lr=self.learning_rate, betas=betas),
            torch.optim.RMSprop(self.encoder.parameters(), lr=self.encoder_learning_rate),
        ]

    def training_step(self, batch: Batch, index: int) -> None:
        """One step of the critic, with one of the generator where it is due; later on, one of the encoder."""
        (x,) = self._cache.lookup(batch.path, lambda: [self.preprocessed(batch)])
        x = x.contiguous()  # one memory layout, cached or not: the kernel that it chooses rounds its own way
        of_generator, of_critic, of_encoder = self.optimizers()  # type: ignore[attr-defined]
        total, done = int(self.trainer.estimated_stepping_batches), int(self.num_steps)
        num_adversarial = max(1, round(self.gan_share * total))
        adversarial = done < num_adversarial
        self.generator.train(adversarial)  # its batch norms are the only layers of G and D that know a mode
        if adversarial:
            settled = done / num_adversarial
            self._step_critic(x, of_critic, settled)
            if (done + 1) % self.critic_steps == 0:
                self._step_generator(len(x), of_generator, settled)
        else:
            self._step_encoder(x, of_encoder, (done - num_adversarial) / (total - num_adversarial))
        self.num_steps += 1

    def _step_critic(self, x: Tensor, optimizer: LightningOptimizer, settled: float) -> None:
        with torch.no_grad():
            fake = self._inside(self.generator(self._draw_codes(len(x))))
        judged = self.critic(torch.cat((x, fake)))
        distance = judged[: len(x)].mean() - judged[len(x) :].mean()
        penalty = gradient_penalty(self.critic, x, fake, generator=self._random)
        self.log("wasserstein_distance", distance)
        self.log("gradient_penalty", penalty)
        self._descend(self.penalty * penalty - distance, optimizer, self.learning_rate, settled)

    def _step_generator(self, num: int, optimizer: LightningOptimizer, settled: float) -> None:
        self.critic.requires_grad_(False)
        loss = -self.critic(self._inside(self.generator(self._draw_codes(num)))).mean()
        self.log("generator", loss)
        self._descend(loss, optimizer, self.learning_rate, settled)
        self.critic.requires_grad_(True)

    def _step_encoder(self, x: Tensor, optimizer: LightningOptimizer, settled: float) -> None:
        frozen = (self.generator, self.critic)
        for network in frozen:
            network.requires_grad_(False)
        residual, distance = self._terms(x, self._rebuilt(x))
        residual, distance = residual.mean(), distance.mean()
        self.log("residual", residual)
        self.log("feature_distance", distance)
        self._descend(residual + self.kappa * distance, optimizer, self.encoder_learning_rate, settled)
        for network in frozen:
            network.requires_grad_(True)

    def _descend(self, loss: Tensor, optimizer: LightningOptimizer, rate: float, settled: float) -> None:
        """One step down the loss at the rate's place on its cosine, `settled` in [0, 1) being the share of the phase done."""
        for group in optimizer.param_groups:
            group["lr"] = 0.5 * rate * (1 + math.cos(math.pi * settled))
        optimizer.zero_grad()
        with torch.autocast(self.device.type, enabled=False):  # the penalty is differentiated twice in float32
            self.manual_backward(loss)
        optimizer.step()

    def _draw_codes(self, num: int) -> Tensor:
        return torch.randn((num, self.latent), generator=self._random).to(self.device)

    def _inside(self, x: Tensor) -> Tensor:
        """Blank generated images outside the region of interest, as images are."""
        return x * self.preprocess.roi if self.preprocess.has_roi else x

    def _rebuilt(self, x: Tensor) -> Tensor:
        """x_hat (N, 3, h, w)."""
        return self._inside(self.generator(self.encoder(x)))

    def _terms(self, x: Tensor, x_hat: Tensor) -> tuple[Tensor, Tensor]:
        """A_R and A_D of each image, (N,) each; of the pixels inside the region of interest."""
        squares = (x - x_hat) ** 2
        residual = squares.mean(dim=(2, 3)).mean(dim=1)  # over (h, w) first: at once it loses digits
        if self.preprocess.has_roi:
            residual = residual / self.preprocess.roi.float().mean()
        distance = (self.critic.trunk(x) - self.critic.trunk(x_hat)) ** 2
        return residual, distance.mean(dim=(2, 3)).mean(dim=1)

    @torch.no_grad()
    def on_train_end(self) -> None:
        """Measure the residual at each pixel over the training images, with the final weights."""
        if self.standardise:
            self.eval()
            self.scale.measure(
                (self._residual(x, self._rebuilt(x)) for x in self.training_inputs()), roi=self.preprocess.roi
            )

    def _residual(self, x: Tensor, x_hat: Tensor) -> Tensor:
        """Smoothed residual map (N, h, w), 0 where x_hat equals x."""
        r = (x - x_hat).abs().mean(dim=1) if self.measure == "l1" else 1 - self.msgms((x + 1) / 2, (x_hat + 1) / 2)
        return smoothed(r, window=self.smooth)

    def anomaly(self, x: Tensor) -> Anomaly:
        """Score by A or by the map's maximum; the map is the smoothed residual by `measure`, in its scale."""
        x_hat = self._rebuilt(x)
        anomaly_map = self.inside_roi(self.scale(self._residual(x, x_hat)))
        if self.score == "map":
            return Anomaly(anomaly_map.amax(dim=(1, 2)), anomaly_map)
        residual, distance = self._terms(x, x_hat)
        return Anomaly(residual + self.kappa * distance, anomaly_map)
