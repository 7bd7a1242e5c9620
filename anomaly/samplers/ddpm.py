"""Denoising diffusion: an image is what is left when a network has taken the noise away, step by step.

J. Ho et al., "Denoising Diffusion Probabilistic Models", 2020, arXiv 2006.11239 (training, eq. 14; bound, eq. 5); J. Song et
al., "Denoising Diffusion Implicit Models", 2020, arXiv 2010.02502 (the deterministic steps of `anomaly_map` and `encode`);
A. Nichol and P. Dhariwal, "Improved Denoising Diffusion Probabilistic Models", 2021, arXiv 2102.09672 (the cosine schedule).
Partial diffusion as a detector: J. Wyatt et al., "AnoDDPM", CVPR workshops 2022.

Notation: x_0 -> image in [-1, 1]; t -> 0 … T-1, one less than in the paper; a_t -> ᾱ_t; eps -> noise; D -> values of an image.
What differs, and why: the network works on patches of 2 × 2 pixels, which one CPU core trains in minutes; inside it says the
velocity, and training weighs its errors as such: after 300 steps on 188 images of bottles that drew bottles, where a
network that says the noise, trained by eq. 14, drew noise after 600; x_0 is taken as a continuous value, because a resized
image has no 256 levels, so that the decoder of eq. 13 is a normal density; the bound's sum over t is drawn in strata,
once, with its noise, because T evaluations for a number are too many.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from anomaly.errors import UsageError
from anomaly.generation.diffusion import Chain
from anomaly.nn.batch import Batch
from anomaly.nn.denoiser import Denoiser
from anomaly.nn.ema import Ema
from anomaly.nn.feature_cache import FeatureCache
from anomaly.nn.optim import cosine_adam
from anomaly.nn.preprocess import Resize
from anomaly.samplers._noise_schedule import Schedule, noise_schedule
from anomaly.samplers.base import Density, Sampler, Score

LEAST_ERROR = 1e-3
"""Share of the noise that no network says rightly; it keeps the noisiest steps among those that the bound looks at"""


class Ddpm(Sampler):
    """DDPM, drawn by DDIM or DDPM; weights are averaged over training for all but training itself.

    Args:
        size: side of the network's square input in pixels, a multiple of patch · 2^(levels - 1).
        resize: `stretch` or `letterbox`.
        patch: side in pixels of the patches that the U-Net works on; the paper's is 1.
        widths: channels of the U-Net's levels, from the finest down.
        schedule: `linear` is the paper's, `offset-cosine` that of 2102.09672, `cosine` the same without its offset.
        num_timesteps: T.
        weighting: whose squared error training minimises; `noise` is the paper's, `velocity` weighs it by 1 / ᾱ_t, so that the
            noisy steps, in which the whole of the part is decided, are learned in a short training too.
        ema_decay: of the average of the weights; the paper's is 0.9999, for a hundred times as many steps.
        latent_steps: steps of `encode` and `decode`.
        bound_steps: evaluations of the network in `log_prob`.
        detect_strengths: how far along the schedule images are noised for `anomaly_map`, each in (0, 1]; averaged.
        detect_steps: steps that take the noise away again.
        score: `peak` or `mean` of the map.
        smooth: side in pixels of the averaging window over the map, odd; 1 leaves it.
        standardise: whether each pixel of the map is measured by mean and deviation of the training images there.
        learning_rate: of Adam, at the start of the cosine.
        epochs: passes over the training images.
        batch_size: images per step.
        seed: of the noise, that of training and that of the bound and the anomaly_map.
        cache_gib: memory in GiB for preprocessed images kept between epochs.
    """

    max_gradient_norm = 1.0
    density: ClassVar[Density] = "bound"
    loop: ClassVar[str] = "diffusion"
    unsupported: ClassVar[dict[str, str]] = {
        "attribute": "its latents are nearly white noise, whose mean over images says nothing of what they share",
    }

    bound_noise: Tensor
    detect_noise: Tensor
    bound_at: Tensor
    bound_weights: Tensor

    def __init__(
        self,
        *,
        size: int = 64,
        resize: Resize = "stretch",
        patch: int = 2,
        widths: Sequence[int] = (32, 64, 96),
        schedule: Schedule = "offset-cosine",
        num_timesteps: int = 1000,
        weighting: Literal["noise", "velocity"] = "velocity",
        ema_decay: float = 0.99,
        latent_steps: int = 10,
        bound_steps: int = 16,
        detect_strengths: Sequence[float] = (0.05, 0.1, 0.15),
        detect_steps: int = 1,
        score: Score = "peak",
        smooth: int = 3,
        standardise: bool = True,
        learning_rate: float = 2e-3,
        epochs: int = 110,
        batch_size: int = 8,
        seed: int = 0,
        cache_gib: float = 2.0,
    ) -> None:
        super().__init__(
            size=size, resize=resize, score=score, smooth=smooth, standardise=standardise, epochs=epochs,
            batch_size=batch_size,
        )  # fmt: skip
        self.save_hyperparameters()
        if not detect_strengths or bound_steps < 3:
            raise UsageError(
                f"detect_strengths {list(detect_strengths)} and bound_steps {bound_steps}: give one strength or more,"
                " e.g. [0.25], and 3 steps or more, e.g. 16"
            )
        scheduler = noise_schedule(schedule, num_timesteps=num_timesteps)
        self.alphas_cumprod: list[float] = scheduler.alphas_cumprod.tolist()
        self.chain = Chain(self.alphas_cumprod)
        self._scheduler = scheduler
        self.network = Denoiser(
            size=size, in_channels=3, out_channels=3, widths=widths, patch=patch, alphas_cumprod=self.alphas_cumprod
        )
        self.weighting = weighting
        self.ema = Ema(self.network, decay=ema_decay)
        self.latent_steps = self.chain.invertible(latent_steps)
        self.detect_steps = [self.chain.timesteps(detect_steps, strength=strength) for strength in detect_strengths]
        self.learning_rate = learning_rate
        self._random = torch.Generator().manual_seed(seed)
        self._cache = FeatureCache(max_bytes=int(cache_gib * 2**30))
        stored = torch.Generator().manual_seed(seed + 1)
        at, weights = _strata(self.chain, num=bound_steps - 1, generator=stored)
        for name, num in (("bound_noise", len(at)), ("detect_noise", len(detect_strengths))):
            self.register_buffer(name, torch.randn((num, 3, size, size), generator=stored))
        self.register_buffer("bound_at", at)
        self.register_buffer("bound_weights", weights)

    # training

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """Mean square between the noise that was added, at a step drawn for each image, and what the network says (eq. 14)."""
        (x,) = self._cache.lookup(batch.path, lambda: [self.preprocessed(batch)])
        noise = torch.randn(x.shape, generator=self._random).to(x.device)
        t = torch.randint(len(self.chain), (len(x),), generator=self._random).to(x.device)
        x_t = self._scheduler.add_noise(2 * x - 1, noise, t)
        said = self.network(x_t, t)
        squares = (said - noise) ** 2 if self.weighting == "noise" else self.network.errors(said, noise, t)
        loss: Tensor = squares[:, :, self.preprocess.roi].mean() if self.preprocess.has_roi else squares.mean()
        self.log(self.weighting, loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Adam with one cosine to zero over the whole training."""
        num_steps = self.trainer.estimated_stepping_batches
        return cosine_adam(self.network.parameters(), num_steps=num_steps, learning_rate=self.learning_rate)

    def optimizer_step(self, *args: Any, **options: Any) -> None:
        """Take a step, and let the average follow."""
        super().optimizer_step(*args, **options)
        self.ema.update(self.network)

    # what follows from the network

    def loop_settings(self) -> dict[str, Any]:
        """ᾱ_t of all steps."""
        return {"alphas_cumprod": self.alphas_cumprod}

    def functions(self) -> dict[str, tuple[Tensor, ...]]:
        """`denoise` alone: sampling, inversion and the way back are loops of the loop over it."""
        return {"denoise": (torch.zeros(2, 3, *self.preprocess.size), torch.tensor([1, 2]))}

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """That of the image: a latent is a noise image."""
        return (3, *self.preprocess.size)

    def denoise(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Say the noise in states x_t (N, 3, h, w) of steps t (N,) int64, by the averaged weights."""
        noise: Tensor = self.ema(x_t, t)
        return noise

    def _noise_at(self, x_t: Tensor, t: int) -> Tensor:
        return self.denoise(x_t, torch.full((len(x_t),), t, dtype=torch.int64, device=x_t.device))

    def decode(self, z: Tensor) -> Tensor:
        """Map noise (N, 3, h, w) to images in [0, 1], by deterministic DDIM in `latent_steps` steps."""
        for t, s in itertools.pairwise([*self.latent_steps, -1]):
            z = self.chain.move(z, self._noise_at(z, t), t=t, s=s)
        return ((z + 1) / 2).clamp(0, 1)

    def encode(self, x: Tensor) -> Tensor:
        """Map images (N, 3, h, w) to the noise that they come from, by DDIM inversion in `latent_steps` steps."""
        z, s = 2 * x - 1, -1
        for t in reversed(self.latent_steps):
            z, s = self.chain.move(z, self._noise_at(z, t), t=s, s=t), t
        return z

    def log_prob(self, x: Tensor) -> Tensor:
        """Give the variational bound of images (N, 3, h, w), (N,), in nats: an unbiased estimate with fixed draws.

        It is -L of eq. 5 as a density of x in [0, 1], with sigma_t² = β_t: L_T in closed form, L_0 at its own step, and of the
        other L_t, each a constant and a weight times a squared error (eq. 12), one from each stratum of the sum, drawn once.
        """
        x_0 = 2 * x - 1
        dim = math.prod(x_0.shape[1:])
        a = self.chain.a(len(self.chain) - 1)
        bound = -0.5 * ((1 - a) + a * x_0**2 - 1 - math.log(1 - a)).flatten(1).sum(dim=1)  # L_T
        bound = bound - dim * (_constant(self.chain) - math.log(2))  # from [-1, 1] to [0, 1] it is 2 times as dense
        for noise, t, weight in zip(self.bound_noise, self.bound_at.tolist(), self.bound_weights.tolist(), strict=True):
            said = self._noise_at(self.chain.noised(x_0, noise, t=t), t)
            bound = bound - weight * ((noise - said) ** 2).flatten(1).sum(dim=1)
        return bound

    def anomaly_map(self, x: Tensor) -> Tensor:
        """Give how far images (N, 3, h, w) are, pixel by pixel, from what partial diffusion makes of them, (N, h, w)."""
        x_0, num = 2 * x - 1, len(self.detect_steps)
        states = [
            self.chain.noised(x_0, noise, t=timesteps[0])
            for noise, timesteps in zip(self.detect_noise, self.detect_steps, strict=True)
        ]
        for step in range(len(self.detect_steps[0])):  # all strengths go through the network together
            at = torch.cat([torch.full_like(x_0[:, 0, 0, 0], steps[step]) for steps in self.detect_steps]).to(
                torch.int64
            )
            noises = self.denoise(torch.cat(states), at).reshape(num, -1, *x.shape[1:])
            ends = [([*steps, -1][step : step + 2]) for steps in self.detect_steps]
            states = [
                self.chain.move(state, noise, t=t, s=s)
                for state, noise, (t, s) in zip(states, noises.unbind(0), ends, strict=True)
            ]
        error = sum(((state.clamp(-1, 1) - x_0).abs().mean(dim=1) for state in states), torch.zeros_like(x_0[:, 0]))
        return error / num


def _levels(chain: Chain) -> Tensor:
    """ᾱ of t = -1, the clean image, to T-1, float64."""
    return torch.tensor([chain.a(t) for t in range(-1, len(chain))], dtype=torch.float64)


def _constant(chain: Chain) -> float:
    """What the bound's terms hold beside the squared errors, for each value of an image, in nats.

    Of L_0 that is ½ log(2π β), of the others the KL of two normal densities of one mean, with the variances β̃_t and β_t.
    """
    a = _levels(chain)
    beta = 1 - a[1:] / a[:-1]
    ratio = (1 - a[1:-1]) / (1 - a[2:])  # β̃_t / β_t of t = 1 … T-1
    return float(0.5 * (2 * math.pi * beta[0]).log() + 0.5 * (ratio - 1 - ratio.log()).sum())


def _strata(chain: Chain, *, num: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Choose the steps at which the bound is looked at, and what their squared errors weigh (eq. 12).

    The first is t = 0, that of L_0. The other steps are cut into up to `num` ranges of about equal weight times error, as far
    as that is foreseen (white images of deviation 1/2), and one is drawn from each.

    Returns:
        (n,) int64 steps, and (n,) float32 weights.
    """
    a = _levels(chain)
    kept = a[2:] / a[1:-1]  # α_t of t = 1 …
    weight = (1 - kept) / (2 * kept * (1 - a[2:]))
    signal = 0.25 * a[2:]
    share = weight * (signal / (signal + 1 - a[2:])).clamp(min=LEAST_ERROR)
    reached = share.cumsum(0) / share.sum()
    at, weights = [0], [1 / (2 * float(a[1]))]
    stratum = (reached * num).ceil().clamp(1, num)
    for number in range(1, num + 1):
        members = (stratum == number).nonzero()[:, 0]
        if not len(members):
            continue  # a step that alone outweighs a range
        drawn = int(torch.multinomial(share[members], 1, generator=generator))
        chance = float(share[members][drawn] / share[members].sum())
        at.append(int(members[drawn]) + 1)
        weights.append(float(weight[members][drawn]) / chance)
    return torch.tensor(at), torch.tensor(weights, dtype=torch.float32)
