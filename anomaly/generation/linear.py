"""Sampling loop of probabilistic principal components: x = mu + z B + noise of variance s2, in closed form.

Notation: x -> image; z -> latent (k,), from N(0, I); mu -> mean; B -> scaled directions (k, D); s2 -> noise variance.
Robust projection: A. Leonardis and H. Bischof, "Robust Recognition Using Eigenimages", 2000, Computer Vision and Image
Understanding 78.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from anomaly.generation.base import Array, Options, check_mask
from anomaly.generation.decoder import DecoderLoop

NUM_HYPOTHESES, PIXELS_PER_COMPONENT = 12, 6
"""Random subsets of pixels in the robust projection, and their pixels per component"""
NUM_TRIMS, KEPT = 4, 0.75
"""Trims of a subset, and the share of pixels that each trim keeps"""
NUM_GROWTHS, LIMIT = 6, 3.0
"""Extensions of a subset to all fitting pixels, and the number of deviations up to which a pixel fits"""


class LinearLoop(DecoderLoop):
    """Sampling loop over an affine `decode` and `encode`. mu and B are read off `decode`.

    The setting `noise_variance` is s2. The setting `robust` selects the robust projection for `reconstruct`.
    """

    def reconstruct(self, x: Array, *, rng: np.random.Generator, options: Options) -> Array:
        """Project images (n, 3, h, w) on the components: by all their pixels, or by the fitting ones under `robust`."""
        if self.info.settings["robust"]:
            return self.robust(x, rng=rng)
        return super().reconstruct(x, rng=rng, options=options)

    def inpaint(self, x: Array, mask: NDArray[np.bool_], *, rng: np.random.Generator, options: Options) -> Array:
        """Draw the pixels under a mask exactly, given the known ones: z ~ N(M⁻¹ B (x - mu), temperature² s2 M⁻¹).

        M = B Bᵀ + s2 I, with only the known pixels in B and x - mu. At temperature 0 this is the projection with missing
        pixels.

        Args:
            x: images (n, 3, h, w).
            mask: (n, h, w), True at unknown pixels. Known pixels stay unchanged.
            rng: random generator of the draws.
            options: `temperature` of z about its mean.

        Raises:
            UsageError: mask and images differ in size.
        """
        self.check("inpaint")
        self.check_images(x)
        check_mask(x, mask)
        mean, basis = self._affine
        deviation = np.sqrt(float(self.info.settings["noise_variance"]))
        z = self._draw(len(x), rng=rng, options=options)
        for number, (image, unknown) in enumerate(zip(x, mask, strict=True)):
            known = np.broadcast_to(~unknown, image.shape)
            part = basis[:, known]
            root = np.linalg.cholesky(part @ part.T + deviation**2 * np.eye(len(basis)))
            seen = np.linalg.solve(root, part @ (image[known] - mean[known]))
            z[number] = np.linalg.solve(root.T, seen + deviation * z[number])
        return np.where(mask[:, None], self._decode(z), x)

    def robust(self, x: Array, *, rng: np.random.Generator) -> Array:
        """Reconstruct images (n, 3, h, w) from the pixels that fit, so that occluded parts have no influence.

        Each hypothesis starts from a random subset of pixels. Its worst pixels are trimmed, then all fitting pixels are
        added. The hypothesis with the shortest description of the image wins. A fitting pixel costs r² / (2 s2) nats over
        its channels; any other pixel costs as much as the worst fitting one. The paper keeps several hypotheses; this
        function keeps one, because an image shows one part.

        Raises:
            UsageError: the images do not have the sampler's size.
        """
        self.check_images(x)
        return self._decode(np.stack([self._fitted(image, rng) for image in x]))

    def _fitted(self, image: Array, rng: np.random.Generator) -> Array:
        """Latent (k,) of the hypothesis with the shortest description of an image (3, h, w)."""
        mean, basis = self._affine
        varied = (basis != 0).any(axis=(0, 1))  # False outside a region of interest
        centred, part = (image - mean)[:, varied], basis[:, :, varied]  # (3, P), (k, 3, P)
        noise = float(self.info.settings["noise_variance"])
        num_pixels = centred.shape[1]
        shortest, best = np.inf, np.zeros(len(basis))
        for _ in range(NUM_HYPOTHESES):
            chosen = rng.choice(num_pixels, size=min(num_pixels, PIXELS_PER_COMPONENT * len(basis)), replace=False)
            for _ in range(NUM_TRIMS):
                z, error = _least_squares(centred[:, chosen], part[:, :, chosen], noise)
                chosen = chosen[np.argsort(error)[: int(KEPT * len(chosen))]]
            for _ in range(NUM_GROWTHS):
                error = _squares(centred, part, z)
                limit = LIMIT**2 * max(noise, float(np.median(error)))
                chosen = np.flatnonzero(error <= limit)
                z, _ = _least_squares(centred[:, chosen], part[:, :, chosen], noise)
            length = np.minimum(_squares(centred, part, z), LIMIT**2 * noise).sum() + noise * (z @ z) / 3
            if length < shortest:
                shortest, best = length, z
        return best.astype(np.float32)

    @cached_property
    def _affine(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mu (3, h, w) and B (k, 3, h, w)."""
        (k,) = self.info.latent_shape
        latents = np.vstack((np.zeros((1, k)), np.eye(k))).astype(np.float32)
        decoded = self.run_function("decode", latents).astype(np.float64)
        return decoded[0], decoded[1:] - decoded[0]


def _least_squares(
    centred: NDArray[np.float64], part: NDArray[np.float64], noise: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Most probable latent (k,) given only pixels (3, p), and the mean squared error at each of them."""
    rows = part.reshape(len(part), -1)
    z = np.asarray(np.linalg.solve(rows @ rows.T + noise * np.eye(len(rows)), rows @ centred.reshape(-1)), np.float64)
    return z, _squares(centred, part, z)


def _squares(centred: NDArray[np.float64], part: NDArray[np.float64], z: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean squared error (p,) over the channels of pixels (3, p)."""
    squares: NDArray[np.float64] = ((centred - np.tensordot(z, part, axes=1)) ** 2).mean(axis=0)
    return squares
