"""Preprocessing: resize, letterbox, region of interest and levelled brightness."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from anomaly.detectors.autoencoder import Autoencoder
from anomaly.detectors.fastflow import FastFlow
from anomaly.nn.preprocess import Preprocess, letterbox

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Resize = Literal["stretch", "letterbox"]


def random_images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def triangle(length: int, target: int) -> NDArray[np.float64]:
    """Weights (target, length) of an antialiased bilinear resize, in double precision."""
    scale = length / target
    centre = (np.arange(target) + 0.5) * scale
    distance = np.abs(centre[:, None] - (np.arange(length) + 0.5)[None, :]) / max(scale, 1.0)
    weight = np.clip(1 - distance, 0, None)
    return np.asarray(weight / weight.sum(axis=1, keepdims=True))


@pytest.mark.slow
@pytest.mark.parametrize(("height", "width"), [(150, 83), (64, 96), (20, 33), (1, 1)])
def test_stretch_is_an_antialiased_resize(height: int, width: int) -> None:
    image = random_images(2, height, width, 3)
    output = Preprocess(size=(64, 96), resize="stretch", mean=MEAN, std=STD)(image)
    resized = np.einsum("yh,nhwc,xw->ncyx", triangle(height, 64), image.numpy() / 255.0, triangle(width, 96))
    expected = (resized - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    assert output.dtype == torch.float32
    assert np.abs(output.numpy() - expected).max() < 1e-4


@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
def test_list_of_images_equals_their_stack(resize: Resize) -> None:
    preprocess = Preprocess(size=(48, 64), resize=resize, mean=MEAN, std=STD)
    image = random_images(3, 70, 50, 3)
    assert torch.equal(preprocess(list(image)), preprocess(image))
    mixed = [random_images(40, 90, 3), random_images(100, 30, 3)]
    output = preprocess(mixed)
    assert output.shape == (2, 3, 48, 64)
    assert torch.equal(output[1:], preprocess(mixed[1][None]))


@pytest.mark.parametrize(("height", "width"), [(100, 100), (50, 50), (64, 64)])
def test_letterbox_of_a_square_equals_stretch(height: int, width: int) -> None:
    image = random_images(2, height, width, 3)
    output = [Preprocess(size=(64, 64), resize=r, mean=MEAN, std=STD)(image) for r in ("stretch", "letterbox")]
    assert (output[0] - output[1]).abs().max() < 2e-3


@pytest.mark.parametrize(("height", "width"), [(60, 180), (180, 60), (15, 45)])
def test_letterbox_keeps_the_aspect_ratio_and_repeats_the_border(height: int, width: int) -> None:
    image = torch.zeros(1, height, width, 3, dtype=torch.uint8)
    side = min(height, width) // 3
    top, left = (height - side) // 2, (width - side) // 2
    image[:, top : top + side, left : left + side] = 255
    x = Preprocess(size=(90, 90), resize="letterbox", mean=MEAN, std=STD)(image)[0, 0]
    drawn = x > (0.5 - MEAN[0]) / STD[0]
    rows, columns = drawn.any(dim=1).nonzero().flatten(), drawn.any(dim=0).nonzero().flatten()
    assert len(rows) == len(columns) == side * 90 / max(height, width)
    assert rows.min() == 89 - rows.max()
    assert columns.min() == 89 - columns.max()
    upright = x if width > height else x.T
    assert (upright[:30] == upright[30]).all()
    assert (upright[60:] == upright[59]).all()


def test_letterbox_is_an_antialiased_resize_at_the_centre() -> None:
    image = random_images(1, 120, 60, 3)
    output = letterbox(image.permute(0, 3, 1, 2).float(), (48, 48))[0].numpy()
    expected = np.einsum("yh,hwc,xw->cyx", triangle(120, 48), image[0].numpy().astype(np.float64), triangle(60, 24))
    assert np.abs(output[:, :, 12:36] - expected).max() < 1e-2
    assert np.ptp(output[:, :, :12], axis=2).max() < 1e-5
    assert np.ptp(output[:, :, 36:], axis=2).max() < 1e-5


def small_detector(name: str, resize: Resize) -> Autoencoder | FastFlow:
    torch.manual_seed(0)
    if name == "autoencoder":
        return Autoencoder(size=64, resize=resize, width=4, smooth=3, loss="l2", score="ssim+msgms").eval()
    return FastFlow(size=64, resize=resize, backbone="resnet10t", layers=(1, 2), weights="none", num_steps=2).eval()


@pytest.mark.parametrize("name", ["autoencoder", "fastflow"])
@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
@pytest.mark.parametrize(("height", "width"), [(330, 410), (50, 40)])
def test_pixels_outside_the_region_change_nothing(name: str, resize: Resize, height: int, width: int) -> None:
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[height // 5 : -height // 3, width // 6 + 1 : -width // 4] = True
    detector = small_detector(name, resize)
    detector.preprocess.set_roi(mask)
    image = random_images(2, height, width, 3)
    other = torch.where(mask[None, :, :, None], image, random_images(2, height, width, 3, seed=1))
    with torch.no_grad():
        x, score, anomaly_map = detector.preprocess(image), *detector(image)
        assert torch.equal(detector.preprocess(other), x)
        assert torch.equal(detector(other).score, score)
        assert torch.equal(detector(other).anomaly_map, anomaly_map)
        inside = torch.where(mask[None, :, :, None], 255 - image, image)
        assert not torch.equal(detector(inside).score, score)
    roi = detector.preprocess.roi
    covered = roi.float().mean().item() / (1.0 if resize == "stretch" else min(height, width) / max(height, width))
    assert 0.6 * mask.float().mean().item() < covered < mask.float().mean().item()
    assert (x[:, :, ~roi] == 0).all()
    assert (anomaly_map[:, ~roi] <= anomaly_map[:, roi].amin(dim=1, keepdim=True)).all()


def test_region_of_a_large_image_ignores_pixels_outside() -> None:
    """At a scale of 121, the filter's last pixel has a weight of 1/121²."""
    image = torch.zeros(1, 2, 64 * 121, 3, dtype=torch.uint8)
    preprocess = Preprocess(size=(32, 64), resize="stretch", mean=MEAN, std=STD)
    for first in range(2110, 2125):
        mask = torch.zeros(2, 64 * 121, dtype=torch.bool)
        mask[:, first : first + 3001] = True
        preprocess.set_roi(mask)
        other = torch.where(mask[None, :, :, None], image, 255)
        assert torch.equal(preprocess(other), preprocess(image))


def test_region_is_restored_from_a_state_dict() -> None:
    mask = torch.zeros(40, 40, dtype=torch.bool)
    mask[10:30, 5:35] = True
    one, other = (Preprocess(size=(32, 32), resize="stretch", mean=MEAN, std=STD) for _ in range(2))
    one.set_roi(mask)
    assert (one.has_roi, other.has_roi) == (True, False)
    other.load_state_dict(one.state_dict())
    assert other.has_roi
    image = random_images(1, 40, 40, 3)
    assert torch.equal(other(image), one(image))
    one.set_roi(torch.ones(40, 40, dtype=torch.bool))
    assert not one.has_roi


@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
@pytest.mark.parametrize("region", [False, True])
def test_levelled_brightness_undoes_a_factor(resize: Resize, region: bool) -> None:
    dark = random_images(4, 70, 50, 3) // 4
    preprocess = Preprocess(size=(48, 64), resize=resize, mean=MEAN, std=STD)
    kept = preprocess(dark)
    if region:
        mask = torch.zeros(70, 50, dtype=torch.bool)
        mask[8:60, 8:44] = True
        preprocess.set_roi(mask)
        kept = kept * preprocess.roi
    preprocess.level_brightness([dark[:1], list(dark[1:])])
    assert preprocess.level.item() == pytest.approx(dark.float().mean().item(), rel=0.05)
    x = preprocess(dark)
    assert (preprocess(dark * 4) - x).abs().max() < 1e-4
    levels = (x * preprocess.std + preprocess.mean)[:, :, preprocess.roi]
    assert levels.mean(dim=(1, 2)).numpy() == pytest.approx(preprocess.level.item(), rel=1e-4)
    assert 0 < (x - kept).abs().max() < 0.1  # the images have nearly equal brightness
    black = torch.zeros_like(dark)
    black[:, 30, 30] = 255  # one pixel, whose gain is bounded
    assert (preprocess(black) * preprocess.std + preprocess.mean).max() <= 4.01 * 255


def test_level_is_restored_from_a_state_dict() -> None:
    image = random_images(2, 40, 40, 3)
    one, other = (Preprocess(size=(32, 32), resize="stretch", mean=MEAN, std=STD) for _ in range(2))
    old = {key: value for key, value in one.state_dict().items() if key != "level"}
    one.level_brightness([image // 2])
    other.load_state_dict(one.state_dict())
    assert other.levelled
    assert torch.equal(other(image), one(image))
    other.load_state_dict(old)
    assert not other.levelled
    assert not torch.equal(other(image), one(image))
