"""The difference of two outputs in calibrated units."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def relative_difference(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    """Compare calibrated values elementwise: |a - b| / max(1, |a|).

    Args:
        a: reference values; 0 is a typical good part, 1 the threshold.
        b: compared values of the same shape.

    Returns:
        The differences, of the same shape; NaN where a value is NaN.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    return np.asarray(np.abs(a - b) / np.maximum(1.0, np.abs(a)))
