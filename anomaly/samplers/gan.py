"""Generative adversarial network: a generator trained against a critic, under one of four objectives.

I. Goodfellow et al., "Generative Adversarial Networks", 2014, arXiv 1406.2661 (algorithm 1; §3: non-saturating loss).
Networks and guidelines: A. Radford et al., "DCGAN", 2015, arXiv 1511.06434. Other objectives:

    lsgan      X. Mao et al., "Least Squares Generative Adversarial Networks", 2016, arXiv 1611.04076, eq. 2
    wgan       M. Arjovsky et al., "Wasserstein GAN", 2017, arXiv 1701.07875, algorithm 1: clipped weights, RMSProp
    wgan-gp    I. Gulrajani et al., "Improved Training of Wasserstein GANs", 2017, arXiv 1704.00028, algorithm 1

Notation: x -> image in [0, 1], in the networks in [-1, 1]; z -> latent, N(0, I); G -> generator; D -> critic.
What differs, and why: sampling uses a running average of G's weights, because G itself oscillates (T. Karras et al.,
"Progressive Growing of GANs", 2017, arXiv 1710.10196). The critic of wgan-gp has layer norm in place of DCGAN's batch norm,
because its penalty treats each image separately.
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
FAKE, REAL, TARGET = 0.0, 1.0, 1.0
"""a, b and c of LSGAN: the critic's targets for generated and real images, and the generator's target"""
NUM_MEASURED = 50
"""Batches in the measurement of the averaged generator's batch norms"""
NO_ENCODER = "a generator has no encoder from an image to its latent; the detector fanogan (f-AnoGAN) has one"


def critic_loss(objective: Objective, *, real: Tensor, fake: Tensor) -> Tensor:
    """Compute the critic's loss, without the penalty of wgan-gp.

    Args:
        objective: objective of the game. Under `wgan` and `wgan-gp` the negative loss estimates the Wasserstein distance.
        real: critic's output for real images, (N,).
        fake: critic's output for generated images, (N,).
    """
    if objective == "non-saturating":
        return functional.softplus(-real).mean() + functional.softplus(fake).mean()
    if objective == "lsgan":
        return 0.5 * ((real - REAL) ** 2).mean() + 0.5 * ((fake - FAKE) ** 2).mean()
    return fake.mean() - real.mean()


def generator_loss(objective: Objective, *, fake: Tensor) -> Tensor:
    """Compute the generator's loss from the critic's output for generated images, (N,)."""
    if objective == "non-saturating":
        return functional.softplus(-fake).mean()
    if objective == "lsgan":
        return 0.5 * ((fake - TARGET) ** 2).mean()
    return -fake.mean()


@torch.no_grad()
def clip_weights(critic: nn.Module, *, bound: float) -> None:
    """Clip every weight of a critic to [-bound, bound], as wgan does after each critic step."""
    for parameter in critic.parameters():
        parameter.clamp_(-bound, bound)


class Gan(Sampler):
    """Deep convolutional GAN. It only draws images; it has no detector form.

    Args:
        size: side of the images in pixels, a power of two of at least 16.
        resize: resizing rule, `stretch` or `letterbox`.
        width: channels of both networks at their finest resolution.
        latent: number of values of z.
        objective: objective of the game. wgan-gp is the most stable one on a few hundred images.
        critic_steps: critic steps per generator step; 5 in the papers of wgan and wgan-gp, 1 in the others.
        penalty: weight of the gradient penalty of wgan-gp.
        clip: bound of the critic's weights under wgan.
        decay: final decay of the generator's weight average.
        learning_rate: learning rate of Adam for both networks; of RMSProp under wgan.
        epochs: passes over the training images.
        batch_size: images per optimisation step.
        seed: seed of the latents and of the gradient penalty's positions.
        cache_gib: memory for preprocessed images between epochs in GiB.
    """

    unsupported: ClassVar[dict[str, str]] = {
        "encode": NO_ENCODER,
        "reconstruct": NO_ENCODER,
        "interpolate": NO_ENCODER,
        "inpaint": NO_ENCODER,
        "attribute": NO_ENCODER,
        "log_prob": "a generator draws images, but has no density of them",
        "anomaly_map": "a GAN has neither a likelihood nor a reconstruction; the detector fanogan (f-AnoGAN) has one",
    }

    num_steps: Tensor
    """() int64, number of completed critic steps"""

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
            raise UsageError(f"critic_steps {critic_steps}: give 1 or more, e.g. 5 for wgan-gp")
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
        """Shape of one latent vector."""
        return (self.latent,)

    def decode(self, z: Tensor) -> Tensor:
        """Map latents (N, d) to images (N, 3, h, w) in [0, 1] with the averaged generator."""
        return self._images(self.ema.average, z)

    def _images(self, generator: nn.Module, z: Tensor) -> Tensor:
        x: Tensor = 0.5 * (generator(z[:, :, None, None]).float() + 1)
        return x * self.preprocess.roi if self.preprocess.has_roi else x

    def _critic_output(self, x: Tensor) -> Tensor:
        """Critic's output (N,) for images (N, 3, h, w) in [0, 1]."""
        output: Tensor = self.critic(2 * x - 1).float().flatten()
        return output

    def _draw(self, num: int) -> Tensor:
        z = torch.randn((num, self.latent), generator=self._random).to(self.device)
        return self._images(self.generator, z)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Return the optimisers of generator and critic, as in the paper of each objective."""
        networks = (self.generator, self.critic)
        if self.objective == "wgan":
            return [torch.optim.RMSprop(network.parameters(), lr=self.learning_rate) for network in networks]
        betas = (0.0, 0.9) if self.objective == "wgan-gp" else (0.5, 0.999)
        return [torch.optim.Adam(network.parameters(), lr=self.learning_rate, betas=betas) for network in networks]

    def training_step(self, batch: Batch, index: int) -> None:
        """Take one critic step, and a generator step after every `critic_steps` of them."""
        (x,) = self._cache.lookup(batch.path, lambda: [self.preprocessed(batch)])
        x = x.contiguous()  # cached or not, one memory layout and so one rounding
        generator_optimizer, critic_optimizer = self.optimizers()  # type: ignore[attr-defined]
        self._step_critic(x, critic_optimizer)
        self.num_steps += 1
        if int(self.num_steps) % self.critic_steps == 0:
            self._step_generator(len(x), generator_optimizer)
            self.ema.update(self.generator)

    def _step_critic(self, x: Tensor, optimizer: LightningOptimizer) -> None:
        with torch.no_grad():
            fake = self._draw(len(x))
        # separate batches of real and generated images for batch norm
        loss = critic_loss(self.objective, real=self._critic_output(x), fake=self._critic_output(fake))
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
        loss = generator_loss(self.objective, fake=self._critic_output(self._draw(num)))
        self.log("generator", loss)
        self._descend(loss, optimizer)
        self.critic.requires_grad_(True)

    def _descend(self, loss: Tensor, optimizer: LightningOptimizer) -> None:
        optimizer.zero_grad()
        with torch.autocast(self.device.type, enabled=False):  # the penalty needs second derivatives in float32
            self.manual_backward(loss)
        optimizer.step()

    @torch.no_grad()
    def on_train_end(self) -> None:
        """Measure the batch norms of the averaged generator; those of the last generator do not fit its weights."""
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
    """Replace batch norm with layer norm in a critic."""
    for level in critic.features:
        assert isinstance(level, nn.Sequential)
        for position, layer in enumerate(level):
            if isinstance(layer, nn.BatchNorm2d):
                level[position] = SampleNorm(layer.num_features)
