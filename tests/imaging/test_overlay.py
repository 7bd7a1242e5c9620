from __future__ import annotations

import cv2
import numpy as np
import pytest

from anomaly.errors import UsageError
from anomaly.imaging.overlay import enlarge_map, overlay

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(("height", "width"), [(90, 70), (7, 5), (3, 2), (1, 1), (33, 200)])
def test_stretched_map_is_enlarged_with_half_pixel_centres(height: int, width: int) -> None:
    anomaly_map = RNG.standard_normal((7, 5)).astype(np.float32)
    found = enlarge_map(anomaly_map, height=height, width=width, resize="stretch")
    assert found.dtype == np.float32
    expected = cv2.resize(anomaly_map, (width, height), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_map_of_the_images_size_is_unchanged() -> None:
    anomaly_map = RNG.standard_normal((6, 9)).astype(np.float32)
    for resize in ("stretch", "letterbox"):
        assert np.array_equal(enlarge_map(anomaly_map, height=6, width=9, resize=resize), anomaly_map)


@pytest.mark.parametrize(("height", "width"), [(630, 250), (250, 630), (101, 37), (64, 64), (20, 31)])
def test_letterboxed_map_is_exact_for_a_plane(height: int, width: int) -> None:
    """A map that is linear in the image's coordinates stays so when enlarged, without the padding."""
    h, w = 64, 48
    scale = min(h / height, w / width)
    y = (np.arange(h) + 0.5 - h / 2) / scale + height / 2  # centres of the map's rows in the image
    x = (np.arange(w) + 0.5 - w / 2) / scale + width / 2
    anomaly_map = (0.01 * y[:, None] - 0.02 * x).astype(np.float32)
    found = enlarge_map(anomaly_map, height=height, width=width, resize="letterbox")
    expected = 0.01 * (np.arange(height) + 0.5)[:, None] - 0.02 * (np.arange(width) + 0.5)
    half = int(np.ceil(0.5 / scale)) + 1  # the border is repeated beyond the outermost centres
    np.testing.assert_allclose(found[half:-half, half:-half], expected[half:-half, half:-half], atol=2e-4)


def test_padding_of_a_letterboxed_map_is_cut_off() -> None:
    anomaly_map = np.full((64, 64), 9.0, dtype=np.float32)
    anomaly_map[16:48] = 1.0  # an image twice as wide as high, between two bands of padding
    found = enlarge_map(anomaly_map, height=32, width=64, resize="letterbox")
    assert np.array_equal(found, np.ones((32, 64), dtype=np.float32))
    for height, width in ((320, 640), (1, 640), (5, 11)):
        larger = enlarge_map(anomaly_map, height=height, width=width, resize="letterbox")
        assert np.array_equal(larger, np.ones((height, width), dtype=np.float32))


@pytest.mark.parametrize("shape", [(1, 4, 4), (4,)])
def test_map_without_two_dimensions_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="cannot be enlarged"):
        enlarge_map(np.zeros(shape, dtype=np.float32), height=8, width=8, resize="stretch")


def test_overlay_of_a_good_part_is_the_image() -> None:
    image = RNG.integers(0, 256, (40, 50, 3), dtype=np.uint8)
    anomaly_map = RNG.uniform(-1, 0.5, (40, 50)).astype(np.float32)
    assert np.array_equal(overlay(image, anomaly_map, threshold=1.0), image)


def test_colour_depends_on_the_threshold_alone() -> None:
    image = np.full((40, 60, 3), 128, dtype=np.uint8)
    anomaly_map = np.zeros((40, 60), dtype=np.float32)
    anomaly_map[10:30, 10:30] = 0.8
    weak = overlay(image, anomaly_map, threshold=1.0)
    anomaly_map[10:30, 35:55] = 50.0
    strong = overlay(image, anomaly_map, threshold=1.0)
    assert np.array_equal(weak[20, 20], strong[20, 20]), "a strong defect elsewhere changes no colour"
    assert strong[20, 45, 0] > 150 > 80 > strong[20, 45, 1], "red"
    assert np.array_equal(overlay(image, 3 * anomaly_map, threshold=3.0), strong)
    anomaly_map[10:30, 35:55] = 2.0
    assert np.array_equal(overlay(image, anomaly_map, threshold=1.0), strong), "full colour from twice the threshold"


def test_line_follows_the_threshold() -> None:
    image = np.full((40, 60, 3), 128, dtype=np.uint8)
    anomaly_map = np.zeros((40, 60), dtype=np.float32)
    anomaly_map[10:30, 20:40] = 1.5
    drawn = overlay(image, anomaly_map, threshold=1.0)
    line = np.all(drawn == (0, 255, 255), axis=2)
    assert line[10, 20:40].all()
    assert line[10:30, 39].all()
    assert not line[11:29, 21:39].any()
    assert not overlay(image, anomaly_map, threshold=2.0)[line].tolist().count([0, 255, 255])


@pytest.mark.parametrize("threshold", [0.0, -1.0, float("nan")])
def test_threshold_must_be_positive(threshold: float) -> None:
    with pytest.raises(UsageError, match="threshold is"):
        overlay(np.zeros((4, 4, 3), dtype=np.uint8), np.zeros((4, 4), dtype=np.float32), threshold=threshold)


def test_map_must_fit_its_image() -> None:
    with pytest.raises(UsageError, match="enlarge the map first"):
        overlay(np.zeros((4, 4, 3), dtype=np.uint8), np.zeros((2, 2), dtype=np.float32), threshold=1.0)
