"""Drawing by denoising diffusion: DDPM and DDIM, inversion, interpolation, partial diffusion and inpainting.

J. Ho et al., "Denoising Diffusion Probabilistic Models", 2020, arXiv 2006.11239 (DDPM); J. Song et al., "Denoising Diffusion
Implicit Models", 2020, arXiv 2010.02502 (DDIM); A. Lugmayr et al., "RePaint: Inpainting using Denoising Diffusion
Probabilistic Models", 2022, arXiv 2201.09865.

Notation: x_t -> state of the chain; t -> 0 … T-1, one less than in DDPM, -1 being the clean image; a_t -> ᾱ_t, 1 for t = -1;
eps -> the noise that the network sees in x_t; s -> the step that is gone to, s < t when denoising.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from anomaly.errors import UsageError
from anomaly.generation.base import Array, Call, Facts, Options, Process

X = TypeVar("X", bound=Any)
Denoise = Callable[[Array, int], Array]
"""Says the noise in states x_t (n, …) of step t"""
NUM_RESAMPLINGS = 3
"""How often RePaint draws each step anew, noised back by one step in between"""
INVERTIBLE = 0.01
"""Least ᾱ that inversion goes up to: where less of the image is left, a step back divides the network's error by it"""
NUM_ROUNDS = 3
"""Evaluations per step of an inversion, each at the state that the one before led to"""


class Chain:
    """The noise levels of a diffusion and the moves between them, on numpy arrays and tensors alike.

    Args:
        alphas_cumprod: ᾱ_t of t = 0 … T-1, falling.
    """

    def __init__(self, alphas_cumprod: Sequence[float]) -> None:
        self._alphas_cumprod = [float(a) for a in alphas_cumprod]

    def __len__(self) -> int:
        return len(self._alphas_cumprod)

    def a(self, t: int) -> float:
        """ᾱ_t, 1 for the clean image, t = -1."""
        return 1.0 if t < 0 else self._alphas_cumprod[t]

    def timesteps(self, steps: int, *, strength: float = 1.0) -> list[int]:
        """Choose `steps` equally spaced ones, from the strength's share of T down; the last leads to the clean image.

        Raises:
            UsageError: a strength outside (0, 1], fewer than one step, or more than there are.
        """
        if not 0 < strength <= 1:
            raise UsageError(f"strength {strength}: an image is noised along a share of the schedule; give e.g. 0.25")
        top = max(1, round(len(self) * strength))
        if not 1 <= steps <= top:
            raise UsageError(f"steps {steps}: the noise schedule has {top} steps; give 1 to {top}, e.g. {min(50, top)}")
        return [round(top * (steps - n) / steps) - 1 for n in range(steps)]

    def partial(self, steps: int, *, strength: float) -> list[int]:
        """Choose the share of `steps` that the strength has of the schedule, one at least.

        Raises:
            UsageError: as in `timesteps`.
        """
        self.timesteps(steps)
        return self.timesteps(max(1, min(round(steps * strength), round(len(self) * strength))), strength=strength)

    def invertible(self, steps: int) -> list[int]:
        """Choose those of `steps` equally spaced ones that inversion goes through, the noisiest first."""
        chosen = self.timesteps(steps)
        return [t for t in chosen if self.a(t) >= INVERTIBLE] or chosen[-1:]

    def clean(self, x: X, eps: X, *, t: int) -> X:
        """The image that x_t comes from if eps is its noise (DDPM eq. 4 solved for x_0, DDIM eq. 9)."""
        return (x - eps * math.sqrt(1 - self.a(t))) / math.sqrt(self.a(t))  # type: ignore[no-any-return]

    def noised(self, x: X, noise: X, *, t: int) -> X:
        """x_t of a clean image and standard normal noise (DDPM eq. 4)."""
        return x * math.sqrt(self.a(t)) + noise * math.sqrt(1 - self.a(t))  # type: ignore[no-any-return]

    def move(self, x: X, eps: X, *, t: int, s: int) -> X:
        """Take the deterministic step from t to s, in either direction (DDIM eq. 12 and 13, sigma = 0)."""
        return self.noised(self.clean(x, eps, t=t), eps, t=s)

    def sigma(self, *, t: int, s: int, eta: float) -> float:
        """Deviation of the noise that a step adds (DDIM eq. 16); at eta = 1 that of DDPM's posterior (eq. 7)."""
        a_t, a_s = self.a(t), self.a(s)
        return eta * math.sqrt((1 - a_s) / (1 - a_t)) * math.sqrt(1 - a_t / a_s)

    def back(self, x: Array, eps: Array, noise: Array, *, t: int, s: int, eta: float, bound: float) -> Array:
        """Draw x_s from x_t (DDIM eq. 12), the image in between held within ±bound and eps made to fit it."""
        x_0 = self.clean(x, eps, t=t).clip(-bound, bound)
        fitting = (x - math.sqrt(self.a(t)) * x_0) / math.sqrt(1 - self.a(t))
        sigma = self.sigma(t=t, s=s, eta=eta)
        drawn = math.sqrt(self.a(s)) * x_0 + math.sqrt(max(0.0, 1 - self.a(s) - sigma**2)) * fitting + sigma * noise
        return drawn.astype(np.float32)

    def again(self, x: Array, noise: Array, *, t: int, s: int) -> Array:
        """Noise x_s back to x_t (DDPM eq. 2 over the steps in between)."""
        kept = self.a(t) / self.a(s)
        return (math.sqrt(kept) * x + math.sqrt(1 - kept) * noise).astype(np.float32)


class DiffusionProcess(Process):
    """Draws through `denoise(x_t, t)`, the noise in states (n, 3, h, w), in [-1, 1] where clean, of steps t (n,) int64.

    `facts.own` holds `alphas_cumprod`, ᾱ_t of all steps.
    """

    knows = frozenset({"steps", "eta", "strength"})
    bound = 1.0
    """Largest value of a clean state"""

    def __init__(self, call: Call, facts: Facts) -> None:
        super().__init__(call, facts)
        self.chain = Chain(facts.own["alphas_cumprod"])

    # what a chain in another space writes anew

    @property
    def state_shape(self) -> tuple[int, ...]:
        """Of one image."""
        return (3, *self.facts.size)

    def to_state(self, x: Array) -> Array:
        """Map images (n, 3, h, w) in [0, 1] to clean states."""
        return 2 * x - 1

    def to_image(self, state: Array) -> Array:
        """Map clean states to images (n, 3, h, w) in [0, 1]."""
        return ((state + 1) / 2).clip(0, 1).astype(np.float32)

    def unknown_states(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which values of a state lie under masks (n, h, w): (n, 1, …) bool."""
        return mask[:, None]

    def denoise(self, n: int, options: Options) -> Denoise:
        """Give the network for n images, told what the options ask for."""
        return lambda x, t: self.call("denoise", x, np.full(n, t, dtype=np.int64))

    # the loops

    def sample(self, n: int, *, rng: np.random.Generator, options: Options) -> Array:
        """Draw n images in `steps` steps, by DDIM at eta 0 and DDPM at eta 1.

        Raises:
            UsageError: steps outside 1 … T, or eta outside [0, 1].
        """
        x = rng.standard_normal((n, *self.state_shape), dtype=np.float32)
        return self.to_image(
            self.descend(self.denoise(n, options), x, self.chain.timesteps(options.steps), rng=rng, eta=options.eta)
        )

    def reconstruct(self, x: Array, *, rng: np.random.Generator, options: Options) -> Array:
        """Noise images up to the strength's share of the schedule, and denoise them in that share of the steps.

        Raises:
            UsageError: steps outside 1 … T, eta outside [0, 1], strength outside (0, 1].
        """
        timesteps = self.chain.partial(options.steps, strength=options.strength)
        self.check_images(x)
        state = self.to_state(x)
        noised = self.chain.noised(state, rng.standard_normal(state.shape, dtype=np.float32), t=timesteps[0])
        return self.to_image(self.descend(self.denoise(len(x), options), noised, timesteps, rng=rng, eta=options.eta))

    def invert(self, x: Array, *, options: Options) -> Array:
        """Find the noise from which `draw` gives images back: DDIM inversion, as far up as ᾱ is 0.01.

        Each step is DDIM's, solved for the noisier state by a few rounds of putting in the last one.

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
        """Draw images from the noise that `invert` found, deterministically, without a bound in between."""
        denoise = self.denoise(len(z), options)
        for t, s in itertools.pairwise([*self.chain.invertible(options.steps), -1]):
            z = self.chain.move(z, denoise(z, t), t=t, s=s).astype(np.float32)
        return self.to_image(z)

    def interpolate(self, a: Array, b: Array, *, num: int, options: Options) -> Array:
        """Give `num` images on the way from a (3, h, w) to b, along the great circle between their noises (DDIM § 5.3).

        Raises:
            UsageError: fewer than 2 images, or two of other sizes.
        """
        if num < 2:
            raise UsageError(f"{num} images of an interpolation: both ends are among them, so give 2 or more, e.g. 8")
        if a.shape != b.shape:
            raise UsageError(f"images of shapes {a.shape} and {b.shape}: give two of one size")
        first, last = self.invert(np.stack((a, b)), options=options)
        cosine = float((first * last).sum() / (np.linalg.norm(first) * np.linalg.norm(last)))
        angle = math.acos(min(1.0, max(-1.0, cosine)))
        way = np.linspace(0, 1, num, dtype=np.float32).reshape(-1, *[1] * first.ndim)
        if math.sin(angle) < 1e-3:  # no great circle between a noise and itself
            between = first + way * (last - first)
        else:
            between = (np.sin((1 - way) * angle) * first + np.sin(way * angle) * last) / math.sin(angle)
        return self.draw(between.astype(np.float32), options=options)

    def inpaint(self, x: Array, mask: NDArray[np.bool_], *, rng: np.random.Generator, options: Options) -> Array:
        """Draw what lies under a mask by RePaint, each step drawn three times; known pixels come back as they are.

        Raises:
            UsageError: a mask of another size, steps outside 1 … T, or eta outside [0, 1].
        """
        self.check_images(x)
        self.check_mask(x, mask)
        drawn = self.repaint(
            self.denoise(len(x), options), self.to_state(x), self.unknown_states(mask), rng=rng, options=options
        )
        return np.where(mask[:, None], self.to_image(drawn), x).astype(np.float32)

    def check_images(self, x: Array) -> None:
        """Refuse images that have not the network's size."""
        wanted = (3, *self.facts.size)
        if x.ndim != 4 or x.shape[1:] != wanted:
            raise UsageError(f"images of shape {x.shape}: {self.facts.sampler} takes (n, *{wanted}); resize them first")

    def check_mask(self, x: Array, mask: NDArray[np.bool_]) -> None:
        """Refuse a mask that is not one bool per pixel of images (n, 3, h, w)."""
        wanted = (len(x), *x.shape[2:])
        if mask.shape != wanted or mask.dtype != np.bool_:
            raise UsageError(f"the mask is {mask.shape} {mask.dtype}: give {wanted} bool, one value for each pixel")

    def repaint(
        self,
        denoise: Denoise,
        known: Array,
        unknown: NDArray[np.bool_],
        *,
        rng: np.random.Generator,
        options: Options,
    ) -> Array:
        """Draw the unknown values of clean states, the known ones noised anew in each step (RePaint, algorithm 1).

        Args:
            denoise: the network.
            known: (n, …) clean states.
            unknown: broadcasts to their shape.
            rng: of the draws.
            options: steps and eta.
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
        """Go from the noise of the first of the timesteps down to a clean state."""
        _check_eta(eta)
        for t, s in itertools.pairwise([*timesteps, -1]):
            noise = rng.standard_normal(x.shape, dtype=np.float32) if eta else np.zeros_like(x)
            x = self.chain.back(x, denoise(x, t), noise, t=t, s=s, eta=eta, bound=self.bound)
        return x


def _check_eta(eta: float) -> None:
    if not 0 <= eta <= 1:
        raise UsageError(f"eta {eta}: 0 draws by DDIM, 1 by DDPM; give a number from 0 to 1")
