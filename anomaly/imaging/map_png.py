"""A calibrated map in 16 bits, as `score --maps` and the service's `map=true` give it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MAP_STEP, MAP_ZERO = 1 / 2048, 4.0
"""A map's value is stored as (value + MAP_ZERO) / MAP_STEP: from -4 to 28 in steps of 1/2048"""


def map_levels(anomaly_map: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Give the levels (h, w) of a calibrated map (h, w), rounded to nearest; values beyond -4 and 28 become these."""
    levels: NDArray[np.uint16] = np.rint((anomaly_map + MAP_ZERO) / MAP_STEP).clip(0, 65535).astype(np.uint16)
    return levels
