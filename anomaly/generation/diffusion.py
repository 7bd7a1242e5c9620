"""Sampling loop of denoising diffusion: DDPM and DDIM, inversion, interpolation, partial diffusion and inpainting.

J. Ho et al., "Denoising Diffusion Probabilistic Models", 2020, arXiv 2006.11239 (DDPM); J. Song et al., "Denoising Diffusion
Implicit Models", 2020, arXiv 2010.02502 (DDIM); A. Lugmayr et al., "RePaint: Inpainting using Denoising Diffusion
Probabilistic Models", 2022, arXiv 2201.09865.

Notation: x_t -> state of the chain; t -> step 0 … T-1, one less than in DDPM; t = -1 -> the clean image; a_t -> ᾱ_t, 1 for
t = -1; eps -> predicted noise in x_t; s -> target step of a move, s < t in denoising.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from anomaly.errors import UsageError
from anomaly.generation.base import (
    Array,
    Options,
    RunFunction,
    SamplerInfo,
    SamplingLoop,
    check_interpolation,
    check_mask,
)

X = TypeVar("X", bound=Any)
Denoise = Callable[[Array, int], Array]
"""Predicts the noise in states x_t (n, …) of step t"""
NUM_RESAMPLINGS = 3
"""Draws of each step in RePaint, with one step of noise in between"""
INVERTIBLE = 0.01
"""Smallest ᾱ in an inversion. A step back divides the network's error by ᾱ"""
NUM_ROUNDS = 3
"""Fixed-point iterations per step of an inversion"""


class Chain:
    """Noise levels of a diffusion and the moves between them, on numpy arrays and tensors.

    Args:
        alphas_cumprod: ᾱ_t of t = 0 … T-1, decreasing.
    """

    def __init__(self, alphas_cumprod: Sequence[float]) -> None:
        self._alphas_cumprod = [float(a) for a in alphas_cumprod]

    def __len__(self) -> int:
        return len(self._alphas_cumprod)

    def a(self, t: int) -> float:
        """Return ᾱ_t, 1 for the clean image at t = -1."""
        return 1.0 if t < 0 else self._alphas_cumprod[t]

    def timesteps(self, steps: int, *, strength: float = 1.0) -> list[int]:
        """Choose `steps` equally spaced timesteps from strength · T downwards; the last one leads to the clean image.

        Raises:
            UsageError: the strength is not in (0, 1], or the number of steps is not in 1 … strength · T.
        """
        if not 0 < strength <= 1:
            raise UsageError(f"strength {strength}: a share of the noise schedule is above 0 and at most 1, e.g. 0.25")
        top = max(1, round(len(self) * strength))
        if not 1 <= steps <= top:
            raise UsageError(f"steps {steps}: the noise schedule has {top} steps; give 1 to {top}, e.g. {min(50, top)}")
        return [round(top * (steps - n) / steps) - 1 for n in range(steps)]

    def partial(self, steps: int, *, strength: float) -> list[int]:
        """Choose strength · `steps` timesteps from strength · T downwards, at least one.

        Raises:
            UsageError: as in `timesteps`.
        """
        self.timesteps(steps)
        return self.timesteps(max(1, min(round(steps * strength), round(len(self) * strength))), strength=strength)

    def invertible(self, steps: int) -> list[int]:
        """Choose the timesteps of an inversion among `steps` equally spaced ones, the noisiest first."""
        chosen = self.timesteps(steps)
        return [t for t in chosen if self.a(t) >= INVERTIBLE] or chosen[-1:]

    def clean(self, x: X, eps: X, *, t: int) -> X:
        """Compute the clean image of x_t with noise eps (DDPM eq. 4 solved for x_0, DDIM eq. 9)."""
        return (x - eps * math.sqrt(1 - self.a(t))) / math.sqrt(self.a(t))  # type: ignore[no-any-return]

    def noised(self, x: X, noise: X, *, t: int) -> X:
        """Compute x_t of a clean image and standard normal noise (DDPM eq. 4)."""
        return x * math.sqrt(self.a(t)) + noise * math.sqrt(1 - self.a(t))  # type: ignore[no-any-return]

    def move(self, x: X, eps: X, *, t: int, s: int) -> X:
        """Take the deterministic step from t to s, in either direction (DDIM eq. 12 and 13, sigma = 0)."""
        return self.noised(self.clean(x, eps, t=t), eps, t=s)

    def sigma(self, *, t: int, s: int, eta: float) -> float:
        """Compute the standard deviation of a step's fresh noise (DDIM eq. 16); eta = 1 is DDPM's posterior (eq. 7)."""
        a_t, a_s = self.a(t), self.a(s)
        return eta * math.sqrt((1 - a_s) / (1 - a_t)) * math.sqrt(1 - a_t / a_s)

    def back(self, x: Array, eps: Array, noise: Array, *, t: int, s: int, eta: float, bound: float) -> Array:
        """Draw x_s from x_t (DDIM eq. 12). The clean image is clipped to ±bound, and eps is recomputed from it."""
        x_0 = self.clean(x, eps, t=t).clip(-bound, bound)
        fitting = (x - math.sqrt(self.a(t)) * x_0) / math.sqrt(1 - self.a(t))
        sigma = self.sigma(t=t, s=s, eta=eta)
        drawn = math.sqrt(self.a(s)) * x_0 + math.sqrt(max(0.0, 1 - self.a(s) - sigma**2)) * fitting + sigma * noise
        return drawn.astype(np.float32)

    def again(self, x: Array, noise: Array, *, t: int, s: int) -> Array:
        """Add noise to x_s to reach x_t (DDPM eq. 2 over the steps in between)."""
        kept = self.a(t) / self.a(s)
        return (math.sqrt(kept) * x + math.sqrt(1 - kept) * noise).astype(np.float32)


class DiffusionLoop(SamplingLoop):
    """Sampling loop over `denoise(x_t, t)`: states (n, 3, h, w) and steps t (n,) int64 to noise; clean states are in [-1, 1].

    The setting `alphas_cumprod` holds ᾱ_t of all steps.
    """

    known_options = frozenset({"steps", "eta", "strength"})
    bound = 1.0
    """Largest absolute value of a clean state"""

    def __init__(self, run_function: RunFunction, info: SamplerInfo) -> None:
        super().__init__(run_function, info)
        self.chain = Chain(info.settings["alphas_cumprod"])

    # overridden by a loop in another space

    @property
    def state_shape(self) -> tuple[int, ...]:
        """Shape of one image's state."""
        return (3, *self.info.size)

    def to_state(self, x: Array) -> Array:
        """Map images (n, 3, h, w) in [0, 1] to clean states."""
        return 2 * x - 1

    def to_image(self, state: Array) -> Array:
        """Map clean states to images (n, 3, h, w) in [0, 1]."""
        return ((state + 1) / 2).clip(0, 1).astype(np.float32)

    def unknown_states(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Map masks (n, h, w) to the masked values of a state, (n, 1, …) bool."""
        return mask[:, None]

    def denoise(self, n: int, options: Options) -> Denoise:
        """Return the network for n images under these options."""
        return lambda x, t: self.run_function("denoise", x, np.full(n, t, dtype=np.int64))

    # sampling

    def sample(self, n: int, *, rng: np.random.Generator, options: Options) -> Array:
        """Draw n images in `steps` steps, by DDIM at eta 0 and DDPM at eta 1.

        Raises:
            UsageError: steps not in 1 … T, or eta not in [0, 1].
        """
        x = rng.standard_normal((n, *self.state_shape), dtype=np.float32)
        return self.to_image(
            self.descend(self.denoise(n, options), x, self.chain.timesteps(options.steps), rng=rng, eta=options.eta)
        )

    def reconstruct(self, x: Array, *, rng: np.random.Generator, options: Options) -> Array:
        """Add noise to images up to strength · T, then denoise them in strength · `steps` steps.

        Raises:
            UsageError: steps not in 1 … T, eta not in [0, 1], or strength not in (0, 1].
        """
        timesteps = self.chain.partial(options.steps, strength=options.strength)
        self.check_images(x)
        state = self.to_state(x)
        noised = self.chain.noised(state, rng.standard_normal(state.shape, dtype=np.float32), t=timesteps[0])
        return self.to_image(self.descend(self.denoise(len(x), options), noised, timesteps, rng=rng, eta=options.eta))

    def invert(self, x: Array, *, options: Options) -> Array:
        """Find the noise from which `draw` reproduces images: DDIM inversion up to ᾱ = 0.01.

        Each DDIM step is solved for the noisier state by fixed-point iteration.

        Returns:
            (n, *state_shape) float32.
        """
        self.check_images(x)
        denoise, state = self.denoise(len(x), options), self.to_state(x)
        s = -1
        for t in reversed(self.chain.invertible(options.steps)):
            above = state
            for _ in range(NUM_ROUNDS):
                above = self.chain.move(state, denoise(above, t), t=s, s=t).astype(np.float32)
            state, s = above, t
        return state

    def draw(self, z: Array, *, options: Options) -> Array:
        """Draw images from the result of `invert`, deterministically and without clipping in between."""
        denoise = self.denoise(len(z), options)
        for t, s in itertools.pairwise([*self.chain.invertible(options.steps), -1]):
            z = self.chain.move(z, denoise(z, t), t=t, s=s).astype(np.float32)
        return self.to_image(z)

    def interpolate(self, a: Array, b: Array, *, num: int, options: Options) -> Array:
        """Return `num` images between a (3, h, w) and b, along the great circle between their noises (DDIM § 5.3).

        Raises:
            UsageError: fewer than two images, or two images of different sizes.
        """
        check_interpolation(a, b, num=num)
        first, last = self.invert(np.stack((a, b)), options=options)
        cosine = float((first * last).sum() / (np.linalg.norm(first) * np.linalg.norm(last)))
        angle = math.acos(min(1.0, max(-1.0, cosine)))
        way = np.linspace(0, 1, num, dtype=np.float32).reshape(-1, *[1] * first.ndim)
        if math.sin(angle) < 1e-3:  # parallel noises have no great circle
            between = first + way * (last - first)
        else:
            between = (np.sin((1 - way) * angle) * first + np.sin(way * angle) * last) / math.sin(angle)
        return self.draw(between.astype(np.float32), options=options)

    def inpaint(self, x: Array, mask: NDArray[np.bool_], *, rng: np.random.Generator, options: Options) -> Array:
        """Draw the pixels under a mask by RePaint, with three draws per step. Known pixels stay unchanged.

        Raises:
            UsageError: a mask of another size, steps not in 1 … T, or eta not in [0, 1].
        """
        self.check_images(x)
        check_mask(x, mask)
        drawn = self.repaint(
            self.denoise(len(x), options), self.to_state(x), self.unknown_states(mask), rng=rng, options=options
        )
        return np.where(mask[:, None], self.to_image(drawn), x).astype(np.float32)

    def repaint(
        self,
        denoise: Denoise,
        known: Array,
        unknown: NDArray[np.bool_],
        *,
        rng: np.random.Generator,
        options: Options,
    ) -> Array:
        """Draw the unknown values of clean states; the known ones get fresh noise in each step (RePaint, algorithm 1).

        Args:
            denoise: the network.
            known: clean states (n, …).
            unknown: bool, broadcast to the states' shape.
            rng: random generator of the draws.
            options: `steps` and `eta`.
        """

        def noise() -> Array:
            return rng.standard_normal(known.shape, dtype=np.float32)

        _check_eta(options.eta)
        x = noise()
        for t, s in itertools.pairwise([*self.chain.timesteps(options.steps), -1]):
            num = NUM_RESAMPLINGS if s >= 0 else 1
            for round_ in range(num):
                eps = denoise(x, t)
                drawn = self.chain.back(x, eps, noise(), t=t, s=s, eta=options.eta, bound=self.bound)  # eq. 8b
                below = np.where(unknown, drawn, self.chain.noised(known, noise(), t=s))  # eq. 8a and 8c
                x = below if round_ == num - 1 else self.chain.again(below, noise(), t=t, s=s)
        return x

    def descend(
        self, denoise: Denoise, x: Array, timesteps: list[int], *, rng: np.random.Generator, eta: float
    ) -> Array:
        """Denoise states x of the first timestep down to clean states."""
        _check_eta(eta)
        for t, s in itertools.pairwise([*timesteps, -1]):
            noise = rng.standard_normal(x.shape, dtype=np.float32) if eta else np.zeros_like(x)
            x = self.chain.back(x, denoise(x, t), noise, t=t, s=s, eta=eta, bound=self.bound)
        return x


def _check_eta(eta: float) -> None:
    if not 0 <= eta <= 1:
        raise UsageError(f"eta {eta}: 0 is DDIM, 1 is DDPM; give a number from 0 to 1")
