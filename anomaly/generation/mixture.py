"""Sampling loop of a mixture of Gaussians over patches: a Gaussian per cell, then a patch from it.

Notation: x -> image; y -> the patch of a cell, (D,); k -> Gaussian; w -> weights of a cell, (K,); e -> N(0, I) of D values.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly.errors import UsageError
from anomaly.generation.base import Array, Options, SamplingLoop, check_mask

Matrix = NDArray[np.float64]


class MixtureLoop(SamplingLoop):
    """Sampling loop over the function `draw(indicator, noise)`: (n, cells, K) and (n, cells, D) to images.

    Settings: `patch`, side of a patch in pixels; `weights` (cells, K). A cell with weights of 0 lies outside the region of
    interest and is drawn as 0.
    """

    def sample(self, n: int, *, rng: np.random.Generator, options: Options) -> Array:
        """Draw n images, each cell independently; `temperature` is a factor on the deviation within each Gaussian.

        Raises:
            UsageError: the temperature is below 0.
        """
        self.check("sample")
        uniform = rng.random((n, len(self._weights), 1))
        # the first k with a cumulated weight above u; the last cumulated weight is 1 except for rounding
        chosen = (np.cumsum(self._weights, axis=1)[:, :-1] <= uniform).sum(axis=2)
        indicator = np.eye(self._weights.shape[1], dtype=np.float32)[chosen]
        drawn = self._draw(indicator, self._noise(n, rng=rng, options=options))
        return np.clip(drawn, 0, 1) * self._inside

    def inpaint(self, x: Array, mask: NDArray[np.bool_], *, rng: np.random.Generator, options: Options) -> Array:
        """Draw the pixels under a mask exactly, given the known pixels of the same cell.

        Args:
            x: images (n, 3, h, w).
            mask: (n, h, w), True at unknown pixels. Known pixels stay unchanged.
            rng: random generator of the draws.
            options: `temperature`, factor on the deviation within the drawn Gaussian.

        Raises:
            UsageError: images or mask of another size, or a temperature below 0.
        """
        self.check("inpaint")
        self.check_images(x)
        check_mask(x, mask)
        known = self._patches(np.broadcast_to(~mask[:, None], x.shape))
        y, noise = self._patches(x).copy(), self._noise(len(x), rng=rng, options=options)
        uniform = rng.random(y.shape[:2])
        for image, cell in zip(*np.nonzero(~known.all(axis=2)), strict=True):
            if self._weights[cell].any():
                at = image, cell
                y[at] = self._conditional(y[at], known[at], self._weights[cell], uniform[at], noise[at])
        return np.where(mask[:, None], np.clip(self._images(y), 0, 1) * self._inside, x)

    def _conditional(self, y: Array, known: NDArray[np.bool_], weight: Matrix, uniform: float, noise: Array) -> Array:
        """Draw the unknown values of a patch y (D,), given the known ones.

        An unconditional patch is drawn, then corrected by its error at the known values. The result is a draw from the
        conditional Gaussian (J. Chilès and P. Delfiner, "Geostatistics", 1999, chapter 7.3).
        """
        means, factors = self._gaussians
        covariance = factors[:, known] @ factors[:, known].transpose(0, 2, 1)
        difference = y[known] - means[:, known]
        root = np.linalg.cholesky(covariance)
        whitened = np.linalg.solve(root, difference[:, :, None])[:, :, 0]
        log_det = np.log(np.diagonal(root, axis1=1, axis2=2)).sum(axis=1)
        log = np.log(weight) - log_det - 0.5 * (whitened**2).sum(axis=1)
        share = np.cumsum(np.exp(log - log.max()))
        k = int(np.searchsorted(share, uniform * share[-1], side="right"))
        drawn = means[k] + factors[k] @ noise
        correction = factors[k] @ factors[k][known].T @ np.linalg.solve(covariance[k], y[known] - drawn[known])
        return np.where(known, y, drawn + correction).astype(np.float32)

    def _draw(self, indicator: Array, noise: Array) -> Array:
        return np.asarray(self.run_function("draw", indicator, noise), dtype=np.float32)

    def _noise(self, n: int, *, rng: np.random.Generator, options: Options) -> Array:
        if not options.temperature >= 0:
            raise UsageError(f"temperature {options.temperature}: it is a factor on the deviation, give 0 or more")
        shape = (n, len(self._weights), 3 * self._patch**2)
        return rng.standard_normal(shape, dtype=np.float32) * np.float32(options.temperature)

    @property
    def _patch(self) -> int:
        return int(self.info.settings["patch"])

    @cached_property
    def _weights(self) -> Matrix:
        """Weights (cells, K); each row sums to 1, or to 0 outside the region of interest."""
        weights = np.asarray(self.info.settings["weights"], dtype=np.float64)
        total = weights.sum(axis=1, keepdims=True)
        return np.asarray(np.divide(weights, total, out=np.zeros_like(weights), where=total > 0))

    @cached_property
    def _inside(self) -> Array:
        """1 in the cells of the region of interest, 0 outside, (1, 3, h, w)."""
        inside = (self._weights.sum(axis=1) > 0).astype(np.float32)
        return self._images(np.repeat(inside[None, :, None], 3 * self._patch**2, axis=2))

    @cached_property
    def _gaussians(self) -> tuple[Matrix, Matrix]:
        """Means (K, D) and factors F (K, D, D) of patches y = mean + F e, read off `draw`, which is affine in e."""
        cells, K = self._weights.shape
        D = 3 * self._patch**2
        images = -(-(D + 1) // cells)
        noise = np.zeros((images * cells, D), dtype=np.float32)
        noise[1 : D + 1] = np.eye(D)
        found = []
        for k in range(K):
            indicator = np.zeros((images, cells, K), dtype=np.float32)
            indicator[:, :, k] = 1
            drawn = self._patches(self._draw(indicator, noise.reshape(images, cells, D)))
            found.append(drawn.reshape(-1, D)[: D + 1].astype(np.float64))
        columns = np.stack(found)
        return columns[:, 0], (columns[:, 1:] - columns[:, :1]).transpose(0, 2, 1)

    def _patches(self, x: NDArray[Any]) -> NDArray[Any]:
        """Images (n, 3, h, w) as patches (n, cells, D)."""
        rows, columns = (side // self._patch for side in self.info.size)
        parts = x.reshape(-1, 3, rows, self._patch, columns, self._patch).transpose(0, 2, 4, 1, 3, 5)
        return parts.reshape(-1, rows * columns, 3 * self._patch**2)

    def _images(self, y: NDArray[Any]) -> NDArray[Any]:
        """Patches (n, cells, D) as images (n, 3, h, w)."""
        rows, columns = (side // self._patch for side in self.info.size)
        parts = y.reshape(-1, rows, columns, 3, self._patch, self._patch).transpose(0, 3, 1, 4, 2, 5)
        return parts.reshape(-1, 3, *self.info.size)
