"""Pointing accuracy on maps and masks with known maxima."""

from __future__ import annotations

import numpy as np
import pytest

from anomaly.errors import UsageError
from anomaly.metrics import pointing_accuracy
from anomaly.metrics.pointing import TOLERANCE, is_hit


def square(y: int, x: int, *, side: int = 10) -> np.ndarray:
    """A mask of 200 × 300 pixels with a square."""
    mask = np.zeros((200, 300), dtype=bool)
    mask[y : y + side, x : x + side] = True
    return mask


def peak(y: int, x: int) -> np.ndarray:
    """A map of 200 × 300 pixels with one maximum."""
    anomaly_map = np.zeros((200, 300), dtype=np.float32)
    anomaly_map[y, x] = 1.0
    return anomaly_map


def test_maximum_within_the_tolerance_is_a_hit() -> None:
    mask, reach = square(50, 60), int(TOLERANCE * 200)
    assert is_hit(peak(55, 65), mask)
    assert is_hit(peak(50 - reach, 60), mask)
    assert not is_hit(peak(50 - reach - 1, 60), mask)
    assert not is_hit(peak(150, 250), mask)


def test_only_images_with_a_defect_count() -> None:
    nothing = np.zeros((200, 300), dtype=bool)
    rate = pointing_accuracy([(peak(55, 65), square(50, 60)), (peak(0, 0), square(50, 60)), (peak(1, 1), nothing)])
    assert (rate.num_hits, rate.num_trials) == (1, 2)


def test_invalid_shapes_and_empty_masks_are_refused() -> None:
    with pytest.raises(UsageError, match="of one size"):
        is_hit(peak(0, 0), np.zeros((3, 4), dtype=bool))
    with pytest.raises(UsageError, match="no defect pixel"):
        is_hit(peak(0, 0), np.zeros((200, 300), dtype=bool))
