"""The images of a race: its split and its drawn defects."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from anomaly.data.folders import Sample
from anomaly.training import race_images
from anomaly.training.race_images import MOST_HELD_OUT, MOST_TRAIN, draw_defects, reduced, split_for_race
from tests.plates import draw_part


def samples(num: int) -> list[Sample]:
    return [Sample(Path(f"parts/{n:04d}.png"), "good", False, None) for n in range(num)]


def test_part_groups_stay_together() -> None:
    images = samples(60)
    groups = {s.path: str(n // 3) for n, s in enumerate(images)}
    parts = split_for_race(images, groups, seed=0)
    assert {groups[s.path] for s in parts.train}.isdisjoint(groups[s.path] for s in parts.held_out)
    assert len(parts.train) + len(parts.held_out) == 60
    assert len(parts.held_out) == 18
    assert parts == split_for_race(images[::-1], groups, seed=0)
    assert parts != split_for_race(images, groups, seed=1)


def test_the_numbers_of_images_are_bounded() -> None:
    images = samples(1000)
    parts = split_for_race(images, {s.path: str(s.path) for s in images}, seed=0)
    assert (len(parts.train), len(parts.held_out)) == (MOST_TRAIN, MOST_HELD_OUT)


def test_defects_are_drawn_onto_the_images_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(race_images, "NUM_DRAWN", 12)
    images = [draw_part(n) for n in range(4)]
    drawn = draw_defects(images, seed=0)
    assert 6 <= len(drawn.images) <= 12
    assert set(drawn.bases) == {0, 1, 2, 3}
    for image, base in zip(drawn.images, drawn.bases, strict=True):
        assert image.shape == images[base].shape
        assert (image != images[base]).any()
    again = draw_defects(images, seed=0)
    assert all(np.array_equal(a, b) for a, b in zip(drawn.images, again.images, strict=True))


def test_large_images_are_reduced() -> None:
    assert reduced(np.zeros((600, 2048, 3), np.uint8)).shape == (300, 1024, 3)
    assert reduced(np.zeros((600, 800, 3), np.uint8)).shape == (600, 800, 3)
