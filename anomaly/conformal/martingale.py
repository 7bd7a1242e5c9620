"""Conformal test martingales: ranks of values among all earlier ones, and bets against uniform p-values.

V. Vovk, A. Gammerman, G. Shafer, "Algorithmic Learning in a Random World", 2005, §7.1; V. Vovk, "Testing Randomness
Online", 2021, arXiv 1906.09256. Switching between bets: M. Herbster, M. Warmuth, "Tracking the Best Expert", 1998.

    x_i      values of one stream in order, the calibration images' first
    u_n      conformal p-value of x_n: (#{i < n: x_i < x_n} + θ #{i <= n: x_i = x_n}) / n, θ uniform on [0, 1]
    f_e      a bet: a density on [0, 1] of the Beta family; f_0 = 1 is neutral
    M_n      capital after n images; it begins at 1

In exchangeable order the u_n are independent and uniform, for any distribution of the values and with ties. Then M is a
martingale with P(sup M >= 1/alpha) <= alpha by Ville's inequality, for the whole run and any length. Ranks among the
calibration images alone would keep the luck of their draw for the whole run. They have no such bound.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

BETS = np.array(
    [(1, 1), (1, 0.8), (1.5, 0.7), (2, 0.4), (1, 0.15), (0.8, 1), (0.7, 1.5), (0.4, 2), (0.15, 1), (0.5, 0.5), (3, 3)]
)
"""Shapes (a, b) of the bets: none; higher values, from slightly to far; lower values; both tails; the middle"""
SWITCH = 0.01
"""Share of a bet's capital that moves to the other bets before each image"""
PATIENCE = 50
"""The capital without a bet falls as PATIENCE / (PATIENCE + n), so that some is left for a late drift"""
EDGE = 1e-12
"""P-values are clipped to [EDGE, 1 - EDGE]; clipping can only lower the capital"""

_SINGLE, _BITS = struct.Struct("<f"), struct.Struct("<i")


def cell_of(value: float) -> int:
    """Find the cell of a value among 2^20 ordered cells: the upper 20 bits of its single precision, 0.05 % apart."""
    bits: int = _BITS.unpack(_SINGLE.pack(value))[0]
    return ((bits if bits >= 0 else -(bits & 0x7FFFFFFF)) >> 12) + 2**19


class Ranks:
    """Counts of values in cells, which give the rank of a new value. The memory does not grow with the values.

    The cells do not depend on the values, so exchangeable values stay exchangeable. Values of one cell are ties.

    Args:
        values: first values.
    """

    def __init__(self, values: Sequence[float]) -> None:
        self._num = np.zeros((1024, 1024), dtype=np.uint32)  # memory pages without values are never allocated
        self._num_of_row: NDArray[np.int64] = np.zeros(1024, dtype=np.int64)
        self._total = 0
        for value in values:
            self.add(value)

    def __len__(self) -> int:
        return self._total

    def add(self, value: float) -> tuple[int, int]:
        """Add a value.

        Returns:
            Number of earlier values in lower cells, and number of earlier values in the same cell.
        """
        row, column = divmod(cell_of(value), 1024)
        below = int(self._num_of_row[:row].sum()) + int(self._num[row, :column].sum())
        equal = int(self._num[row, column])
        self._num[row, column] += 1
        self._num_of_row[row] += 1
        self._total += 1
        return below, equal


class Bets:
    """Capitals that bet against the uniform distribution of p-values, one for each stream.

    Args:
        num_streams: number of streams, s.
    """

    def __init__(self, num_streams: int) -> None:
        a, b = BETS[:, 0], BETS[:, 1]
        self._powers = np.stack([a - 1, b - 1])
        self._log_norm = np.array([math.lgamma(p + q) - math.lgamma(p) - math.lgamma(q) for p, q in BETS])
        active = len(BETS) - 1
        self._share = np.full((num_streams, len(BETS)), 0.5 / active)
        self._share[:, 0] = 0.5
        self._num = 0
        self.log_capital: NDArray[np.float64] = np.zeros(num_streams)
        """(s,) natural logarithm of M_n"""

    def bet(self, u: NDArray[np.float64]) -> None:
        """Bet on the next p-values and update the capitals.

        Args:
            u: (s,) p-values in [0, 1]; NaN for a stream without a value.
        """
        self._num += 1
        share = self._share
        # prior over sequences of bets: a Markov chain, independent of the next p-value
        moved = share[:, 0] / (PATIENCE + self._num) + SWITCH * share[:, 1:].sum(axis=1)
        share[:, 0] *= 1 - 1 / (PATIENCE + self._num)
        share[:, 1:] *= 1 - SWITCH
        share[:, 1:] += moved[:, None] / (len(BETS) - 1)
        inside = np.minimum(np.maximum(u, EDGE), 1 - EDGE)
        logs = np.stack([np.log(inside), np.log1p(-inside)], axis=1)
        gain = np.exp(logs @ self._powers + self._log_norm)
        gain[np.isnan(u)] = 1
        share *= gain
        total = share.sum(axis=1)
        share /= total[:, None]
        self.log_capital += np.log(total)
