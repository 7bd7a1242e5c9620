"""Core set of patches by greedy k-centre.

T. Gonzalez, "Clustering to minimize the maximum intercluster distance", Theoretical Computer Science 38, 1985: each new
centre is the point farthest from all centres so far. Distances are measured after a random projection, which keeps
them to a small error: W. Johnson and J. Lindenstrauss, 1984.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

PROJECTED = 64
"""Dimensions of the random projection"""


def core_set(
    points: NDArray[np.float32], num: int, *, seed: int, centres: NDArray[np.float32] | None = None
) -> NDArray[np.intp]:
    """Choose `num` points that cover all points.

    Args:
        points: (P, d) float32.
        num: number of points to choose; all points where P is not larger.
        seed: seed of the projection and of the first centre.
        centres: (M, d) points that are centres already; None begins with a random point.

    Returns:
        Indices (min(num, P),), in the order of choice.
    """
    rng = np.random.default_rng(seed)
    if len(points) <= num:
        return np.arange(len(points))
    if points.shape[1] > PROJECTED:
        directions = rng.standard_normal((points.shape[1], PROJECTED), dtype=np.float32) / np.float32(PROJECTED**0.5)
        points = points @ directions
        centres = None if centres is None else centres @ directions
    squares = np.einsum("pd,pd->p", points, points)
    distance = np.full(len(points), np.inf, dtype=np.float32)
    first = int(rng.integers(len(points)))
    for centre in () if centres is None else centres:
        np.minimum(distance, squares - 2 * (points @ centre) + centre @ centre, out=distance)
    chosen = np.empty(num, dtype=np.intp)
    for n in range(num):
        chosen[n] = int(distance.argmax()) if n or centres is not None else first
        centre = points[chosen[n]]
        np.minimum(distance, squares - 2 * (points @ centre) + squares[chosen[n]], out=distance)
        distance[chosen[n]] = -np.inf
    return chosen
