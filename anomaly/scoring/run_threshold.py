"""The threshold of a run: the model's own, a given value, or the threshold of an alpha."""

from __future__ import annotations

import numpy as np

from anomaly.conformal.guarantee import GuaranteeKind
from anomaly.errors import UsageError
from anomaly.inference.scorer import OnnxScorer


def choose_threshold(
    scorer: OnnxScorer,
    *,
    threshold: float | None = None,
    alpha: float | None = None,
    guarantee: GuaranteeKind = "expected",
) -> float:
    """Choose the threshold of a run, in calibrated units.

    Args:
        scorer: model of the run.
        threshold: calibrated score; None for the model's own threshold, 1.
        alpha: share of good parts that may be rejected, which sets the threshold on the model's calibration scores.
        guarantee: kind of guarantee: alpha bounds the `expected` rate, or its 95 % upper `bound`.

    Raises:
        UsageError: both a threshold and an alpha.
        CalibrationError: too few calibration images of different parts for alpha, or a bound without a theorem.
    """
    if alpha is None:
        return 1.0 if threshold is None else threshold
    if threshold is not None:
        raise UsageError(f"--threshold {threshold} and --alpha {alpha} both set the threshold: give one of them")
    metadata = scorer.metadata
    labelled = np.array(metadata.labelled.scores) if metadata.labelled else np.zeros(0)
    return scorer.calibration.raised_threshold(labelled, alpha=alpha, guarantee=guarantee)
