"""Generative adversarial network: a generator that a critic cannot tell from images, under one of four objectives.

I. Goodfellow et al., "Generative Adversarial Networks", 2014, arXiv 1406.2661 (algorithm 1; §3: the non-saturating loss).
Networks and guidelines: A. Radford et al., "DCGAN", 2015, arXiv 1511.06434. Objectives beside the first:

    lsgan      X. Mao et al., "Least Squares Generative Adversarial Networks", 2016, arXiv 1611.04076, eq. 2
    wgan       M. Arjovsky et al., "Wasserstein GAN", 2017, arXiv 1701.07875, algorithm 1: clipped weights, RMSProp
    wgan-gp    I. Gulrajani et al., "Improved Training of Wasserstein GANs", 2017, arXiv 1704.00028, algorithm 1

Notation: x -> image in [0, 1], in the networks in [-1, 1]; z -> latent, N(0, I); G -> generator; D -> critic.
What differs, and why: images are drawn from a running average of G's weights, because G itself goes in circles about a
balance (T. Karras et al., "Progressive Growing of GANs", 2017, arXiv 1710.10196). The critic of wgan-gp has layer norm where
DCGAN has batch norm, since its penalty is of each image by itself.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.nn import functional

from anomaly.errors import UsageError
from anomaly.nn.batch import Batch
from anomaly.nn.dcgan import DcganDecoder, DcganEncoder
from anomaly.nn.ema import Ema
from anomaly.nn.feature_cache import FeatureCache
from anomaly.nn.preprocess import Resize
from anomaly.nn.residual_gan import SampleNorm, gradient_penalty
from anomaly.samplers.base import Sampler

Objective = Literal["non-saturating", "lsgan", "wgan", "wgan-gp"]
FAKE, REAL, WANTED = 0.0, 1.0, 1.0
"""a, b and c of LSGAN: what D is to say of drawn images and of images, and what G wants it to say of its own"""
NUM_MEASURED = 50
"""Batches over which the batch norms of the averaged generator are measured"""
NO_ENCODER = "a generator alone has no way from an image to its latent; f-AnoGAN is the one with an encoder: fanogan"


def critic_loss(objective: Objective, *, real: Tensor, fake: Tensor) -> Tensor:
    """What the critic minimises, but for the penalty of wgan-gp.

    Args:
        objective: one of the four; minus its value is the estimate of the Wasserstein distance in the last two.
        real: D of images, (N,).
        fake: D of drawn images, (N,).
    """
    if objective == "non-saturating":
        return functional.softplus(-real).mean() + functional.softplus(fake).mean()
    if objective == "lsgan":
        return 0.5 * ((real - REAL) ** 2).mean() + 0.5 * ((fake - FAKE) ** 2).mean()
    return fake.mean() - real.mean()


def generator_loss(objective: Objective, *, fake: Tensor) -> Tensor:
    """What the generator minimises, given D of drawn images, (N,)."""
    if objective == "non-saturating":
        return functional.softplus(-fake).mean()
    if objective == "lsgan":
        return 0.5 * ((fake - WANTED) ** 2).mean()
    return -fake.mean()


@torch.no_grad()
def clip_weights(critic: nn.Module, *, bound: float) -> None:
    """Keep every weight of a critic in [-bound, bound], as wgan does after each of its steps."""
    for parameter in critic.parameters():
        parameter.clamp_(-bound, bound)


class Gan(Sampler):
    """Deep convolutional GAN. It draws images and does nothing else: as a detector it has no score.

    Args:
        size: side of the images in pixels, a power of two from 16 on.
        resize: `stretch` or `letterbox`.
        width: channels of the finest map of both networks.
        latent: values of z.
        objective: what the two play for. With some hundred images wgan-gp is the one whose critic does not run away.
        critic_steps: steps of the critic for each of the generator; 5 in the papers of wgan and wgan-gp, 1 in the others.
        penalty: weight of the gradient penalty, of wgan-gp.
        clip: bound of the critic's weights, of wgan.
        decay: of the average of the generator's weights, in the long run.
        learning_rate: of Adam for both, of RMSProp under wgan.
        epochs: passes over the training images.
        batch_size: images per step.
        seed: of the latents and of the places of the gradient penalty.
        cache_gib: memory in GiB for preprocessed images kept between epochs.
    """

    unsupported: ClassVar[dict[str, str]] = {
        "encode": NO_ENCODER,
        "reconstruct": NO_ENCODER,
        "interpolate": NO_ENCODER,
        "inpaint": NO_ENCODER,
        "attribute": NO_ENCODER,
        "log_prob": "a generator says how to draw an image and not how likely one is",
        "anomaly_map": "it has neither a likelihood nor a reconstruction; f-AnoGAN is the detector among the GANs: fanogan",
    }

    num_steps: Tensor
    """() int64, steps of the critic done"""

    def __init__(
        self,
        *,
        size: int = 64,
        resize: Resize = "stretch",
        width: int = 16,
        latent: int = 64,
        objective: Objective = "wgan-gp",
        critic_steps: int = 2,
        penalty: float = 10.0,
        clip: float = 0.01,
        decay: float = 0.995,
        learning_rate: float = 1e-3,
        epochs: int = 120,
        batch_size: int = 16,
        seed: int = 0,
        cache_gib: float = 2.0,
    ) -> None:
        if critic_steps < 1:
            raise UsageError(f"critic_steps {critic_steps}: the critic goes first, give 1 or more, e.g. 5 for wgan-gp")
        super().__init__(
            size=size,
            resize=resize,
            score="mean",
            smooth=1,
            standardise=False,
            epochs=epochs,
            batch_size=batch_size,
        )
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.generator = DcganDecoder(size=size, width=width, inputs=latent)
        self.critic = DcganEncoder(size=size, width=width, outputs=1)
        if objective == "wgan-gp":
            _norm_each_image(self.critic)
        self.ema = Ema(self.generator, decay=decay)
        self.latent, self.objective, self.critic_steps = latent, objective, critic_steps
        self.penalty, self.clip, self.learning_rate = penalty, clip, learning_rate
        self.register_buffer("num_steps", torch.zeros((), dtype=torch.int64))
        self._random = torch.Generator().manual_seed(seed)
        self._cache = FeatureCache(max_bytes=int(cache_gib * 2**30))

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """One vector."""
        return (self.latent,)

    def decode(self, z: Tensor) -> Tensor:
        """Map latents (N, d) to images (N, 3, h, w) in [0, 1] by the averaged generator."""
        return self._images(self.ema.average, z)

    def _images(self, generator: nn.Module, z: Tensor) -> Tensor:
        x: Tensor = 0.5 * (generator(z[:, :, None, None]).float() + 1)
        return x * self.preprocess.roi if self.preprocess.has_roi else x

    def _judged(self, x: Tensor) -> Tensor:
        """D of images (N, 3, h, w) in [0, 1]: (N,)."""
        judged: Tensor = self.critic(2 * x - 1).float().flatten()
        return judged

    def _drawn(self, num: int) -> Tensor:
        z = torch.randn((num, self.latent), generator=self._random).to(self.device)
        return self._images(self.generator, z)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Of the generator and of the critic: as the paper of each objective has them."""
        networks = (self.generator, self.critic)
        if self.objective == "wgan":
            return [torch.optim.RMSprop(network.parameters(), lr=self.learning_rate) for network in networks]
        betas = (0.0, 0.9) if self.objective == "wgan-gp" else (0.5, 0.999)
        return [torch.optim.Adam(network.parameters(), lr=self.learning_rate, betas=betas) for network in networks]

    def training_step(self, batch: Batch, index: int) -> None:
        """One step of the critic, with one of the generator where it is due."""
        (x,) = self._cache.lookup(batch.path, lambda: [self.preprocessed(batch)])
        x = x.contiguous()  # one memory layout, cached or not: the kernel that it chooses rounds its own way
        of_generator, of_critic = self.optimizers()  # type: ignore[attr-defined]
        self._step_critic(x, of_critic)
        self.num_steps += 1
        if int(self.num_steps) % self.critic_steps == 0:
            self._step_generator(len(x), of_generator)
            self.ema.update(self.generator)

    def _step_critic(self, x: Tensor, optimizer: LightningOptimizer) -> None:
        with torch.no_grad():
            fake = self._drawn(len(x))
        # images and drawn images each in a batch of their own, as batch norm wants it
        loss = critic_loss(self.objective, real=self._judged(x), fake=self._judged(fake))
        self.log("critic", loss)
        if self.objective == "wgan-gp":
            penalty = gradient_penalty(
                lambda y: self.critic(y).flatten(), 2 * x - 1, 2 * fake - 1, generator=self._random
            )
            self.log("gradient_penalty", penalty)
            loss = loss + self.penalty * penalty
        self._descend(loss, optimizer)
        if self.objective == "wgan":
            clip_weights(self.critic, bound=self.clip)

    def _step_generator(self, num: int, optimizer: LightningOptimizer) -> None:
        self.critic.requires_grad_(False)
        loss = generator_loss(self.objective, fake=self._judged(self._drawn(num)))
        self.log("generator", loss)
        self._descend(loss, optimizer)
        self.critic.requires_grad_(True)

    def _descend(self, loss: Tensor, optimizer: LightningOptimizer) -> None:
        optimizer.zero_grad()
        with torch.autocast(self.device.type, enabled=False):  # the penalty is differentiated twice in float32
            self.manual_backward(loss)
        optimizer.step()

    @torch.no_grad()
    def on_train_end(self) -> None:
        """Measure the batch norms of the averaged generator: those of the last one do not fit its weights."""
        norms = [layer for layer in self.ema.average.modules() if isinstance(layer, nn.BatchNorm2d)]
        for norm in norms:
            norm.reset_running_stats()
            norm.train()
        for number in range(1, NUM_MEASURED + 1):
            for norm in norms:
                norm.momentum = 1 / number  # the mean over all batches
            self.decode(torch.randn((self.batch_size, self.latent), generator=self._random).to(self.device))
        self.ema.eval()
        super().on_train_end()


def _norm_each_image(critic: DcganEncoder) -> None:
    """Put layer norm where a critic has batch norm."""
    for level in critic.features:
        assert isinstance(level, nn.Sequential)
        for position, layer in enumerate(level):
            if isinstance(layer, nn.BatchNorm2d):
                level[position] = SampleNorm(layer.num_features)
