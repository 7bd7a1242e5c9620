"""Size and contrast of labelled defects from their masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from anomaly.data.folders import Sample
from anomaly.imaging.image_file import write_png
from anomaly.report.defect_sizes import contrast_of, defect_sizes, extent_of


def test_extent_and_contrast_of_a_bar() -> None:
    image, mask = np.full((100, 200, 3), 90, np.uint8), np.zeros((100, 200), bool)
    mask[40:45, 60:90] = True
    image[mask] = 130
    assert extent_of(mask) == pytest.approx(0.3, abs=0.01)
    assert contrast_of(image, mask) == pytest.approx(40)


def test_missed_and_detected_defects_are_separate(tmp_path: Path) -> None:
    samples = []
    for n, side in enumerate((4, 20)):
        image, mask = np.full((64, 64, 3), 90, np.uint8), np.zeros((64, 64, 3), np.uint8)
        mask[10 : 10 + side, 10 : 10 + side] = 255
        image[mask > 0] = 100 + 50 * n
        write_png(tmp_path / f"{n}.png", image)
        write_png(tmp_path / f"{n}_mask.png", mask)
        samples.append(Sample(tmp_path / f"{n}.png", "spot", True, tmp_path / f"{n}_mask.png"))
    samples.append(Sample(tmp_path / "0.png", "spot", True, None))
    missed, detected = defect_sizes(samples, np.array([False, True, True]), white=255, max_pixels=10_000)
    assert (missed.detected, detected.detected) == (False, True)
    assert missed.median_size < detected.median_size
    assert (missed.median_contrast, detected.median_contrast) == (pytest.approx(10), pytest.approx(60))
    assert defect_sizes(samples[2:], np.array([True]), white=255, max_pixels=10_000) == ()
