from __future__ import annotations

import math

import numpy as np
import pytest

from anomaly.conformal.beta_distribution import beta_quantile
from anomaly.conformal.martingale import Bets, Ranks, cell_of


def test_ranks_count_below_and_equal() -> None:
    values = np.random.default_rng(0).integers(0, 50, 3000).astype(np.float32)
    ranks = Ranks(values[:10].tolist())
    for n, value in enumerate(values[10:].tolist(), start=10):
        assert ranks.add(value) == (int((values[:n] < value).sum()), int((values[:n] == value).sum()))
    assert len(ranks) == 3000


def test_bets_neither_win_nor_lose_on_uniform_values() -> None:
    logit = np.linspace(-27, 27, 100_001)
    u = 1 / (1 + np.exp(-logit))
    weight = u * (1 - u) * (logit[1] - logit[0])
    bets = Bets(len(u))
    bets.bet(u)
    assert 0.995 < float((weight * np.exp(bets.log_capital)).sum()) < 1 + 1e-9  # clipping at the edges loses a little


def test_bets_keep_the_capital_of_a_stream_without_a_value() -> None:
    bets = Bets(2)
    for _ in range(20):
        bets.bet(np.array([0.999, np.nan]))
    assert bets.log_capital[0] > math.log(1000)
    assert bets.log_capital[1] == pytest.approx(0, abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("ties", [False, True])
def test_undrifted_runs_keep_the_error_only_with_growing_ranks(ties: bool) -> None:
    num_runs, length, n = 60, 2000, 42
    rng = np.random.default_rng(7)
    values = rng.standard_normal((num_runs, n + length)).astype(np.float32)
    values = np.round(values, 1) if ties else values
    theta = rng.random((num_runs, length))
    online, fixed = np.empty((2, length, num_runs))
    for run in range(num_runs):
        ranks = Ranks(values[run, :n].tolist())
        order = np.sort(values[run, :n])
        for t, value in enumerate(values[run, n:].tolist()):
            below, equal = ranks.add(value)
            online[t, run] = (below + theta[run, t] * (equal + 1)) / len(ranks)
        left, right = order.searchsorted(values[run, n:], "left"), order.searchsorted(values[run, n:], "right")
        fixed[:, run] = (left + theta[run] * (right - left + 1)) / (n + 1)
    shares = []
    for u in (online, fixed):
        bets = Bets(num_runs)
        maximum = np.zeros(num_runs)
        for row in u:
            bets.bet(row)
            np.maximum(maximum, bets.log_capital, out=maximum)
        shares.append(float((maximum >= math.log(1 / 0.05)).mean()))
    assert shares[0] <= beta_quantile(0.99, 0.05 * num_runs + 1, 0.95 * num_runs)
    assert shares[1] > 0.3


def test_cells_are_ordered_and_0_05_percent_wide() -> None:
    size = np.geomspace(1e-30, 1e30, 2000)
    values = np.concatenate([[-math.inf], -size[::-1], [-0.0, 0.0], size, [math.inf]]).tolist()
    cells = [cell_of(value) for value in values]
    assert cells == sorted(cells)
    assert 0 <= cells[0] < cells[-1] < 2**20
    assert cell_of(-0.0) == cell_of(0.0)
    for value in (-700.0, -0.3, 1e-3, 1.0, 130.0):
        assert cell_of(value) != cell_of(value * 1.001)


def test_memory_of_ranks_does_not_grow_with_the_values() -> None:
    ranks = Ranks([0.0])
    held = ranks._num.nbytes + ranks._num_of_row.nbytes
    for value in np.random.default_rng(0).normal(120, 2, 20_000).tolist():
        ranks.add(value)
    assert ranks._num.nbytes + ranks._num_of_row.nbytes == held
    assert ranks._num.any(axis=1).sum() < 8  # rows are memory pages; rows without values are never allocated
