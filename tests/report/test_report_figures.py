"""The report's tables, charts and pictures, without a page."""

from __future__ import annotations

import base64
import math

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from anomaly.conformal.guarantee import guarantee_for
from anomaly.data.splits import CALIBRATION_SHARE
from anomaly.errors import CalibrationError
from anomaly.metrics import Rate
from anomaly.report.charts import ACCEPTED, REJECTED, score_chart
from anomaly.report.pictures import PICTURE_SIDE, data_uri, label_synthetic, reduce_picture
from anomaly.report.tables import detection_tables, heat, percent, tighter_guarantees
from anomaly.report.values import DetectionRate


def image(seed: int, side: int = 220) -> NDArray[np.uint8]:
    """Texture, edges and sensor noise, as in a real image."""
    rng = np.random.default_rng(seed)
    texture = cv2.GaussianBlur(rng.normal(0, 60, (side, side, 3)), (0, 0), 3) * 3
    cv2.circle(texture, (side // 2, side // 2), side // 3, (40, 60, 80), thickness=3)
    return np.clip(120 + texture + rng.normal(0, 3, texture.shape), 0, 255).astype(np.uint8)


def rate(size: float, contrast: float, num_detected: int, kind: str = "scratch", num_drawn: int = 10) -> DetectionRate:
    return DetectionRate(kind, size, 200 * size, contrast, Rate(num_detected, num_drawn))


def test_colours_of_a_picture_stay() -> None:
    picture = np.zeros((40, 60, 3), np.uint8)
    picture[:, :30], picture[:, 30:] = (200, 30, 10), (10, 60, 220)
    uri = data_uri(picture)
    assert uri.startswith("data:image/png;base64,")
    data = np.frombuffer(base64.b64decode(uri.partition(",")[2]), np.uint8)
    assert np.array_equal(cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1], picture)
    assert data_uri(image(1)).startswith("data:image/jpeg;base64,")


def test_synthetic_pictures_carry_their_label() -> None:
    picture = reduce_picture(image(1, side=480))
    labelled = label_synthetic(picture)
    assert np.array_equal(labelled[:PICTURE_SIDE], picture), "the label hides no pixel"
    strip = labelled[PICTURE_SIDE:]
    assert strip.shape == (PICTURE_SIDE // 8, PICTURE_SIDE, 3)
    dark = (strip.max(axis=2) < 90).any(axis=0)
    letters = np.count_nonzero(dark[1:] & ~dark[:-1])
    assert letters == len("SYNTHETIC"), "every letter stands apart on the strip"


def test_tighter_guarantees_need_the_images_of_the_calibration() -> None:
    rows = tighter_guarantees(guarantee_for(60, alpha=0.1, guarantee="expected"))
    assert (0.05, "bound") not in [(row.alpha, row.guarantee) for row in rows], "60 images support this guarantee"
    assert [row.num_calibration for row in rows if row.alpha == 0.01] == [99, 299]
    for row in rows:
        assert row.num_more == row.num_calibration - 60
        guarantee_for(row.num_calibration, alpha=row.alpha, guarantee=row.guarantee)
        with pytest.raises(CalibrationError):
            guarantee_for(row.num_calibration - 1, alpha=row.alpha, guarantee=row.guarantee)
        assert math.ceil(CALIBRATION_SHARE * row.num_images) >= row.num_calibration
        assert math.ceil(CALIBRATION_SHARE * (row.num_images - 5)) < row.num_calibration
    assert tighter_guarantees(guarantee_for(10**6, alpha=0.1, guarantee="expected")) == ()


def test_smallest_size_counts_only_if_all_larger_ones_are_detected() -> None:
    rates = [rate(size, 0.2, hits) for size, hits in ((0.05, 10), (0.1, 5), (0.2, 9), (0.4, 10))]
    rates += [rate(0.2, 0.1, 10), rate(0.4, 0.1, 8), rate(0.05, 0.4, 9), rate(0.1, 0.4, 0, num_drawn=0)]
    (table,) = detection_tables(tuple(reversed(rates)))
    assert list(table.sizes) == [0.05, 0.1, 0.2, 0.4]
    assert table.contrasts == (0.1, 0.2, 0.4)
    found = {contrast: smallest and smallest.size for contrast, smallest in table.smallest.items()}
    assert found == {0.1: None, 0.2: 0.2, 0.4: 0.05}
    assert (0.4, 0.1) not in table.cells, "without drawings there is no share"
    assert detection_tables((rate(0.1, 0.2, 0, num_drawn=0),)) == []


def test_bars_at_the_threshold_have_the_colour_of_their_verdict() -> None:
    for score, colour, other in ((1.0, ACCEPTED, REJECTED), (np.nextafter(1, 2), REJECTED, ACCEPTED)):
        svg = score_chart([("row", np.array([score]))])
        assert f"fill: {colour}" in svg
        assert f"fill: {other}" not in svg


def test_scores_beyond_the_axis_are_counted() -> None:
    svg = score_chart([("good", np.array([-9.0, -8.0, 0.0])), ("bad", np.array([0.5, *[3.0] * 30, 70.0, np.inf]))])
    assert ">2 lower<" in svg
    assert ">2 higher<" in svg


@pytest.mark.parametrize(
    ("share", "words"),
    [
        (0.0, "0 %"), (1.0, "100 %"), (0.9999, "above 99.9 %"), (1e-5, "below 0.01 %"), (0.0099, "0.99 %"),
        (0.0164, "1.6 %"), (0.5, "50.0 %"),
    ],
)  # fmt: skip
def test_percent(share: float, words: str) -> None:
    assert percent(share).replace("\u00a0", " ") == words


def test_colours_of_a_heat_table_leave_dark_text_readable() -> None:
    def luminance(colour: str) -> float:
        parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    text = luminance("#39444f")
    for share in np.linspace(0, 1, 11):
        assert (luminance(heat(share)) + 0.05) / (text + 0.05) > 4.5  # WCAG 2, level AA
