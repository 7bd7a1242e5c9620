"""Statistics of whole images that separate defective from good test images are found and described."""

from __future__ import annotations

import pytest

from anomaly.benchmark.shortcuts import describe_shortcuts, measure_shortcuts
from anomaly.errors import DataError


def light(*levels: float) -> list[dict[str, float]]:
    """Images with these values of brightness and equal contrast."""
    return [{"brightness": level, "contrast": 30.0} for level in levels]


def test_light_that_separates_defects_is_described() -> None:
    measured = measure_shortcuts(train=light(180, 184, 190, 171), good=light(170, 171), defect=light(186, 187, 185))
    assert measured["brightness"] == {"defect_above_good": 1.0, "test_above_train": 0.0625}
    assert measured["contrast"] == {"defect_above_good": 0.5, "test_above_train": 0.5}
    [text] = describe_shortcuts(measured)
    assert text.startswith("Brightness of the whole image ranks")
    assert "AUROC of 100.0" in text
    assert "with 6.2. The good test images differ from the training images" in text


def test_shortcuts_in_both_directions_and_none_in_equal_light() -> None:
    darker = measure_shortcuts(train=light(1, 2, 3), good=light(8, 9), defect=light(1, 2, 3))
    assert [one.split()[0] for one in describe_shortcuts(darker)] == ["Brightness"]
    large = measure_shortcuts(train=light(1, 2, 3), good=light(1, 3), defect=light(8, 9))
    [text] = describe_shortcuts(large)
    assert "with 50.0. The good test images agree with the training images" in text
    alike = measure_shortcuts(train=light(1, 2, 3), good=light(1, 3), defect=light(1, 2, 3))
    assert list(describe_shortcuts(alike)) == []
    assert list(describe_shortcuts({})) == []


@pytest.mark.parametrize("empty", ["train", "good", "defect"])
def test_an_empty_set_of_images_is_refused(empty: str) -> None:
    parts = {"train": light(1), "good": light(2), "defect": light(3)} | {empty: []}
    with pytest.raises(DataError, match="at least one of each"):
        measure_shortcuts(**parts)
