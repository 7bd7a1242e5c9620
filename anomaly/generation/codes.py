"""Draw images through a grid of codes: each code in raster order by the prior, then the decoder (arXiv 1711.00937)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from anomaly.generation.autoregressive import draw_class
from anomaly.generation.base import Array, Options, Process

Codes = NDArray[np.int64]


class CodesProcess(Process):
    """The raster loop over `prior_logits`, between `encode` and `decode`."""

    def sample(self, n: int, *, rng: np.random.Generator, options: Options) -> Array:
        """Draw n grids of codes by the prior and decode them."""
        shape = (n, *self.facts.latent_shape)
        return self._decoded(self._drawn(np.zeros(shape, np.int64), np.ones(shape, np.bool_), rng=rng, options=options))

    def reconstruct(self, x: Array, *, rng: np.random.Generator, options: Options) -> Array:
        """Decode the nearest codes; nothing is drawn."""
        return self._decoded(self.call("encode", x))

    def inpaint(self, x: Array, mask: NDArray[np.bool_], *, rng: np.random.Generator, options: Options) -> Array:
        """Redraw, in raster order, the codes of all cells that hold an unknown pixel, decode them, put the known pixels back.

        Each is drawn given the codes before it, be they kept or redrawn: those below and to the right do not rule it.
        What stands under the mask does not count; the encoder sees the mean of the known pixels there.
        """
        unknown = np.broadcast_to(mask[:, None], x.shape)
        known = np.where(unknown, 0, x).sum(axis=(2, 3)) / np.maximum(1, (~unknown).sum(axis=(2, 3)))
        codes = self.call("encode", np.where(unknown, known[..., None, None], x).astype(np.float32))
        rows, columns = self.facts.latent_shape
        blocks = mask.reshape(len(mask), rows, mask.shape[1] // rows, columns, mask.shape[2] // columns)
        cells: NDArray[np.bool_] = np.any(blocks, axis=4).any(axis=2)
        return np.where(unknown, self._decoded(self._drawn(codes, cells, rng=rng, options=options)), x)

    def _drawn(self, codes: Codes, redrawn: NDArray[np.bool_], *, rng: np.random.Generator, options: Options) -> Codes:
        """Draw codes (n, rows, columns) anew where `redrawn` says so."""
        codes = codes.copy()
        for row, column in np.argwhere(redrawn.any(axis=0)):
            logits = self.call("prior_logits", codes)[:, :, row, column]
            drawn = draw_class(logits, rng=rng, temperature=options.temperature)
            codes[:, row, column] = np.where(redrawn[:, row, column], drawn, codes[:, row, column])
        return codes

    def _decoded(self, codes: Codes) -> Array:
        decoded: Array = np.clip(self.call("decode", codes), 0, 1).astype(np.float32)
        return decoded
