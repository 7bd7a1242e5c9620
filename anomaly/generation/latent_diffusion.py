"""Drawing by diffusion in the latent space of an autoencoder: whole parts, repairs, and defects of a given shape.

R. Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", 2022, arXiv 2112.10752 (§ 3.3: conditions as
further channels of the denoiser's input).

Notation: z -> latent (n, C, h', w'), of unit deviation; a cell -> what one place of a latent covers in the image.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from anomaly.errors import UsageError
from anomaly.generation.base import Array, Call, Facts, Options
from anomaly.generation.diffusion import Denoise, DiffusionProcess

NUM_FLAGS = 2
"""Channels of a condition before the latent: where a defect is to be, and where the latent is given"""


class LatentDiffusionProcess(DiffusionProcess):
    """Draws through `encode(x)`, `decode(z)` and `denoise(z_t, t, condition)`.

    A condition is (n, 2 + C + num_classes, h', w'): 1 where a defect is to be; 1 where the good part's latent is given; that
    latent there, else 0; and 1 in the channel of the wanted class, where the defect is to be. All 0 asks for a good part.

    `facts.own` holds `alphas_cumprod`, `num_classes`, and `reach`, the largest value of a clean latent.
    """

    knows = frozenset({"steps", "eta", "strength", "label"})

    def __init__(self, call: Call, facts: Facts) -> None:
        super().__init__(call, facts)
        self.bound = float(facts.own["reach"])
        self.num_classes = int(facts.own["num_classes"])

    @property
    def state_shape(self) -> tuple[int, ...]:
        """Of one latent."""
        return tuple(self.facts.latent_shape)

    def to_state(self, x: Array) -> Array:
        """Encode images (n, 3, h, w) in [0, 1]."""
        return np.asarray(self.call("encode", x.astype(np.float32)), dtype=np.float32)

    def to_image(self, state: Array) -> Array:
        """Decode latents to images (n, 3, h, w) in [0, 1]."""
        return np.asarray(self.call("decode", state), dtype=np.float32).clip(0, 1)

    def unknown_states(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which cells have a pixel under masks (n, h, w): (n, 1, h', w') bool."""
        rows, columns = self.state_shape[1:]
        n, height, width = mask.shape
        cells = mask.reshape(n, 1, rows, height // rows, columns, width // columns)
        return np.asarray(cells.any(axis=(3, 5)))

    def denoise(self, n: int, options: Options) -> Denoise:
        """Give the network, asked for good parts."""
        channels, rows, columns = self.state_shape
        return self._told(np.zeros((n, NUM_FLAGS + channels + self.num_classes, rows, columns), dtype=np.float32))

    def draw_defect(self, x: Array, mask: NDArray[np.bool_], *, rng: np.random.Generator, options: Options) -> Array:
        """Draw a defect into good images where a mask says so.

        Args:
            x: (n, 3, h, w) good images in [0, 1].
            mask: (n, h, w), True where the defect is to be; pixels outside it come back as they are.
            rng: of the draws.
            options: steps, eta, and the class of the defect in `label`, -1 for any.

        Raises:
            UsageError: a mask of another size, a class that there is not, steps outside 1 … T, eta outside [0, 1].
        """
        self.check_images(x)
        self.check_mask(x, mask)
        if not -1 <= options.label < self.num_classes:
            raise UsageError(
                f"label {options.label}: there are {self.num_classes} classes from 0 on; -1 leaves it open"
            )
        where = self.unknown_states(mask).astype(np.float32)
        classes = np.zeros((len(x), self.num_classes, *where.shape[2:]), dtype=np.float32)
        if options.label >= 0:
            classes[:, options.label] = where[:, 0]
        condition = np.concatenate((where, 1 - where, self.to_state(x) * (1 - where), classes), axis=1)
        noise = rng.standard_normal((len(x), *self.state_shape), dtype=np.float32)
        timesteps = self.chain.timesteps(options.steps)
        drawn = self.to_image(self.descend(self._told(condition), noise, timesteps, rng=rng, eta=options.eta))
        soft = np.stack([cv2.blur(single.astype(np.float32), (3, 3)) for single in mask])
        opacity = (mask * (0.5 + 0.5 * soft))[:, None]  # softer at its border, nothing beyond it
        return np.where(mask[:, None], x + opacity * (drawn - x), x).astype(np.float32)

    def _told(self, condition: Array) -> Denoise:
        return lambda z, t: self.call("denoise", z, np.full(len(z), t, dtype=np.int64), condition)
