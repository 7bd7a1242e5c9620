"""Mutual distances of patches: part groups, missing images, the nearest image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from anomaly.detectors.mutual_distances import MutualDistances, Patches, mutual_distances
from tests.plates import HEIGHT, WIDTH, draw_part, draw_scratch

pytestmark = pytest.mark.slow


def compare(images: Sequence[NDArray[np.uint8]], groups: Sequence[int]) -> MutualDistances:
    patches = Patches(HEIGHT, WIDTH)
    return mutual_distances(patches, lambda n: patches.features(images[n]), groups, seed=0)


def test_a_scratched_part_lies_farthest_from_the_others() -> None:
    images = [draw_part(n) for n in range(12)] + [draw_scratch(draw_part(12), 0)[0]]
    maps = compare(images, range(13)).maps()
    assert maps.shape[0] == 13
    assert maps.reshape(13, -1).max(axis=1).argmax() == 12


def test_images_of_one_part_group_do_not_excuse_each_other() -> None:
    scratched = draw_scratch(draw_part(12), 0)[0]
    images = [draw_part(n) for n in range(12)] + [scratched, scratched]
    alone = compare(images, [*range(12), 12, 13]).maps()
    together = compare(images, [*range(12), 12, 12]).maps()
    assert alone[12].mean() < together[12].mean()


def test_missing_images_leave_the_next_nearest() -> None:
    distance = np.array([[[1, 2, 3]], [[1, 4, 5]]], dtype=np.float16)
    image = np.array([[[1, 2, 3]], [[0, 2, 3]]], dtype=np.int32)
    distances = MutualDistances(distance, image, (1, 1))
    assert distances.maps().ravel().tolist() == [1, 1]
    assert distances.maps(without=[1]).ravel().tolist() == [2, 1]
    assert distances.maps(without=[0, 1, 2, 3]).ravel().tolist() == [3, 5]  # the last one that is kept


def test_identical_images_lie_at_no_distance_from_their_own_rows() -> None:
    maps = compare([np.full((HEIGHT, WIDTH, 3), 90, dtype=np.uint8)] * 3, range(3)).maps()
    assert np.isfinite(maps).all()
    assert np.ptp(maps, axis=0).max() == 0
