"""Sampling loop over a grid of codes: the prior draws each code in raster order, then the decoder runs (arXiv 1711.00937)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from anomaly.generation.autoregressive import draw_class
from anomaly.generation.base import Array, Options, SamplingLoop

Codes = NDArray[np.int64]


class CodesLoop(SamplingLoop):
    """Raster loop over `prior_logits`, between `encode` and `decode`."""

    def sample(self, n: int, *, rng: np.random.Generator, options: Options) -> Array:
        """Draw n grids of codes from the prior and decode them."""
        shape = (n, *self.info.latent_shape)
        codes = self._draw(np.zeros(shape, np.int64), np.ones(shape, np.bool_), rng=rng, options=options)
        return self._decode(codes)

    def reconstruct(self, x: Array, *, rng: np.random.Generator, options: Options) -> Array:
        """Decode the nearest codes, without random numbers."""
        return self._decode(self.run_function("encode", x))

    def inpaint(self, x: Array, mask: NDArray[np.bool_], *, rng: np.random.Generator, options: Options) -> Array:
        """Redraw the codes of all cells with an unknown pixel in raster order, decode them, and restore the known pixels.

        Each code is drawn given the codes before it, kept or redrawn. Later codes are not a condition. The encoder sees the
        mean of the known pixels under the mask. The masked content has no influence.
        """
        unknown = np.broadcast_to(mask[:, None], x.shape)
        mean = np.where(unknown, 0, x).sum(axis=(2, 3)) / np.maximum(1, (~unknown).sum(axis=(2, 3)))
        codes = self.run_function("encode", np.where(unknown, mean[..., None, None], x).astype(np.float32))
        rows, columns = self.info.latent_shape
        blocks = mask.reshape(len(mask), rows, mask.shape[1] // rows, columns, mask.shape[2] // columns)
        cells: NDArray[np.bool_] = np.any(blocks, axis=4).any(axis=2)
        return np.where(unknown, self._decode(self._draw(codes, cells, rng=rng, options=options)), x)

    def _draw(self, codes: Codes, redrawn: NDArray[np.bool_], *, rng: np.random.Generator, options: Options) -> Codes:
        """Draw codes (n, rows, columns) anew at the cells of `redrawn`."""
        codes = codes.copy()
        for row, column in np.argwhere(redrawn.any(axis=0)):
            logits = self.run_function("prior_logits", codes)[:, :, row, column]
            drawn = draw_class(logits, rng=rng, temperature=options.temperature)
            codes[:, row, column] = np.where(redrawn[:, row, column], drawn, codes[:, row, column])
        return codes

    def _decode(self, codes: Codes) -> Array:
        decoded: Array = np.clip(self.run_function("decode", codes), 0, 1).astype(np.float32)
        return decoded
