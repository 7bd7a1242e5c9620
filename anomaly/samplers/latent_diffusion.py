"""Latent diffusion: an autoencoder compresses the image, and a diffusion with an optional defect mask draws the latent.

R. Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", 2022, arXiv 2112.10752 (§ 3.1: autoencoder
with a small KL term; appendix G: latents of unit deviation by the first batch; § 3.3: conditions by concatenation).

Notation: x -> image; z -> latent (N, C, h', w'); z_t -> noised latent; m -> cells of the requested defect; k -> cells with the
given latent of the good part.
What differs, and why:
* There is no adversarial and no perceptual loss, because their networks would outweigh the rest. Gradients at several scales
  (MSGMS) keep edges sharp.
* Procedural patterns on good parts replace images of defects, because these are few (`examples`) or missing. m = 0 then draws
  good parts, and m > 0 a defect of that shape. A pattern's class is its brightness relative to the part.
* Both phases share one fit, and the learning rate of each follows one cosine to zero.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional

from anomaly.errors import UsageError
from anomaly.generation.diffusion import Chain
from anomaly.generation.latent_diffusion import NUM_FLAGS
from anomaly.nn.batch import Batch
from anomaly.nn.corruption import corrupt
from anomaly.nn.denoiser import Denoiser, num_groups
from anomaly.nn.ema import Ema
from anomaly.nn.feature_cache import FeatureCache
from anomaly.nn.preprocess import Resize
from anomaly.nn.similarity import GradientSimilarity
from anomaly.samplers._defect_examples import mix_in, read_examples
from anomaly.samplers._noise_schedule import Schedule, noise_schedule
from anomaly.samplers.base import Sampler, Score

OPAQUE = 0.1
"""Least opacity of a painted pixel in a defect mask"""
NORM_EPSILON = 1e-3
"""Epsilon of the autoencoder's norms. The 1e-6 of diffusers amplifies rounding in flat images a thousandfold"""
CONTRAST = 0.3
"""Change of brightness at which the outermost defect classes begin"""


class _Painted(NamedTuple):
    """Good images, about half of them with a painted pattern."""

    x: Tensor
    where: Tensor
    """(N, 1, h, w) in {0, 1}, mask of the pattern"""
    hidden: Tensor
    """(N, 1, h, w) in {0, 1}, pixels whose latent is not given, also in images without a pattern"""
    label: Tensor
    """(N,) class of the pattern; -1 without a given class"""
    known: Tensor
    """(N, 3, h, w), images with the given latent where nothing is hidden"""


class LatentDiffusion(Sampler):
    """Latent diffusion, unconditional or conditioned on a mask, a good part and a class.

    Args:
        size: side of the network's square input in pixels.
        resize: resizing rule, `stretch` or `letterbox`.
        autoencoder_widths: channels of the autoencoder's levels, finest first; each further level halves the latent's sides.
        latent_channels: number C of latent channels.
        kl_weight: weight of the KL term per latent value, relative to L1 and MSGMS.
        patch: side of the denoiser's patches in cells.
        widths: channels of the denoiser's levels, finest first.
        schedule: noise schedule: `linear`, `cosine` or `offset-cosine`.
        num_timesteps: number T of diffusion steps.
        num_classes: number of defect classes, from the darkest relative to the part to the brightest; 0 for no classes.
        examples: category whose defects with masks replace half of the patterns; None uses patterns only.
        ema_decay: decay of the denoiser's weight average.
        autoencoder_share: share of the steps for the autoencoder; the other steps train the denoiser.
        detect_strength: noise level of the partial diffusion in `anomaly_map`, as a share of the schedule in (0, 1].
        detect_steps: number of denoising steps in the partial diffusion.
        score: score of the detector form: `mean` or `peak` of the anomaly map, or `top`, the mean of its largest cells.
        smooth: side of the averaging window over the anomaly map in pixels, odd; 1 for no smoothing.
        standardise: scaling of each pixel of the anomaly map by its mean and deviation over the training images.
        learning_rate: initial learning rate of Adam in each phase, which follows a cosine to zero.
        epochs: passes over the training images in both phases together.
        batch_size: images per optimisation step.
        seed: seed of noise and defects in training, and of the anomaly map's noise.
        cache_gib: memory for preprocessed images between epochs in GiB.
    """

    loop: ClassVar[str] = "latent_diffusion"
    unsupported: ClassVar[dict[str, str]] = {
        "log_prob": "its decoder has no density of images",
        "attribute": "its latents keep positions, so that their mean is a blurred part",
    }

    num_steps: Tensor
    """() int64, number of completed steps; it determines the phase after a resume"""
    latent_mean: Tensor
    latent_deviation: Tensor
    reach: Tensor
    """() largest absolute value of a clean latent"""
    detect_noise: Tensor

    def __init__(
        self,
        *,
        size: int = 128,
        resize: Resize = "stretch",
        autoencoder_widths: Sequence[int] = (8, 16, 32),
        latent_channels: int = 4,
        kl_weight: float = 1e-4,
        patch: int = 2,
        widths: Sequence[int] = (48, 96, 128),
        schedule: Schedule = "offset-cosine",
        num_timesteps: int = 1000,
        num_classes: int = 3,
        examples: str | None = None,
        ema_decay: float = 0.99,
        autoencoder_share: float = 0.3,
        detect_strength: float = 0.25,
        detect_steps: int = 1,
        score: Score = "peak",
        smooth: int = 7,
        standardise: bool = True,
        learning_rate: float = 2e-3,
        epochs: int = 70,
        batch_size: int = 8,
        seed: int = 0,
        cache_gib: float = 2.0,
    ) -> None:
        super().__init__(
            size=size, resize=resize, score=score, smooth=smooth, standardise=standardise, epochs=epochs,
            batch_size=batch_size,
        )  # fmt: skip
        self.save_hyperparameters()
        self.automatic_optimization = False
        if not 0 < autoencoder_share < 1:
            raise UsageError(
                f"autoencoder_share {autoencoder_share}: both phases need steps; give a number between 0 and 1, e.g. 0.4"
            )
        if not autoencoder_widths or any(width < 4 or width % 4 for width in autoencoder_widths):
            raise UsageError(f"autoencoder_widths {list(autoencoder_widths)}: give multiples of 4, e.g. [16, 32]")
        if num_classes < 0:
            raise UsageError(f"num_classes {num_classes}: give 0 or more, e.g. 3")
        factor = 2 ** (len(autoencoder_widths) - 1)
        if size % (8 * factor):
            raise UsageError(
                f"size {size}: give a multiple of {8 * factor}, e.g. {max(1, size // 8 // factor) * 8 * factor}"
            )
        self.cells = size // factor
        num_levels = len(autoencoder_widths)
        self.autoencoder = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * num_levels,
            up_block_types=("UpDecoderBlock2D",) * num_levels,
            block_out_channels=tuple(autoencoder_widths),
            latent_channels=latent_channels,
            norm_num_groups=num_groups(autoencoder_widths),
            sample_size=size,
            mid_block_add_attention=False,
        )
        for norm in self.autoencoder.modules():
            if isinstance(norm, nn.GroupNorm):
                norm.eps = NORM_EPSILON
        self.latent_channels, self.num_classes = latent_channels, num_classes
        self._scheduler = noise_schedule(schedule, num_timesteps=num_timesteps)
        self.alphas_cumprod: list[float] = self._scheduler.alphas_cumprod.tolist()
        self.network = Denoiser(
            size=self.cells, in_channels=NUM_FLAGS + 2 * latent_channels + num_classes, out_channels=latent_channels,
            widths=widths, patch=patch, alphas_cumprod=self.alphas_cumprod,
        )  # fmt: skip
        self.ema = Ema(self.network, decay=ema_decay)
        self.chain = Chain(self.alphas_cumprod)
        self.detect_steps = self.chain.timesteps(detect_steps, strength=detect_strength)
        self.kl_weight, self.autoencoder_share, self.learning_rate = kl_weight, autoencoder_share, learning_rate
        self.msgms = GradientSimilarity()
        self.register_buffer("num_steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("latent_mean", torch.zeros(1, latent_channels, 1, 1))
        self.register_buffer("latent_deviation", torch.ones(1, latent_channels, 1, 1))
        self.register_buffer("reach", torch.full((), 3.0))
        stored = torch.Generator().manual_seed(seed + 1)
        self.register_buffer("detect_noise", torch.randn((1, *self.latent_shape), generator=stored))
        self.examples = examples
        self._examples: tuple[Tensor, Tensor] | None = None
        self._random = torch.Generator().manual_seed(seed)
        self._cache = FeatureCache(max_bytes=int(cache_gib * 2**30))

    # training

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Return one Adam for the autoencoder and one for the denoiser."""
        return [
            torch.optim.Adam(network.parameters(), lr=self.learning_rate)
            for network in (self.autoencoder, self.network)
        ]

    def training_step(self, batch: Batch, index: int) -> None:
        """Take one step of the autoencoder in the first phase, of the denoiser in the second."""
        (x,) = self._cache.lookup(batch.path, lambda: [self.preprocessed(batch)])
        x = x.contiguous()  # cached or not, one memory layout and so one rounding
        total, done = int(self.trainer.estimated_stepping_batches), int(self.num_steps)
        num_first = min(max(1, round(self.autoencoder_share * total)), total - 1)
        painted = self._paint(x)
        phase = 0 if done < num_first else 1
        if phase == 0:
            loss, progress = self._autoencoder_loss(painted.x), done / num_first
        else:
            if done == num_first:
                self._measure_latents(x)
            loss, progress = self._denoiser_loss(painted), (done - num_first) / (total - num_first)
        optimizer = self.optimizers()[phase]  # type: ignore[index]
        for group in optimizer.param_groups:
            group["lr"] = 0.5 * self.learning_rate * (1 + math.cos(math.pi * progress))
        optimizer.zero_grad()
        self.manual_backward(loss)
        self.clip_gradients(optimizer.optimizer, gradient_clip_val=1.0, gradient_clip_algorithm="norm")
        optimizer.step()
        if phase == 1:
            self.ema.update(self.network)
        self.num_steps += 1

    def _uniform(self, num: int) -> Tensor:
        return torch.rand((num, 1, 1, 1), generator=self._random)

    def _paint(self, x: Tensor) -> _Painted:
        """Paint a pattern on about half of the images."""
        painted, opacity = corrupt(x, generator=self._random)
        hidden = opacity > OPAQUE
        if self.preprocess.has_roi:
            hidden = hidden & self.preprocess.roi
        where = hidden & (self._uniform(len(x)) < 0.5).to(x.device)
        painted = torch.where(where, painted, x)
        contrast = (painted - x).mean(dim=1, keepdim=True).sum(dim=(1, 2, 3)) / where.sum(dim=(1, 2, 3)).clamp(min=1)
        share = (contrast / CONTRAST + 1) / 2  # 0 at the darkest, 1 at the brightest
        label = (share * self.num_classes).floor().clamp(0, max(0, self.num_classes - 1)).long()
        is_given = (self._uniform(len(x)) < 0.5).view(-1).to(x.device)
        label = torch.where(is_given, label, torch.full_like(label, -1))
        if self.examples is None:
            return _Painted(painted, where.to(x.dtype), hidden.to(x.dtype), label, x)
        if self._examples is None:
            self._examples = read_examples(Path(self.examples), self.preprocess)
        known, painted, mask, replaced = mix_in(x, painted, where.to(x.dtype), self._examples, generator=self._random)
        hidden_part = torch.where(replaced.view(-1, 1, 1, 1), mask, hidden.to(x.dtype))
        return _Painted(painted, mask, hidden_part, torch.where(replaced, torch.full_like(label, -1), label), known)

    def _autoencoder_loss(self, x: Tensor) -> Tensor:
        """L1 and MSGMS of images decoded from sampled latents, plus the latents' KL divergence to N(0, I)."""
        mean, log_variance = self.autoencoder.encode(2 * x - 1).latent_dist.parameters.float().chunk(2, dim=1)
        log_variance = log_variance.clamp(-30.0, 20.0)
        drawn = torch.randn(mean.shape, generator=self._random).to(x.device)
        x_hat = (self.autoencoder.decode(mean + torch.exp(0.5 * log_variance) * drawn).sample.float() + 1) / 2
        with torch.autocast(self.device.type, enabled=False):
            residual = (x - x_hat).abs().mean(dim=1)
            gradients = 1 - self.msgms(x, x_hat)
            if self.preprocess.has_roi:
                residual, gradients = residual[:, self.preprocess.roi], gradients[:, self.preprocess.roi]
            divergence = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()
        self.log("residual", residual.mean())
        self.log("gradients", gradients.mean())
        self.log("divergence", divergence)
        loss: Tensor = residual.mean() + gradients.mean() + self.kl_weight * divergence
        return loss

    @torch.no_grad()
    def _measure_latents(self, x: Tensor) -> None:
        """Measure mean and deviation of each channel and the largest value on the latents of one batch."""
        z = self._mean_latent(x)
        self.latent_mean.copy_(z.mean(dim=(0, 2, 3), keepdim=True))
        self.latent_deviation.copy_(z.std(dim=(0, 2, 3), keepdim=True).clamp(min=1e-4))
        self.reach.copy_(1.2 * self.encode(x).abs().amax())

    def _denoiser_loss(self, painted: _Painted) -> Tensor:
        """Mean squared error of the denoiser's velocity on noised latents of painted images, given the mask."""
        x = painted.x
        with torch.no_grad():
            z, good = self.encode(painted.x), self.encode(painted.known)
        m, hidden = (functional.max_pool2d(part, x.shape[-1] // self.cells) for part in (painted.where, painted.hidden))
        k = (1 - hidden) * (self._uniform(len(x)) < 0.5).to(x.device)  # half of the images have no given latent
        of_class = painted.label[:, None] == torch.arange(self.num_classes, device=x.device)
        planes = m * of_class[:, :, None, None]
        noise = torch.randn(z.shape, generator=self._random).to(x.device)
        t = torch.randint(len(self.chain), (len(x),), generator=self._random).to(x.device)
        z_t = self._scheduler.add_noise(z, noise, t)
        predicted = self.network(torch.cat((z_t, m, k, good * k, planes), dim=1), t)
        loss = self.network.errors(predicted, noise, t).mean()
        self.log("velocity", loss, prog_bar=True)
        return loss

    def on_fit_end(self) -> None:
        """Drop the cached images."""
        super().on_fit_end()
        self._examples = None

    # functions of the networks

    def loop_settings(self) -> dict[str, Any]:
        """Return ᾱ_t of all steps, the number of classes, and the largest absolute value of a clean latent."""
        return {
            "alphas_cumprod": self.alphas_cumprod,
            "num_classes": self.num_classes,
            "reach": float(self.reach),
        }

    def functions(self) -> dict[str, tuple[Tensor, ...]]:
        """Name `encode`, `decode`, and `denoise` with its condition."""
        condition = torch.zeros(2, NUM_FLAGS + self.latent_channels + self.num_classes, self.cells, self.cells)
        return super().functions() | {"denoise": (torch.zeros(2, *self.latent_shape), torch.tensor([1, 2]), condition)}

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape (C, h', w') of one latent."""
        return (self.latent_channels, self.cells, self.cells)

    def _mean_latent(self, x: Tensor) -> Tensor:
        mean: Tensor = self.autoencoder.encode(2 * x - 1, return_dict=False)[0].mean
        return mean.float()

    def encode(self, x: Tensor) -> Tensor:
        """Map images (N, 3, h, w) to the means of their latents (N, C, h', w'), of unit deviation."""
        return (self._mean_latent(x) - self.latent_mean) / self.latent_deviation

    def decode(self, z: Tensor) -> Tensor:
        """Map latents (N, C, h', w') to images (N, 3, h, w) in [0, 1]."""
        x: Tensor = self.autoencoder.decode(z * self.latent_deviation + self.latent_mean, return_dict=False)[0]
        return ((x.float() + 1) / 2).clamp(0, 1)

    def denoise(self, z_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """Predict the noise in latents z_t of steps t with the averaged weights.

        Args:
            z_t: noised latents (N, C, h', w').
            t: steps (N,) int64.
            condition: (N, 2 + C + num_classes, h', w'): m, k, the given latent inside k, and one mask per defect class.
        """
        noise: Tensor = self.ema(torch.cat((z_t, condition), dim=1), t)
        return noise

    def anomaly_map(self, x: Tensor) -> Tensor:
        """Compute each pixel's difference between images (N, 3, h, w) and their partial diffusion, (N, h, w)."""
        z = self.chain.noised(self.encode(x), self.detect_noise, t=self.detect_steps[0])
        condition = torch.zeros_like(z[:, :1]).expand(-1, NUM_FLAGS + self.latent_channels + self.num_classes, -1, -1)
        for t, s in itertools.pairwise([*self.detect_steps, -1]):
            step = torch.full((z.shape[0],), t, dtype=torch.int64, device=z.device)
            z = self.chain.move(z, self.denoise(z, step, condition), t=t, s=s)
        return (self.decode(z) - x).abs().mean(dim=1)
