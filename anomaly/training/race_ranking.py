"""Ranking of candidates by the scores of held-out good images and of defects drawn onto them.

The criterion is the AUROC between drawn defects and good images. The simplest candidate whose AUROC is within one standard
error of the best one is chosen (L. Breiman et al., "Classification and Regression Trees", 1984, section 3.4.3). The
error is that of the difference between two candidates, from resampled held-out images with their drawn defects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anomaly.errors import UsageError
from anomaly.training.race_record import RaceRow

NUM_RESAMPLES = 200
DETECTION_QUANTILE = 0.95
"""Share of the good images below the threshold of the table's detected share"""
LEAST_ERROR = 0.002
"""Smallest standard error of a difference of AUROC; below it candidates count as equal"""


@dataclass(frozen=True)
class Measured:
    """Outputs of one candidate."""

    good: NDArray[np.float64]
    """(h,) scores of the held-out good images"""
    good_peak: NDArray[np.float64]
    """(h,) maxima of their maps"""
    drawn: NDArray[np.float64]
    """(m,) scores of the drawn defects"""
    milliseconds: float
    seconds: float


def auroc(good: NDArray[np.float64], drawn: NDArray[np.float64], weights: NDArray[np.float64] | None = None) -> float:
    """Compute the probability that a drawn defect scores higher than a good image; ties count half.

    Args:
        good: (h,) scores.
        drawn: (m,) scores.
        weights: (h + m,) weights of the good images, then of the drawn defects; None for equal weights.
    """
    of_good = np.ones(len(good)) if weights is None else weights[: len(good)]
    of_drawn = np.ones(len(drawn)) if weights is None else weights[len(good) :]
    order = np.argsort(good, kind="stable")
    cumulated = np.concatenate([[0.0], np.cumsum(of_good[order])])
    below = cumulated[np.searchsorted(good[order], drawn, side="left")]
    not_above = cumulated[np.searchsorted(good[order], drawn, side="right")]
    return float((of_drawn * (below + not_above)).sum() / (2 * of_good.sum() * of_drawn.sum()))


def rank(
    measured: Mapping[str, Measured], *, bases: Sequence[int], budget_ms: float | None, seed: int
) -> tuple[str, str, tuple[RaceRow, ...]]:
    """Choose a candidate.

    Args:
        measured: outputs by candidate, the simplest candidate first.
        bases: number of the held-out image under each drawn defect.
        budget_ms: largest permitted milliseconds per image; None for any.
        seed: seed of the resampling.

    Returns:
        The name of the chosen candidate, the reason, and the rows of the table.

    Raises:
        UsageError: no candidate keeps the budget.
    """
    allowed = [name for name, m in measured.items() if budget_ms is None or m.milliseconds <= budget_ms]
    if not allowed:
        fastest = min(measured, key=lambda name: measured[name].milliseconds)
        raise UsageError(
            f"budget of {budget_ms:g} ms: no candidate scores an image in that time; the fastest is {fastest!r} with"
            f" {measured[fastest].milliseconds:.1f} ms: raise --budget-ms"
        )
    value = {name: auroc(m.good, m.drawn) for name, m in measured.items()}
    best = max(allowed, key=lambda name: value[name])
    resampled = _resampled(measured, np.asarray(bases), seed=seed)
    error = {name: float((resampled[best] - resampled[name]).std()) for name in measured}
    chosen = next(n for n in allowed if value[best] - value[n] <= max(error[n], LEAST_ERROR))
    rows = tuple(
        RaceRow(
            candidate=name,
            auroc=value[name],
            difference_error=error[name],
            detected=float((m.drawn > np.quantile(m.good, DETECTION_QUANTILE)).mean()),
            threshold_spread=threshold_spread(m.good, seed=seed),
            milliseconds=m.milliseconds,
            seconds=m.seconds,
        )
        for name, m in measured.items()
    )
    reason = f"best AUROC on drawn defects, {100 * value[best]:.1f}"
    if chosen != best:
        reason = (
            f"simplest within one standard error of the best AUROC on drawn defects: {100 * value[chosen]:.1f} beside"
            f" {100 * value[best]:.1f} of {best!r}, error {100 * error[chosen]:.1f}"
        )
    if budget_ms is not None:
        reason += f"; {measured[chosen].milliseconds:.1f} ms an image, budget {budget_ms:g} ms"
    return chosen, reason, rows


def threshold_spread(good: NDArray[np.float64], *, seed: int) -> float:
    """Compute the deviation of a threshold over resampled good scores (h,), relative to its distance from the median."""
    draws = np.random.default_rng(seed).integers(len(good), size=(NUM_RESAMPLES, len(good)))
    thresholds = np.quantile(good[draws], DETECTION_QUANTILE, axis=1)
    distance = float(np.quantile(good, DETECTION_QUANTILE) - np.median(good))
    return float(thresholds.std() / max(distance, 1e-12))


def _resampled(
    measured: Mapping[str, Measured], bases: NDArray[np.intp], *, seed: int
) -> dict[str, NDArray[np.float64]]:
    """AUROC of each candidate over resamples of the held-out images, each with its drawn defects."""
    num = len(next(iter(measured.values())).good)
    draws = np.random.default_rng(seed).integers(num, size=(NUM_RESAMPLES, num))
    weights = []
    for draw in draws:
        count = np.bincount(draw, minlength=num).astype(np.float64)
        joined = np.concatenate([count, count[bases]])
        if joined[num:].sum() > 0:
            weights.append(joined)
    return {name: np.array([auroc(m.good, m.drawn, w) for w in weights]) for name, m in measured.items()}
