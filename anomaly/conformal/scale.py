"""The affine scale that puts a typical good part at 0 and the threshold at 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly.conformal.calibration import SCALE_MARGIN, rank_scores
from anomaly.conformal.guarantee import GuaranteeKind
from anomaly.errors import CalibrationError


@dataclass(frozen=True)
class Scale:
    """Affine scale of one output: calibrated = (raw - offset) / scale."""

    offset: float
    scale: float


def fit_scale(raw: NDArray[Any], *, alpha: float, guarantee: GuaranteeKind, group_sizes: Sequence[int] = ()) -> Scale:
    """Fit an affine scale on the raw values of the calibration images.

    The offset is the median. The scale is the threshold minus the offset, widened by `SCALE_MARGIN`.

    Args:
        raw: (n,) raw scores, or maxima of raw maps.
        alpha: share of good parts that may be rejected.
        guarantee: quantity bounded by alpha, see `rank_for`.
        group_sizes: (n,) calibration images in the part group of each value; empty where every image is its own group.

    Raises:
        CalibrationError: too few part groups for alpha, a value that is not finite, equal values, or a threshold not above
            the median.
    """
    raw = np.asarray(raw, dtype=np.float64)
    if not np.isfinite(raw).all():
        bad = int((~np.isfinite(raw)).sum())
        raise CalibrationError(
            f"{bad} of {len(raw)} calibration scores are not finite: the training diverged, lower its learning rate"
        )
    ranked = rank_scores(raw, group_sizes=group_sizes)
    values, position = ranked.scores, ranked.position(alpha=alpha, guarantee=guarantee)
    if 2 * (position + 1) <= len(values) + 1:
        raise CalibrationError(
            f"alpha {alpha:g} puts the threshold of {len(values)} good images at their median or below:"
            " give a smaller alpha, or more images"
        )
    offset = float(np.median(values))
    scale = (float(values[position]) - offset) * (1 + SCALE_MARGIN)
    # a scale below the values' resolution in single precision is useless
    if scale <= 1e-6 * max(abs(offset), abs(float(values[-1])), 1e-30):
        raise CalibrationError(
            f"the {len(values)} calibration images have almost the same score (median {offset:g}, threshold"
            f" {values[position]:g}): they may be copies of one image; give different ones"
        )
    return Scale(offset=offset, scale=scale)
