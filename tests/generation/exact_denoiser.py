"""An exact denoiser in closed form, for tests of diffusion on images of white noise."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly.generation.base import Array, SamplerInfo
from anomaly.generation.diffusion import DiffusionLoop
from anomaly.samplers._noise_schedule import Schedule, noise_schedule

SIZE = 4
MEAN, DEVIATION = 0.2, 0.3
"""Mean and deviation of the white-noise images' pixels in [-1, 1]"""


def alphas(name: Schedule = "offset-cosine", num: int = 1000) -> list[float]:
    levels: list[float] = noise_schedule(name, num_timesteps=num).alphas_cumprod.tolist()
    return levels


class Exact:
    """Best denoiser of N(MEAN, DEVIATION²) pixels in place of a network, E[eps | x_t]."""

    def __init__(self, levels: list[float], *, size: int = SIZE) -> None:
        self.levels = np.array(levels)
        self.info = SamplerInfo("Exact", [size, size], [3, size, size], {}, {"alphas_cumprod": levels})

    def __call__(self, function: str, *inputs: NDArray[Any]) -> NDArray[Any]:
        assert function == "denoise"
        x, t = inputs
        assert x.dtype == np.float32
        assert t.dtype == np.int64
        assert t.shape == (len(x),)
        a = self.levels[t].reshape(-1, 1, 1, 1)
        eps = np.sqrt(1 - a) * (x - np.sqrt(a) * MEAN) / (a * DEVIATION**2 + 1 - a)
        return eps.astype(np.float32)

    def sampling_loop(self) -> DiffusionLoop:
        return DiffusionLoop(self, self.info)

    def images(self, num: int) -> Array:
        drawn = np.random.default_rng(7).normal(MEAN, DEVIATION, (num, 3, *self.info.size))
        return ((drawn.clip(-0.95, 0.95) + 1) / 2).astype(np.float32)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)
