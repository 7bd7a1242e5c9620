"""Sampling loop of diffusion in an autoencoder's latent space: good images, repairs, and defects of a given shape.

R. Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", 2022, arXiv 2112.10752 (§ 3.3: conditions as
further channels of the denoiser's input).

Notation: z -> latent (n, C, h', w') of unit deviation; cell -> image area of one latent position.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from anomaly.errors import UsageError
from anomaly.generation.base import Array, Options, RunFunction, SamplerInfo, check_mask
from anomaly.generation.diffusion import Denoise, DiffusionLoop

NUM_FLAGS = 2
"""Channels of a condition before the latent: the defect mask, and the mask of the given latent"""


class LatentDiffusionLoop(DiffusionLoop):
    """Sampling loop over `encode(x)`, `decode(z)` and `denoise(z_t, t, condition)`.

    A condition (n, 2 + C + num_classes, h', w') holds these channels in order: the mask of the requested defect; the mask of
    the given latent; the good image's latent there, else 0; one mask per defect class. A condition of 0 requests a good image.

    Settings: `alphas_cumprod`, ᾱ_t of all steps; `num_classes`; `reach`, the largest absolute value of a clean latent.
    """

    known_options = frozenset({"steps", "eta", "strength", "label"})

    def __init__(self, run_function: RunFunction, info: SamplerInfo) -> None:
        super().__init__(run_function, info)
        self.bound = float(info.settings["reach"])
        self.num_classes = int(info.settings["num_classes"])

    @property
    def state_shape(self) -> tuple[int, ...]:
        """Shape of one latent."""
        return tuple(self.info.latent_shape)

    def to_state(self, x: Array) -> Array:
        """Encode images (n, 3, h, w) in [0, 1]."""
        return np.asarray(self.run_function("encode", x.astype(np.float32)), dtype=np.float32)

    def to_image(self, state: Array) -> Array:
        """Decode latents to images (n, 3, h, w) in [0, 1]."""
        return np.asarray(self.run_function("decode", state), dtype=np.float32).clip(0, 1)

    def unknown_states(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Select the cells with a pixel under masks (n, h, w), giving (n, 1, h', w') bool."""
        rows, columns = self.state_shape[1:]
        n, height, width = mask.shape
        cells = mask.reshape(n, 1, rows, height // rows, columns, width // columns)
        return np.asarray(cells.any(axis=(3, 5)))

    def denoise(self, n: int, options: Options) -> Denoise:
        """Return the network with the condition of a good image."""
        channels, rows, columns = self.state_shape
        return self._conditioned(
            np.zeros((n, NUM_FLAGS + channels + self.num_classes, rows, columns), dtype=np.float32)
        )

    def draw_defect(self, x: Array, mask: NDArray[np.bool_], *, rng: np.random.Generator, options: Options) -> Array:
        """Draw a defect into good images under a mask.

        Args:
            x: good images (n, 3, h, w) in [0, 1].
            mask: (n, h, w), True at the defect. Pixels outside stay unchanged.
            rng: random generator of the draws.
            options: `steps`, `eta`, and `label`, the class of the defect; None for any class.

        Raises:
            UsageError: a mask of another size, an unknown class, steps not in 1 … T, or eta not in [0, 1].
        """
        self.check_images(x)
        check_mask(x, mask)
        label = options.label
        if label is not None and not 0 <= label < self.num_classes:
            raise UsageError(f"label {label}: the classes are 0 to {self.num_classes - 1}; omit it for any class")
        where = self.unknown_states(mask).astype(np.float32)
        classes = np.zeros((len(x), self.num_classes, *where.shape[2:]), dtype=np.float32)
        if label is not None:
            classes[:, label] = where[:, 0]
        condition = np.concatenate((where, 1 - where, self.to_state(x) * (1 - where), classes), axis=1)
        noise = rng.standard_normal((len(x), *self.state_shape), dtype=np.float32)
        timesteps = self.chain.timesteps(options.steps)
        drawn = self.to_image(self.descend(self._conditioned(condition), noise, timesteps, rng=rng, eta=options.eta))
        soft = np.stack([cv2.blur(single.astype(np.float32), (3, 3)) for single in mask])
        opacity = (mask * (0.5 + 0.5 * soft))[:, None]  # softer at the border, 0 outside
        return np.where(mask[:, None], x + opacity * (drawn - x), x).astype(np.float32)

    def _conditioned(self, condition: Array) -> Denoise:
        return lambda z, t: self.run_function("denoise", z, np.full(len(z), t, dtype=np.int64), condition)
