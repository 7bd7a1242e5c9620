"""Windows of large images: stitched maps compared with whole maps, and the amount in the network at a time."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from anomaly.errors import UsageError
from anomaly.inference.tiles import PIXELS_AT_ONCE, ScoreWindows, Tiling, WindowScores, score_tiled, seam
from anomaly.nn.receptive_field import reach

STRIDE = 8


class Pyramid(nn.Module):
    """A network with stride 8: strided and transposed convolutions, a pooled level, and all kinds of padding."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.down = nn.Sequential(
            nn.Conv2d(3, 6, 5, stride=2, padding=2),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 6, 4, stride=2, padding=1),
        )
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(6, 1, 4, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        deep = self.pool(functional.silu(self.down(functional.pad(x, (2, 2, 2, 2), mode="reflect")[..., 2:-2, 2:-2])))
        coarse = functional.interpolate(self.up(deep), x.shape[2:], mode="bilinear", align_corners=False)
        return functional.avg_pool2d(functional.pad(coarse, (3, 3, 3, 3), mode="replicate"), 7, stride=1)[:, 0]


def scorer_of(network: Callable[[Tensor], Tensor]) -> ScoreWindows:
    def score(windows: NDArray[np.uint8]) -> WindowScores:
        with torch.no_grad():
            maps = network(torch.from_numpy(windows).permute(0, 3, 1, 2).float() / 255)
        return maps.amax(dim=(1, 2)).numpy(), maps.numpy()

    return score


def seamless(step: tuple[int, int], halo: int, *, stride: int = STRIDE) -> Tiling:
    return Tiling("seamless", window=[step[0] + 2 * halo, step[1] + 2 * halo], step=list(step), stride=stride)


def noise(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize(
    ("stack", "stride", "expected"),
    [
        (nn.Conv2d(3, 1, 3, padding=1), 1, 1),
        (nn.Conv2d(3, 1, 5, padding=8, dilation=4), 1, 8),
        (nn.Sequential(nn.Conv2d(3, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 1, 7, padding=3)), 1, 4),
        (nn.Sequential(nn.AvgPool2d(4), nn.Upsample(scale_factor=4)), 4, 0),
        (nn.Sequential(nn.AvgPool2d(4), nn.Conv2d(3, 1, 3, padding=1), nn.Upsample(scale_factor=4)), 4, 4),
        # each map pixel depends on two cells; cell i depends on the pixels 2i - 1 to 2i + 2
        (nn.Sequential(nn.Conv2d(3, 2, 4, 2, padding=1), nn.ConvTranspose2d(2, 1, 4, 2, padding=1)), 2, 3),
        (nn.Sequential(nn.MaxPool2d(3, stride=2, padding=1), nn.Upsample(scale_factor=2)), 2, 2),
    ],
)
def test_reach_of_known_networks(stack: nn.Module, stride: int, expected: int) -> None:
    for parameter in stack.parameters():
        nn.init.zeros_(parameter)  # the reach depends on the structure, not on the weights
    assert reach(lambda x: stack(x)[:, 0], stride=stride) == (expected, expected)


def test_reach_differs_between_rows_and_columns() -> None:
    stack = nn.Conv2d(3, 1, (3, 9), padding=(1, 4))
    assert reach(lambda x: stack(x)[:, 0], stride=1) == (1, 4)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x[:, 0] - x.mean(), "depends on the whole"),
        (lambda x: functional.instance_norm(x)[:, 0], "depends on the whole"),
        (lambda x: functional.avg_pool2d(x, 2)[:, 0], "its map has size"),
    ],
)
def test_reach_refuses_networks_that_tiles_cannot_cover(function: Callable[[Tensor], Tensor], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        reach(function, stride=2)


def halo_of(network: Callable[[Tensor], Tensor]) -> int:
    return max(-(-pixels // STRIDE) * STRIDE for pixels in reach(network, stride=STRIDE))


@pytest.mark.parametrize(
    ("shape", "step"),
    [
        ((96, 120), (24, 40)),  # all multiples of the stride
        ((131, 97), (24, 40)),  # odd sizes: padded to the stride, the map cut back
        ((131, 97), (8, 8)),  # the halo is larger than a tile
        ((200, 56), (16, 96)),  # long and narrow, tiles wider than the image
        ((17, 300), (64, 32)),  # one tile high
        ((5, 3), (24, 24)),  # smaller than the stride
        ((1, 1), (8, 8)),
    ],
)
def test_stitched_map_equals_the_whole_map(shape: tuple[int, int], step: tuple[int, int]) -> None:
    network = Pyramid().eval()
    halo = halo_of(network)
    assert halo > 8
    image = noise(2, *shape, 3)
    score, stitched = score_tiled(scorer_of(network), image, tiling=seamless(step, halo))
    whole = np.pad(image, ((0, 0), (0, -shape[0] % STRIDE), (0, -shape[1] % STRIDE), (0, 0)), mode="edge")
    expected = scorer_of(network)(whole)[1][:, : shape[0], : shape[1]]
    assert stitched.shape == expected.shape
    assert np.abs(stitched - expected).max() < 1e-6
    assert np.array_equal(score, stitched.max(axis=(1, 2)))


def test_too_small_halo_or_stride_is_measured() -> None:
    network = Pyramid().eval()
    score, image, halo = scorer_of(network), noise(300, 260, 3), halo_of(network)
    assert seam(score, image, tiling=seamless((64, 64), halo)) < 1e-6
    assert seam(score, image, tiling=seamless((64, 64), halo - STRIDE)) > 1e-5
    assert seam(score, image, tiling=seamless((68, 68), halo + 4, stride=4)) > 1e-3


def test_few_windows_of_one_size_are_in_the_network_at_a_time() -> None:
    seen = []

    def score(windows: NDArray[np.uint8]) -> WindowScores:
        seen.append(windows.shape)
        grey = windows[..., 0].astype(np.float32)
        return grey.max(axis=(1, 2)), grey

    image = noise(1, 900, 1500, 3)
    tiling = seamless((128, 192), 64)
    for large in (image, np.tile(image, (1, 1, 3, 1))):
        seen.clear()
        total, stitched = score_tiled(score, large, tiling=tiling)
        assert np.array_equal(stitched[0], large[0, ..., 0])
        assert total[0] == large[..., 0].max()
        assert {shape[1:] for shape in seen} == {(256, 320, 3)}
        assert max(shape[0] for shape in seen) == PIXELS_AT_ONCE // (256 * 320)
    seen.clear()
    score_tiled(score, noise(1, 1200, 1200, 3), tiling=seamless((1024, 1024), 64))
    assert {shape[0] for shape in seen} == {1}


def test_memory_grows_only_by_the_map_of_the_image() -> None:
    def score(windows: NDArray[np.uint8]) -> WindowScores:
        grey = windows[..., 0].astype(np.float32)
        return grey.max(axis=(1, 2)), grey

    beyond = []
    for width in (2000, 8000):
        image = np.zeros((1, 1000, width, 3), dtype=np.uint8)
        tracemalloc.start()
        score_tiled(score, image, tiling=seamless((256, 256), 64))
        beyond.append(tracemalloc.get_traced_memory()[1] - 4 * 1000 * width)
        tracemalloc.stop()
    assert beyond[1] < 1.1 * beyond[0] < 40e6


@pytest.mark.parametrize("shape", [(100, 100), (64, 64), (65, 200), (20, 90), (1, 1)])
def test_overlapping_windows_have_one_size_and_their_largest_value_counts(shape: tuple[int, int]) -> None:
    calls = []

    def score(windows: NDArray[np.uint8]) -> WindowScores:
        num = len(windows)
        assert windows.shape[1:] == (64, 64, 3)
        maps = np.full((num, 64, 64), sum(calls), dtype=np.float32) + np.arange(num)[:, None, None]
        calls.append(num)
        return maps[:, 0, 0] + 100, maps

    tiling = Tiling("windows", window=[64, 64], step=[48, 40], stride=1)
    image = noise(1, *shape, 3)
    total, stitched = score_tiled(score, image, tiling=tiling)
    starts = [
        sorted({*range(0, max(0, n - 64), step), max(0, n - 64)}) for n, step in zip(shape, (48, 40), strict=True)
    ]
    expected = np.full(shape, -1.0)
    for number, (top, left) in enumerate((y, x) for y in starts[0] for x in starts[1]):
        expected[top : top + 64, left : left + 64] = number  # later windows have larger values
    assert np.array_equal(stitched[0], expected)
    assert total[0] == sum(calls) - 1 + 100
    assert tiling.halo == (0, 0)


def test_nan_values_stay_nan() -> None:
    def score(windows: NDArray[np.uint8]) -> WindowScores:
        maps = np.where(windows[..., 0] == 7, np.nan, 0.0).astype(np.float32)
        return maps.max(axis=(1, 2)), maps

    image = np.zeros((1, 50, 50, 3), dtype=np.uint8)
    image[0, 20, 20] = 7
    for tiling in (seamless((16, 16), 8), Tiling("windows", window=[16, 16], step=[12, 12], stride=1)):
        total, stitched = score_tiled(score, image, tiling=tiling)
        assert np.isnan(total[0])
        assert np.isnan(stitched[0, 20, 20])
