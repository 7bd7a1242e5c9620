"""Pooling of anomaly maps to image scores: the maximum, or the mean of the largest cells.

A maximum depends on one cell: one odd cell on one good image sets the threshold. The mean of the largest cells depends on
more of them. J. Guo et al., "Dinomaly", 2025, arXiv 2405.14325, score by the mean of the largest 1 % of the map.

Notation: a -> map, (N, h, w); c -> its cells, means over squares of `cell` values; c3 -> mean of c over 3×3 cells;
n -> number of cells inside the region of interest; k -> round(top · n), at least 1; s -> mean of the k largest c3.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from anomaly.errors import UsageError
from anomaly.nn.map_scaling import smoothed

Pooling = Literal["maximum", "top"]


@dataclass(frozen=True)
class ScorePooling:
    """Pooling of maps to scores.

    Attributes:
        pooling: `maximum`, or `top`, the mean of the largest cells after a mean over 3×3 cells.
        top: share of the cells inside the region of interest that `top` averages, in (0, 1].
        cell: side in map values of a cell of `top`, at most the sides of the map.

    Raises:
        UsageError: an unknown pooling or an invalid share.
    """

    pooling: Pooling = "maximum"
    top: float = field(default=0.01, kw_only=True)
    cell: int = field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        if self.pooling not in ("maximum", "top"):
            raise UsageError(f"pooling {self.pooling!r}: give maximum or top")
        if not 0 < self.top <= 1:
            raise UsageError(f"top {self.top}: give a share of the cells above 0, at most 1, e.g. 0.01")

    def __call__(self, anomaly_map: Tensor, *, inside: Tensor | None = None) -> Tensor:
        """Pool maps (N, h, w) to scores (N,).

        Args:
            anomaly_map: (N, h, w) float32.
            inside: (h, w) bool, values inside the region of interest; None for all.
        """
        if self.pooling == "maximum":
            return _filled(anomaly_map, inside).amax(dim=(1, 2))
        if inside is None:
            return largest_mean(smoothed(_cells(anomaly_map, self.cell), window=3), top=self.top)
        weight = _cells(inside[None].to(anomaly_map.dtype), self.cell)
        # values outside count neither in a cell nor in the mean over 3×3 cells
        total = smoothed(_cells(torch.where(inside, anomaly_map, 0.0), self.cell), window=3)
        mean = total / smoothed(weight, window=3).clamp(min=1e-6)
        return largest_mean(mean, top=self.top, inside=(weight > 0.5 * weight.amax(dim=(1, 2), keepdim=True))[0])


def largest_mean(cells: Tensor, *, top: float, inside: Tensor | None = None) -> Tensor:
    """Mean of the largest share `top` of cells (N, h, w), (N,).

    Args:
        cells: (N, h, w) float32.
        top: share of the cells inside, in (0, 1].
        inside: (h, w) bool, counted cells; None for all.
    """
    most = max(1, round(top * cells.shape[1] * cells.shape[2]))
    if inside is None:
        return cells.flatten(1).topk(most, dim=1, sorted=False).values.mean(dim=1)
    largest = _filled(cells, inside).flatten(1).topk(most, dim=1).values
    # the number is a tensor: the region is a buffer, which tracing must not read
    num = (top * inside.sum()).round().clamp(min=1.0, max=float(most))
    counted = torch.arange(most, device=cells.device) < num
    return (largest * counted).sum(dim=1) / num


def _filled(values: Tensor, inside: Tensor | None) -> Tensor:
    """Set values (N, h, w) outside to the smallest value of their map."""
    return values if inside is None else torch.where(inside, values, values.amin(dim=(1, 2), keepdim=True))


def _cells(values: Tensor, side: int) -> Tensor:
    """Mean of values (N, h, w) over squares; values beyond the last whole square are left out."""
    return values if side == 1 else functional.avg_pool2d(values[:, None], side)[:, 0]
