"""Statistics of whole images that tell defective from good test images are found and said."""

from __future__ import annotations

import pytest

from anomaly.benchmark.shortcuts import measure_shortcuts, tell_shortcuts
from anomaly.errors import DataError


def light(*levels: float) -> list[dict[str, float]]:
    """Images of these brightnesses and one contrast."""
    return [{"brightness": level, "contrast": 30.0} for level in levels]


def test_light_that_tells_defects_is_found_and_said() -> None:
    measured = measure_shortcuts(train=light(180, 184, 190, 171), good=light(170, 171), defect=light(186, 187, 185))
    assert measured["brightness"] == {"defect_above_good": 1.0, "test_above_train": 0.0625}
    assert measured["contrast"] == {"defect_above_good": 0.5, "test_above_train": 0.5}
    [told] = tell_shortcuts(measured)
    assert told.startswith("Brightness of the whole image ranks")
    assert "AUROC of 100.0" in told
    assert "with 6.2: they were taken otherwise" in told


def test_a_shortcut_may_point_either_way_and_equal_light_is_none() -> None:
    darker = measure_shortcuts(train=light(1, 2, 3), good=light(8, 9), defect=light(1, 2, 3))
    assert [one.split()[0] for one in tell_shortcuts(darker)] == ["Brightness"]
    large = measure_shortcuts(train=light(1, 2, 3), good=light(1, 3), defect=light(8, 9))
    [told] = tell_shortcuts(large)
    assert "with 50.0: they are alike in it" in told
    alike = measure_shortcuts(train=light(1, 2, 3), good=light(1, 3), defect=light(1, 2, 3))
    assert list(tell_shortcuts(alike)) == []
    assert list(tell_shortcuts({})) == []


@pytest.mark.parametrize("empty", ["train", "good", "defect"])
def test_no_images_are_refused(empty: str) -> None:
    parts = {"train": light(1), "good": light(2), "defect": light(3)} | {empty: []}
    with pytest.raises(DataError, match="at least one of each"):
        measure_shortcuts(**parts)
