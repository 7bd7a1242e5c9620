"""f-AnoGAN: the residual between an image and its reconstruction by a generator of good images.

T. Schlegl et al., "f-AnoGAN: Fast unsupervised anomaly detection with generative adversarial networks", Medical Image
Analysis, 2019.

Notation: x -> image in [-1, 1], (N, 3, h, w); z -> code; G -> generator; D -> critic; f -> its features; E -> encoder;
x_hat -> G(E(x)); A_R -> mean of (x - x_hat)²; A_D -> mean of (f(x) - f(x_hat))²; A -> A_R + kappa · A_D.

As in the paper: first a residual WGAN-GP; then, with G and D frozen, an encoder that minimises A, which is the score.
What differs, and why:
* Whole images replace patches, because the detector learns the shape of a part.
* The paper's codes end in tanh, in [-1, 1], but G is trained on N(0, 1). A third of the values of each coordinate, and nearly
  every whole code, is then outside the encoder's range. `code_range` widens the codes to r · tanh(u / r); r = 1 in the paper.
  With r = 3 the same G reconstructs calibration images with half the squared error.
* Both phases share one fit. Each learning rate follows one cosine to zero, so that the last step of each phase has converged.
* The score is the maximum of a smoothed gradient-similarity map. It finds synthetic defects that A misses, because A is a mean
  over the whole image. The paper's map and score are options.
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
from anomaly.nn.map_scaling import PixelScale, check_window, smoothed
from anomaly.nn.preprocess import Preprocess, Resize
from anomaly.nn.residual_gan import Critic, Generator, Trunk, gradient_penalty
from anomaly.nn.score_pooling import Pooling, ScorePooling
from anomaly.nn.similarity import GradientSimilarity

CELL = 2
"""Side in pixels of a cell of pooling `top`"""


class Encoder(nn.Module):
    """Encoder E: the critic's trunk with batch norm, then r · tanh(u / r) of a linear map u, where r is `code_range`.

    Args:
        size: side of the images in pixels, a power of two.
        width: channels of the finest map.
        latent: length of the code.
        code_range: largest absolute value of a code's elements.
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
        size: side of the network's square input in pixels, a power of two from 16 up; 64 in the paper.
        resize: resizing rule, `stretch` or `letterbox`.
        width: channels of the finest map; 64 in the paper (DIM).
        latent: length of the code.
        code_range: largest absolute value in the encoder's codes; 1 in the paper.
        gan_share: share of the steps for generator and critic; the remaining steps train the encoder.
        critic_steps: critic steps per generator step; 5 in the paper.
        penalty: weight of the gradient penalty.
        kappa: weight of the feature distance A_D, relative to the residual A_R.
        measure: measure of the anomaly map: `l1`, the paper's |x - x_hat|, or `msgms`, gradients at four scales.
        score: image score: `izi_f`, the paper's A, or `map`, pooled from the anomaly map.
        smooth: side in pixels of the averaging window over the anomaly map, odd; 1 for no averaging.
        standardise: scaling of each pixel of the anomaly map by its mean and deviation over the training images.
        pooling: pooling of the map to the score: `maximum`, or `top`, the mean of its largest cells.
        top: share of the cells that pooling `top` averages, in (0, 1].
        learning_rate: learning rate of Adam for generator and critic at the start of the cosine.
        encoder_learning_rate: learning rate of RMSProp for the encoder at the start of the cosine.
        epochs: passes over the training images, both phases together.
        batch_size: images per optimisation step.
        seed: random seed of the codes and of the gradient penalty.
        cache_gib: memory in GiB for preprocessed images that stay in memory between epochs; 0 for none.
    """

    tiling = WindowsOnly("its encoder outputs one code for the whole input")
    num_steps: Tensor
    """() int64, number of completed steps; it determines the phase, also after an interruption"""

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
        pooling: Pooling = "maximum",
        top: float = 0.02,
        learning_rate: float = 1e-3,
        encoder_learning_rate: float = 2e-4,
        epochs: int = 100,
        batch_size: int = 8,
        seed: int = 0,
        cache_gib: float = 2.0,
    ) -> None:
        check_window(smooth)
        if not 0 < gan_share < 1:
            raise UsageError(f"gan_share {gan_share}: both phases need steps; use a share between 0 and 1, e.g. 0.5")
        # images in [-1, 1], the range of G's output
        preprocess = Preprocess(size=(size, size), resize=resize, mean=(0.5,) * 3, std=(0.5,) * 3)
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
        self.pooling = ScorePooling(pooling, top=top, cell=CELL)
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
        """Train critic and, every `critic_steps` steps, generator; in the second phase, train the encoder."""
        (x,) = self._cache.lookup(batch.path, lambda: [self.preprocessed(batch)])
        x = x.contiguous()  # one memory layout, cached or not: rounding depends on the kernel for the layout
        of_generator, of_critic, of_encoder = self.optimizers()  # type: ignore[attr-defined]
        total, done = int(self.trainer.estimated_stepping_batches), int(self.num_steps)
        num_adversarial = max(1, round(self.gan_share * total))
        adversarial = done < num_adversarial
        self.generator.train(adversarial)  # the batch norms of G are the only layers of G and D with a mode
        if adversarial:
            progress = done / num_adversarial
            self._step_critic(x, of_critic, progress)
            if (done + 1) % self.critic_steps == 0:
                self._step_generator(len(x), of_generator, progress)
        else:
            self._step_encoder(x, of_encoder, (done - num_adversarial) / (total - num_adversarial))
        self.num_steps += 1

    def _step_critic(self, x: Tensor, optimizer: LightningOptimizer, progress: float) -> None:
        with torch.no_grad():
            fake = self._inside(self.generator(self._draw_codes(len(x))))
        value = self.critic(torch.cat((x, fake)))
        distance = value[: len(x)].mean() - value[len(x) :].mean()
        penalty = gradient_penalty(self.critic, x, fake, generator=self._random)
        self.log("wasserstein_distance", distance)
        self.log("gradient_penalty", penalty)
        self._descend(self.penalty * penalty - distance, optimizer, self.learning_rate, progress)

    def _step_generator(self, num: int, optimizer: LightningOptimizer, progress: float) -> None:
        self.critic.requires_grad_(False)
        loss = -self.critic(self._inside(self.generator(self._draw_codes(num)))).mean()
        self.log("generator", loss)
        self._descend(loss, optimizer, self.learning_rate, progress)
        self.critic.requires_grad_(True)

    def _step_encoder(self, x: Tensor, optimizer: LightningOptimizer, progress: float) -> None:
        frozen = (self.generator, self.critic)
        for network in frozen:
            network.requires_grad_(False)
        residual, distance = self._terms(x, self._reconstruct(x))
        residual, distance = residual.mean(), distance.mean()
        self.log("residual", residual)
        self.log("feature_distance", distance)
        self._descend(residual + self.kappa * distance, optimizer, self.encoder_learning_rate, progress)
        for network in frozen:
            network.requires_grad_(True)

    def _descend(self, loss: Tensor, optimizer: LightningOptimizer, rate: float, progress: float) -> None:
        """Take one step with the cosine of `rate` at `progress`, the completed share of the phase in [0, 1)."""
        for group in optimizer.param_groups:
            group["lr"] = 0.5 * rate * (1 + math.cos(math.pi * progress))
        optimizer.zero_grad()
        with torch.autocast(self.device.type, enabled=False):  # the second derivative of the penalty needs float32
            self.manual_backward(loss)
        optimizer.step()

    def _draw_codes(self, num: int) -> Tensor:
        return torch.randn((num, self.latent), generator=self._random).to(self.device)

    def _inside(self, x: Tensor) -> Tensor:
        """Set generated images to zero outside the region of interest, as preprocessing does."""
        return x * self.preprocess.roi if self.preprocess.has_roi else x

    def _reconstruct(self, x: Tensor) -> Tensor:
        """Reconstruction x_hat (N, 3, h, w)."""
        return self._inside(self.generator(self.encoder(x)))

    def _terms(self, x: Tensor, x_hat: Tensor) -> tuple[Tensor, Tensor]:
        """A_R and A_D of each image, (N,) each, over the region of interest."""
        squares = (x - x_hat) ** 2
        residual = squares.mean(dim=(2, 3)).mean(dim=1)  # over (h, w) first: a single mean loses digits
        if self.preprocess.has_roi:
            residual = residual / self.preprocess.roi.float().mean()
        distance = (self.critic.trunk(x) - self.critic.trunk(x_hat)) ** 2
        return residual, distance.mean(dim=(2, 3)).mean(dim=1)

    @torch.no_grad()
    def on_train_end(self) -> None:
        """Measure mean and deviation of each pixel's residual over the training images, with the final weights."""
        if self.standardise:
            self.eval()
            self.scale.measure(
                (self._residual(x, self._reconstruct(x)) for x in self.training_inputs()), roi=self.preprocess.roi
            )

    def _residual(self, x: Tensor, x_hat: Tensor) -> Tensor:
        """Smoothed residual map (N, h, w), 0 where x_hat equals x."""
        r = (x - x_hat).abs().mean(dim=1) if self.measure == "l1" else 1 - self.msgms((x + 1) / 2, (x_hat + 1) / 2)
        return smoothed(r, window=self.smooth)

    def anomaly(self, x: Tensor) -> Anomaly:
        """Compute the map, the standardised smoothed residual; the score is A or pooled from the map."""
        x_hat = self._reconstruct(x)
        anomaly_map = self.inside_roi(self.scale(self._residual(x, x_hat)))
        if self.score == "map":
            return Anomaly(self.pooled_score(anomaly_map), anomaly_map)
        residual, distance = self._terms(x, x_hat)
        return Anomaly(residual + self.kappa * distance, anomaly_map)
