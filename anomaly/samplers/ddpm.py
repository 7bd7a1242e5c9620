"""Denoising diffusion: a network removes noise step by step until an image remains.

J. Ho et al., "Denoising Diffusion Probabilistic Models", 2020, arXiv 2006.11239 (training, eq. 14; bound, eq. 5); J. Song et
al., "Denoising Diffusion Implicit Models", 2020, arXiv 2010.02502 (deterministic steps of `anomaly_map` and `encode`);
A. Nichol and P. Dhariwal, "Improved Denoising Diffusion Probabilistic Models", 2021, arXiv 2102.09672 (cosine schedule).
Partial diffusion as a detector: J. Wyatt et al., "AnoDDPM", CVPR workshops 2022.

Notation: x_0 -> image in [-1, 1]; t -> step 0 … T-1, one less than in the paper; a_t -> ᾱ_t; eps -> noise; D -> number of
values of an image.
What differs, and why:
* The network works on patches of 2 × 2 pixels, so that one CPU core trains it in minutes.
* It predicts the velocity, and the loss weights the velocity's error. After 300 steps on 188 images of bottles the samples
  were bottles. With predicted noise and the loss of eq. 14 they were still noise after 600 steps.
* x_0 is continuous, because a resized image has more than 256 levels. The decoder of eq. 13 is therefore a normal density.
* The bound's sum over t is estimated on strata with fixed noise, because T network evaluations per image are too many.
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
"""Assumed least share of wrongly predicted noise; it keeps the noisiest steps in the bound's estimate"""


class Ddpm(Sampler):
    """Denoising diffusion model, sampled by DDIM or DDPM. All functions use averaged weights.

    Args:
        size: side of the network's square input in pixels, a multiple of patch · 2^(levels - 1).
        resize: resizing rule, `stretch` or `letterbox`.
        patch: side of the U-Net's patches in pixels; 1 in the paper.
        widths: channels of the U-Net's levels, finest first.
        schedule: noise schedule: `linear` of the paper, `offset-cosine` of 2102.09672, or `cosine` without the offset.
        num_timesteps: number T of diffusion steps.
        weighting: error in the loss: `noise`, as in the paper, or `velocity`, with the weight 1 / ᾱ_t. With `velocity` a
            short training also learns the noisy steps, which determine the overall shape of the part.
        ema_decay: decay of the weight average; 0.9999 in the paper, which trains a hundred times longer.
        latent_steps: number of diffusion steps in `encode` and `decode`.
        bound_steps: number of network evaluations in `log_prob`.
        detect_strengths: noise levels of the partial diffusions in `anomaly_map`, as shares of the schedule in (0, 1].
        detect_steps: number of denoising steps in a partial diffusion.
        score: score of the detector form: `mean` or `peak` of the anomaly map, or `top`, the mean of its largest cells.
        smooth: side of the averaging window over the anomaly map in pixels, odd; 1 for no smoothing.
        standardise: scaling of each pixel of the anomaly map by its mean and deviation over the training images.
        learning_rate: initial learning rate of Adam, which follows a cosine to zero.
        epochs: passes over the training images.
        batch_size: images per optimisation step.
        seed: seed of the noise in training, in the bound and in the anomaly map.
        cache_gib: memory for preprocessed images between epochs in GiB.
    """

    max_gradient_norm = 1.0
    density: ClassVar[Density] = "bound"
    loop: ClassVar[str] = "diffusion"
    unsupported: ClassVar[dict[str, str]] = {
        "attribute": "its latents are nearly white noise, so that their mean does not represent an attribute",
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
                f"detect_strengths {list(detect_strengths)} and bound_steps {bound_steps}: give at least one strength,"
                " e.g. [0.25], and at least 3 steps, e.g. 16"
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
        """Mean squared error of the network at one random step per image (eq. 14)."""
        (x,) = self._cache.lookup(batch.path, lambda: [self.preprocessed(batch)])
        noise = torch.randn(x.shape, generator=self._random).to(x.device)
        t = torch.randint(len(self.chain), (len(x),), generator=self._random).to(x.device)
        x_t = self._scheduler.add_noise(2 * x - 1, noise, t)
        predicted = self.network(x_t, t)
        squares = (predicted - noise) ** 2 if self.weighting == "noise" else self.network.errors(predicted, noise, t)
        loss: Tensor = squares[:, :, self.preprocess.roi].mean() if self.preprocess.has_roi else squares.mean()
        self.log(self.weighting, loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Adam with one cosine to zero over the whole training."""
        num_steps = self.trainer.estimated_stepping_batches
        return cosine_adam(self.network.parameters(), num_steps=num_steps, learning_rate=self.learning_rate)

    def optimizer_step(self, *args: Any, **options: Any) -> None:
        """Take a step, and update the weight average."""
        super().optimizer_step(*args, **options)
        self.ema.update(self.network)

    # functions of the network

    def loop_settings(self) -> dict[str, Any]:
        """Return ᾱ_t of all steps."""
        return {"alphas_cumprod": self.alphas_cumprod}

    def functions(self) -> dict[str, tuple[Tensor, ...]]:
        """Name `denoise` only; the sampling loop builds everything else from it."""
        return {"denoise": (torch.zeros(2, 3, *self.preprocess.size), torch.tensor([1, 2]))}

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of the image: a latent is a noise image."""
        return (3, *self.preprocess.size)

    def denoise(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Predict the noise in states x_t (N, 3, h, w) of steps t (N,) int64 with the averaged weights."""
        noise: Tensor = self.ema(x_t, t)
        return noise

    def _noise_at(self, x_t: Tensor, t: int) -> Tensor:
        return self.denoise(x_t, torch.full((len(x_t),), t, dtype=torch.int64, device=x_t.device))

    def decode(self, z: Tensor) -> Tensor:
        """Map noise (N, 3, h, w) to images in [0, 1] by deterministic DDIM in `latent_steps` steps."""
        for t, s in itertools.pairwise([*self.latent_steps, -1]):
            z = self.chain.move(z, self._noise_at(z, t), t=t, s=s)
        return ((z + 1) / 2).clamp(0, 1)

    def encode(self, x: Tensor) -> Tensor:
        """Map images (N, 3, h, w) to their noise by DDIM inversion in `latent_steps` steps."""
        z, s = 2 * x - 1, -1
        for t in reversed(self.latent_steps):
            z, s = self.chain.move(z, self._noise_at(z, t), t=s, s=t), t
        return z

    def log_prob(self, x: Tensor) -> Tensor:
        """Estimate the variational bound of images (N, 3, h, w) in nats, (N,), without bias and with fixed draws.

        The bound is -L of eq. 5 as a density of x in [0, 1], with sigma_t² = β_t. L_T has a closed form and L_0 its own step.
        Each other L_t is a constant plus a weighted squared error (eq. 12); one of them is drawn per stratum, once.
        """
        x_0 = 2 * x - 1
        dim = math.prod(x_0.shape[1:])
        a = self.chain.a(len(self.chain) - 1)
        bound = -0.5 * ((1 - a) + a * x_0**2 - 1 - math.log(1 - a)).flatten(1).sum(dim=1)  # L_T
        bound = bound - dim * (_constant(self.chain) - math.log(2))  # the density doubles from [-1, 1] to [0, 1]
        for noise, t, weight in zip(self.bound_noise, self.bound_at.tolist(), self.bound_weights.tolist(), strict=True):
            predicted = self._noise_at(self.chain.noised(x_0, noise, t=t), t)
            bound = bound - weight * ((noise - predicted) ** 2).flatten(1).sum(dim=1)
        return bound

    def anomaly_map(self, x: Tensor) -> Tensor:
        """Compute each pixel's difference between images (N, 3, h, w) and their partial diffusions, (N, h, w)."""
        x_0, num = 2 * x - 1, len(self.detect_steps)
        states = [
            self.chain.noised(x_0, noise, t=timesteps[0])
            for noise, timesteps in zip(self.detect_noise, self.detect_steps, strict=True)
        ]
        for step in range(len(self.detect_steps[0])):  # all strengths in one batch
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
    """Sum of the bound's constants per value of an image, in nats.

    The constant of L_0 is ½ log(2π β). Each other constant is the KL divergence of two normal densities with equal means and
    the variances β̃_t and β_t.
    """
    a = _levels(chain)
    beta = 1 - a[1:] / a[:-1]
    ratio = (1 - a[1:-1]) / (1 - a[2:])  # β̃_t / β_t of t = 1 … T-1
    return float(0.5 * (2 * math.pi * beta[0]).log() + 0.5 * (ratio - 1 - ratio.log()).sum())


def _strata(chain: Chain, *, num: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Choose the steps of the bound's estimate and the weights of their squared errors (eq. 12).

    The first step is t = 0, for L_0. The other steps form up to `num` ranges of about equal expected contribution, under the
    assumption of white images of deviation 1/2. One step is drawn per range.

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
            continue  # one step fills more than a range
        drawn = int(torch.multinomial(share[members], 1, generator=generator))
        chance = float(share[members][drawn] / share[members].sum())
        at.append(int(members[drawn]) + 1)
        weights.append(float(weight[members][drawn]) / chance)
    return torch.tensor(at), torch.tensor(weights, dtype=torch.float32)
