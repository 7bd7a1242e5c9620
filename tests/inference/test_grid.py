"""Cells of a grid in the pixels of an image, for both rules of resizing."""

from __future__ import annotations

import pytest

from anomaly.inference.grid import Box, Grid


def test_cells_of_a_stretched_image() -> None:
    grid = Grid((4, 8), (64, 64), "stretch")
    assert grid.box(0, (100, 200), reach=0) == Box(0, 0, 25, 25)
    assert grid.box(9, (100, 200), reach=0) == Box(25, 25, 25, 25)
    assert grid.box(9, (100, 200)) == Box(0, 0, 75, 75)
    assert grid.box(31, (100, 200), reach=0) == Box(175, 75, 25, 25)


def test_cells_of_a_letterboxed_image() -> None:
    grid = Grid((8, 8), (64, 64), "letterbox")  # the image covers rows 2 to 5
    assert grid.box(2 * 8, (100, 200), reach=0) == Box(0, 0, 25, 25)
    assert grid.box(5 * 8 + 7, (100, 200), reach=0) == Box(175, 75, 25, 25)
    assert grid.box(0, (100, 200), reach=0).height >= 1


@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
def test_every_cell_is_found_in_its_own_box(resize: str) -> None:
    grid = Grid((6, 6), (96, 96), resize)  # type: ignore[arg-type]
    for cell in (14, 15, 20, 21):
        assert cell in grid.cells_in(grid.box(cell, (120, 150), reach=0), (120, 150))


def test_box_smaller_than_a_cell_has_the_nearest_cell() -> None:
    grid = Grid((4, 4), (64, 64), "stretch")
    assert grid.cells_in(Box(1, 1, 2, 2), (100, 100)).tolist() == [0]
