"""Usual distance of good patches by place: a factor of the border, and a factor of the place.

Notation: D -> distance maps of good images from banks without them, (n, h, w); v = mean + 2 deviations of D, (h, w).

    border   mean of v at each number of cells from the edge, over its mean further inside; at least 1
    place    square root of v / border over its mean, smoothed
    u        mean(v) · border · place

Padding of a network raises the distances of all images at the border, so the border gets its own factor. A full scale by
v would hide defects wherever good parts vary; the square root hides half of that, in logarithms. `python -m
benchmarks.memory_bank_recipe` compares these forms by drawn defects.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

PRIOR_IMAGES = 10.0
"""Weight, in images, of the deviation's mean over all places against the deviation at one place"""
SMOOTH_CELLS = 2.0
"""Standard deviation, in cells, of the Gaussian that smooths the factor of the place"""
BORDER_CELLS = 4
"""Width of the border in cells"""
POWER = 0.5
"""Exponent of the factor of the place"""


class UsualDistance(NamedTuple):
    """Usual distance at each place, and its factor of the place."""

    usual: Tensor
    """(h, w)"""
    place: Tensor
    """(h, w), about 1"""


def usual_distance(
    distance: Tensor, inside: Tensor, *, border_cells: int = BORDER_CELLS, power: float = POWER
) -> UsualDistance:
    """Measure the usual distance on good images.

    Args:
        distance: (n, h, w) distance maps of good images, n at least 2.
        inside: (h, w) bool, cells of the region of interest.
        border_cells: width of the border in cells.
        power: exponent of the factor of the place, 0 to 1.
    """
    inside = inside.cpu()
    num, mean, deviation = len(distance), distance.mean(dim=0), distance.std(dim=0)
    # few images estimate the deviation of one place badly
    deviation = (num * deviation + PRIOR_IMAGES * deviation[inside].mean()) / (num + PRIOR_IMAGES)
    value = mean + 2 * deviation
    border = border_factor(value, inside, cells=border_cells)
    place = gaussian(value / border, sigma=SMOOTH_CELLS)
    place = (place / place[inside].mean()) ** power
    return UsualDistance(value[inside].mean() * border * place, place)


def border_factor(value: Tensor, inside: Tensor, *, cells: int) -> Tensor:
    """Mean of values (h, w) at each number of cells from the edge, over their mean further inside; at least 1.

    Args:
        value: (h, w) above 0.
        inside: (h, w) bool, cells of the region of interest.
        cells: width of the border; cells further inside get the factor 1.

    Returns:
        (h, w); 1 everywhere if no cell of the region is further inside.
    """
    rows, columns = (torch.minimum(torch.arange(n), n - 1 - torch.arange(n)) for n in value.shape)
    depth = torch.minimum(rows[:, None], columns[None, :]).clamp(max=cells)
    factor = torch.ones_like(value)
    core = inside & (depth == cells)
    for k in range(cells):
        ring = inside & (depth == k)
        if core.any() and ring.any():
            factor[depth == k] = (value[ring].mean() / value[core].mean()).clamp(min=1.0)
    return factor


def gaussian(values: Tensor, *, sigma: float) -> Tensor:
    """Smooth (h, w) by a Gaussian; the border's values continue outside."""
    reach = int(3 * sigma)
    weight = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=values.dtype) / sigma) ** 2)
    weight = weight / weight.sum()
    padded = functional.pad(values[None, None], (reach,) * 4, mode="replicate")
    rows = functional.conv2d(padded, weight.view(1, 1, -1, 1))
    return functional.conv2d(rows, weight.view(1, 1, 1, -1))[0, 0]
