"""Areas and maxima of ranking curves, from cumulative counts at falling thresholds.

    fp, tp      number of good and defect items with score >= threshold; shape (..., num_thresholds), thresholds falling.
                The last threshold is at or below every defect, so tp[..., -1] is the number of defects, above 0.
    fpr         fp / number of good items
    hit_rate    tp / number of defects, or the mean overlap of the regions

The leading axes are bootstrap resamples. A threshold above all items (fp = tp = 0) changes no value.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


def area_under_curve(fpr: FloatArray, hit_rate: FloatArray, *, limit: float) -> FloatArray:
    """Integrate `hit_rate` over `fpr` from 0 to `limit` and divide by `limit`.

    The curve is linear from (0, 0) through the points to (1, 1), and is interpolated at the limit.

    Args:
        fpr: (..., num_thresholds), rising, in [0, 1].
        hit_rate: (..., num_thresholds), rising, in [0, 1].
        limit: largest false positive rate, in (0, 1]; 1 gives the area under the ROC curve.

    Returns:
        (...), in [0, 1].
    """
    ends = [(0, 0)] * (fpr.ndim - 1) + [(1, 1)]
    x = np.pad(fpr, ends, constant_values=(0, 1))
    y = np.pad(hit_rate, ends, constant_values=(0, 1))
    width = np.diff(x)
    kept = np.clip(limit - x[..., :-1], 0, width)  # the part of each segment left of the limit
    share = np.divide(kept, width, out=np.zeros_like(width), where=width > 0)
    area: FloatArray = np.sum(kept * (y[..., :-1] + np.diff(y) * share / 2), axis=-1) / limit
    return area


def average_precision_at(fp: FloatArray, tp: FloatArray) -> FloatArray:
    """Average the precision over the steps of recall, without interpolation; (...), in [0, 1]."""
    selected = fp + tp
    precision = np.divide(tp, selected, out=np.zeros_like(selected), where=selected > 0)
    area: FloatArray = np.sum(np.diff(tp, prepend=0) * precision, axis=-1) / tp[..., -1]
    return area


def f1_at(fp: FloatArray, tp: FloatArray) -> FloatArray:
    """Compute the harmonic mean of precision and recall at every threshold; (..., num_thresholds), in [0, 1]."""
    scores: FloatArray = 2 * tp / (fp + tp + tp[..., -1:])
    return scores
