"""The network parts that models share: flows, norms, similarities, corruption, preprocessing and the feature cache."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from anomaly.detectors.autoencoder import Autoencoder
from anomaly.detectors.fastflow import FastFlow, MapNorm
from anomaly.nn.convolutional import StridedAutoencoder, UNet
from anomaly.nn.corruption import corrupt
from anomaly.nn.coupling_2d import ConvCoupling
from anomaly.nn.feature_cache import FeatureCache
from anomaly.nn.preprocess import Preprocess, letterbox
from anomaly.nn.similarity import GradientSimilarity, Ssim

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Resize = Literal["stretch", "letterbox"]


def random_images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def random_parameters(module: nn.Module, *, deviation: float) -> None:
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(deviation * torch.randn(parameter.shape, generator=generator))


def check_gradients(module: nn.Module, loss: Tensor) -> None:
    loss.backward()
    idle = [name for name, p in module.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not idle


@pytest.mark.parametrize("channels", [4, 7])
@pytest.mark.parametrize("kernel", [1, 3])
def test_coupling_is_inverted_exactly(channels: int, kernel: int) -> None:
    coupling = ConvCoupling(channels, hidden_ratio=1.5, kernel=kernel, clamp=2.0, seed=3)
    random_parameters(coupling, deviation=0.7)
    x = torch.randn(3, channels, 5, 6)
    with torch.no_grad():
        y, log_det = coupling(x)
        back = coupling.inverse(y)
    assert y.shape == x.shape
    assert log_det.shape == (3, 5, 6)
    assert (y - x).abs().max() > 0.1
    assert torch.allclose(back, x, atol=1e-4)


@pytest.mark.parametrize("kernel", [1, 3])
def test_shares_of_the_log_determinant_sum_to_that_of_the_jacobian(kernel: int) -> None:
    coupling = ConvCoupling(5, hidden_ratio=1.0, kernel=kernel, clamp=2.0, seed=1).double()
    random_parameters(coupling, deviation=0.7)
    x = torch.randn(1, 5, 2, 3, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda x: coupling(x)[0].flatten(), x).reshape(30, 30)
    expected = torch.linalg.slogdet(jacobian).logabsdet
    assert expected.abs() > 0.5
    assert coupling(x)[1].sum().item() == pytest.approx(expected.item(), abs=1e-8)


def test_coupling_permutes_by_its_seed() -> None:
    orders = [ConvCoupling(16, hidden_ratio=1.0, kernel=1, clamp=2.0, seed=seed).order.tolist() for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == list(range(16))


def test_map_norm_is_layer_norm() -> None:
    norm = MapNorm((6, 9, 7))
    random_parameters(norm, deviation=1.0)
    y = 3 * torch.randn(4, 6, 9, 7) + 5
    expected = functional.layer_norm(y, (6, 9, 7), norm.weight, norm.bias, 1e-5)
    assert torch.allclose(norm(y), expected, atol=1e-5, rtol=0)


def test_ssim_is_that_of_scikit_image() -> None:
    metrics = pytest.importorskip("skimage.metrics")
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 1, (40, 52, 3)).astype(np.float32)
    y = np.clip(0.7 * x + 0.1 + rng.normal(0, 0.2, x.shape), 0, 1).astype(np.float32)
    expected = metrics.structural_similarity(
        x, y, data_range=1.0, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
    )[1].mean(axis=2)
    found = Ssim()(*(torch.from_numpy(a).permute(2, 0, 1)[None] for a in (x, y)))[0].numpy()
    assert found.shape == (40, 52)
    assert np.abs(found - expected)[5:-5, 5:-5].max() < 1e-4


def test_similarities_of_equal_images_are_1_and_symmetric() -> None:
    x, y = torch.rand(2, 2, 3, 32, 48)
    for measure in (Ssim(), GradientSimilarity()):
        assert torch.allclose(measure(x, x), torch.ones(2, 32, 48), atol=1e-5)
        assert torch.allclose(measure(x, y), measure(y, x), atol=1e-5)
        assert measure(x, y).mean() < 0.9


def test_gradient_similarity_of_a_ramp_and_a_plane_by_hand() -> None:
    slope, c = 0.02, 0.0026
    ramp = (slope * torch.arange(32.0)).expand(1, 3, 32, 32)
    plane = torch.full((1, 3, 32, 32), 0.3)

    def alike(step: float) -> float:  # the gradient of a ramp is the difference over two pixels
        squared = (2 * step) ** 2 + 1e-6
        return (2 * squared**0.5 * 1e-3 + c) / (squared + 1e-6 + c)

    one = GradientSimilarity(num_scales=1)(ramp, plane)
    assert one[0, 16, 16].item() == pytest.approx(alike(slope), abs=1e-4)
    two = GradientSimilarity(num_scales=2)(ramp, plane)
    assert two[0, 16, 16].item() == pytest.approx((alike(slope) + alike(2 * slope)) / 2, abs=1e-4)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (96, 160)])
def test_corruption_paints_within_its_opacity(height: int, width: int) -> None:
    x = torch.rand(8, 3, height, width)
    changed = 0
    for seed in range(8):  # every kind of pattern
        corrupted, opacity = corrupt(x, generator=torch.Generator().manual_seed(seed))
        assert corrupted.shape == x.shape
        assert opacity.shape == (8, 1, height, width)
        assert corrupted.min() >= 0
        assert corrupted.max() <= 1
        assert opacity.min() >= 0
        assert opacity.max() <= 1
        assert torch.equal(corrupted[(opacity == 0).expand_as(x)], x[(opacity == 0).expand_as(x)])
        assert (opacity == 0).any()
        changed += int(((corrupted - x).abs().amax(dim=(1, 2, 3)) > 0.05).sum())
    assert changed > 48  # of 64


def test_corruption_follows_its_generator() -> None:
    x = torch.rand(3, 3, 64, 64)
    first, again, other = (corrupt(x, generator=torch.Generator().manual_seed(seed))[0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("size", [64, 128, 256])
def test_autoencoders_keep_the_shape_and_train_whole(size: int) -> None:
    x = torch.rand(2, 3, size, size)
    for network in (UNet(widths=(4, 8, 8, 8, 8), skips=2), StridedAutoencoder(size=size, latent=6)):
        y = network(x)
        assert y.shape == x.shape
        assert y.min() >= 0
        assert y.max() <= 1
        check_gradients(network, ((y - x) ** 2).mean())


def test_strided_autoencoder_has_the_layers_of_the_paper() -> None:
    code = StridedAutoencoder(size=128, latent=100).encoder(torch.rand(1, 3, 128, 128))
    assert code.shape == (1, 100, 1, 1)
    widths = [m.out_channels for m in StridedAutoencoder(size=256, latent=500).encoder if isinstance(m, nn.Conv2d)]
    assert widths == [32, 32, 32, 32, 64, 64, 128, 64, 32, 500]


@pytest.mark.parametrize("skips", [0, 4])
def test_unet_passes_only_the_coarse_maps_across(skips: int) -> None:
    """Without skips a fine pattern has to come through the bottleneck: the head sees it only with all skips."""
    torch.manual_seed(0)
    network = UNet(widths=(4, 8, 8, 8, 8), skips=skips).eval()
    for up in network.up:
        nn.init.zeros_(up.weight)  # cuts the way through the bottleneck
    x = torch.rand(1, 3, 64, 64)
    moved = (network(x) - network(1 - x)).abs().max()
    assert (moved > 0) == (skips == 4)


def triangle(length: int, target: int) -> NDArray[np.float64]:
    """Weights (target, length) of an antialiased bilinear resize, in double precision."""
    scale = length / target
    centre = (np.arange(target) + 0.5) * scale
    distance = np.abs(centre[:, None] - (np.arange(length) + 0.5)[None, :]) / max(scale, 1.0)
    weight = np.clip(1 - distance, 0, None)
    return np.asarray(weight / weight.sum(axis=1, keepdims=True))


@pytest.mark.parametrize(("height", "width"), [(150, 83), (64, 96), (20, 33), (1, 1)])
def test_stretch_is_an_antialiased_resize(height: int, width: int) -> None:
    image = random_images(2, height, width, 3)
    found = Preprocess(size=(64, 96), resize="stretch", mean=MEAN, std=STD)(image)
    resized = np.einsum("yh,nhwc,xw->ncyx", triangle(height, 64), image.numpy() / 255.0, triangle(width, 96))
    expected = (resized - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    assert found.dtype == torch.float32
    assert np.abs(found.numpy() - expected).max() < 1e-4


@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
def test_list_of_images_is_their_stack(resize: Resize) -> None:
    preprocess = Preprocess(size=(48, 64), resize=resize, mean=MEAN, std=STD)
    image = random_images(3, 70, 50, 3)
    assert torch.equal(preprocess(list(image)), preprocess(image))
    mixed = [random_images(40, 90, 3), random_images(100, 30, 3)]
    found = preprocess(mixed)
    assert found.shape == (2, 3, 48, 64)
    assert torch.equal(found[1:], preprocess(mixed[1][None]))


@pytest.mark.parametrize(("height", "width"), [(100, 100), (50, 50), (64, 64)])
def test_letterbox_of_a_square_is_stretch(height: int, width: int) -> None:
    image = random_images(2, height, width, 3)
    found = [Preprocess(size=(64, 64), resize=r, mean=MEAN, std=STD)(image) for r in ("stretch", "letterbox")]
    assert (found[0] - found[1]).abs().max() < 2e-3


@pytest.mark.parametrize(("height", "width"), [(60, 180), (180, 60), (15, 45)])
def test_letterbox_keeps_the_aspect_and_repeats_the_border(height: int, width: int) -> None:
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


def test_letterbox_is_an_antialiased_resize_in_the_middle() -> None:
    image = random_images(1, 120, 60, 3)
    found = letterbox(image.permute(0, 3, 1, 2).float(), (48, 48))[0].numpy()
    expected = np.einsum("yh,hwc,xw->cyx", triangle(120, 48), image[0].numpy().astype(np.float64), triangle(60, 24))
    assert np.abs(found[:, :, 12:36] - expected).max() < 1e-2
    assert np.ptp(found[:, :, :12], axis=2).max() < 1e-5
    assert np.ptp(found[:, :, 36:], axis=2).max() < 1e-5


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


def test_region_of_a_large_image_lets_nothing_in() -> None:
    """At a scale of 121 the filter's last pixel has a weight of 1/121², which is not nothing."""
    image = torch.zeros(1, 2, 64 * 121, 3, dtype=torch.uint8)
    preprocess = Preprocess(size=(32, 64), resize="stretch", mean=MEAN, std=STD)
    for first in range(2110, 2125):
        mask = torch.zeros(2, 64 * 121, dtype=torch.bool)
        mask[:, first : first + 3001] = True
        preprocess.set_roi(mask)
        other = torch.where(mask[None, :, :, None], image, 255)
        assert torch.equal(preprocess(other), preprocess(image))


def test_region_survives_a_state_dict() -> None:
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
    assert 0 < (x - kept).abs().max() < 0.1  # these are nearly of one brightness
    black = torch.zeros_like(dark)
    black[:, 30, 30] = 255  # one pixel that must not become thousands of grey levels
    assert (preprocess(black) * preprocess.std + preprocess.mean).max() <= 4.01 * 255


def test_level_survives_a_state_dict_and_is_none_in_older_ones() -> None:
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


def test_feature_cache_computes_once_within_its_bound() -> None:
    calls: list[list[str]] = []

    def features(*paths: str) -> list[Tensor]:
        def compute() -> list[Tensor]:
            calls.append(list(paths))
            value = torch.tensor([float(ord(path)) for path in paths], requires_grad=True)
            return [value[:, None] * torch.ones(1, 4), value[:, None, None] * torch.ones(1, 2, 2)]

        return cache.lookup(paths, compute)

    cache = FeatureCache(max_bytes=3 * 8 * 4)  # three images of two levels of four floats
    first = features("a", "b")
    assert not any(level.requires_grad for level in first)
    for one, other in zip(features("b", "a"), first, strict=True):
        assert torch.equal(one, other.flip(0))
    assert calls == [["a", "b"]]
    features("c", "d")  # one of them fits
    features("c")
    assert calls == [["a", "b"], ["c", "d"]]
    features("d")
    features("d")
    assert calls[2:] == [["d"], ["d"]]
    cache.clear()
    features("d", "a", "b")
    features("b")
    assert calls[4:] == [["d", "a", "b"]]
