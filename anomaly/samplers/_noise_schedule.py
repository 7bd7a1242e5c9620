"""Noise schedules of diffusion models, as schedulers of diffusers.

J. Ho et al., "Denoising Diffusion Probabilistic Models", 2020, arXiv 2006.11239 (linear, § 4); A. Nichol and P. Dhariwal,
"Improved Denoising Diffusion Probabilistic Models", 2021, arXiv 2102.09672 (cosine with the offset s, eq. 16 and 17).
"""

from __future__ import annotations

import math
from typing import Literal

from diffusers import DDPMScheduler

from anomaly.errors import UsageError

Schedule = Literal["linear", "cosine", "offset-cosine"]
LARGEST = 0.999
"""Upper bound of β_t (2102.09672, § 3.2)"""


def noise_schedule(name: Schedule, *, num_timesteps: int) -> DDPMScheduler:
    """Build the scheduler with β_t and ᾱ_t, which adds noise to images in training.

    Args:
        name: name of the schedule. `linear`: β_t from 1e-4 to 0.02 at 1000 steps, times 1000 / T as in 2102.09672.
            `cosine`: ᾱ_t = cos²(π/2 · t/T). `offset-cosine`: `cosine` with the offset s = 0.008, for larger first steps.
        num_timesteps: number T of steps.

    Raises:
        UsageError: fewer than 10 steps.
    """
    if num_timesteps < 10:
        raise UsageError(
            f"num_timesteps {num_timesteps}: a diffusion needs many small steps; give 10 or more, e.g. 1000"
        )
    if name == "offset-cosine":
        return DDPMScheduler(num_train_timesteps=num_timesteps, beta_schedule="squaredcos_cap_v2")
    if name == "linear":
        low, high = (beta * 1000 / num_timesteps for beta in (1e-4, 0.02))
        betas = [min(low + (high - low) * n / (num_timesteps - 1), LARGEST) for n in range(num_timesteps)]
    else:
        level = [math.cos(math.pi / 2 * n / num_timesteps) ** 2 for n in range(num_timesteps + 1)]
        betas = [min(1 - level[n + 1] / level[n], LARGEST) for n in range(num_timesteps)]
    return DDPMScheduler(num_train_timesteps=num_timesteps, trained_betas=betas)
