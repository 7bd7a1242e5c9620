"""Calibrated maps as 16-bit levels: the encoding of `score --maps` and of the service's `map=true`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MAP_STEP, MAP_ZERO = 1 / 2048, 4.0
"""The level of a value is (value + MAP_ZERO) / MAP_STEP: -4 to 28 in steps of 1/2048"""


def map_levels(anomaly_map: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Convert a calibrated map (h, w) to levels (h, w), rounded to nearest; values are clipped to -4 and 28."""
    levels: NDArray[np.uint16] = np.rint((anomaly_map + MAP_ZERO) / MAP_STEP).clip(0, 65535).astype(np.uint16)
    return levels
