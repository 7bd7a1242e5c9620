"""Sampling loop of a PixelCNN: rows from the top, pixels from the left, R, G and B within a pixel (arXiv 1606.05328)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly.errors import UsageError
from anomaly.generation.base import Array, Options, SamplingLoop


def draw_class(logits: NDArray[Any], *, rng: np.random.Generator, temperature: float) -> NDArray[np.int64]:
    """Draw one of K classes for each row of logits (n, K); the temperature divides the logits.

    Raises:
        UsageError: the temperature is not above 0.
    """
    if temperature <= 0:
        raise UsageError(f"temperature {temperature}: the logits are divided by it; give a number above 0, e.g. 1")
    scaled = logits.astype(np.float64) / temperature
    total = np.cumsum(np.exp(scaled - scaled.max(axis=1, keepdims=True)), axis=1)
    drawn: NDArray[np.int64] = (total <= rng.random((len(logits), 1)) * total[:, -1:]).sum(axis=1)
    return drawn


class AutoregressiveLoop(SamplingLoop):
    """Raster loop over `links`, once per row, and `logits_row`, once per value.

    Settings: `levels`, number of values per colour; `reach`, reach of the network in pixels; `region`, rows with 1 at
    drawn pixels and 0 elsewhere.
    """

    def sample(self, n: int, *, rng: np.random.Generator, options: Options) -> Array:
        """Draw n images; pixels outside the region of interest stay black."""
        region = np.array([[inside == "1" for inside in row] for row in self.info.settings["region"]])
        blank = np.zeros((n, 3, *region.shape), dtype=np.float32)
        return self.inpaint(blank, np.broadcast_to(region, (n, *region.shape)), rng=rng, options=options)

    def inpaint(self, x: Array, mask: NDArray[np.bool_], *, rng: np.random.Generator, options: Options) -> Array:
        """Draw the unknown pixels in raster order, each given all pixels before it.

        Known pixels below and to the right of a pixel are not a condition. The lower edge of the drawn area may not match
        them.
        """
        levels, seen = int(self.info.settings["levels"]), int(self.info.settings["reach"]) + 1
        num, _, height, width = x.shape
        num_rows, num_columns = min(seen, height), min(seen, width)
        context = ((np.clip(np.floor(x * levels), 0, levels - 1) + 0.5) / levels).astype(np.float32)
        for row in np.flatnonzero(mask.any(axis=(0, 2))):
            top = max(0, int(row) + 1 - num_rows)
            first = np.full(num, top, dtype=np.int64)
            links = self.run_function("links", context[:, :, top : top + num_rows], first)
            links = links[:, :, row - top : row - top + 1]
            for column in np.flatnonzero(mask[:, row].any(axis=0)):
                left = max(0, int(column) + 1 - num_columns)
                window = slice(left, left + num_columns)
                unknown = mask[:, row, column]
                for colour in range(3):
                    values = context[:, :, row : row + 1, window]
                    logits = self.run_function("logits_row", values, links[..., window])
                    drawn = draw_class(logits[:, colour, :, 0, column - left], rng=rng, temperature=options.temperature)
                    value = ((drawn + 0.5) / levels).astype(np.float32)
                    context[:, colour, row, column] = np.where(unknown, value, context[:, colour, row, column])
        return np.where(mask[:, None], context, x)
