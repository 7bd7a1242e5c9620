"""PixelCNN: context of each value, probabilities that sum to one, matching samples, and detector form."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from anomaly.errors import UsageError
from anomaly.generation.autoregressive import draw_class
from anomaly.generation.base import Options
from anomaly.nn.masked_convolution import GatedMaskedNetwork
from anomaly.samplers.pixelcnn import PixelCnn
from anomaly.testing.toy_training import draw_parts, region_of_interest, train_on

TINY: dict[str, Any] = {
    "size": 16, "levels": 8, "width": 12, "num_layers": 2, "kernel": 5, "place": 4, "epochs": 4, "batch_size": 4,
    "learning_rate": 1e-2,
}  # fmt: skip


def build(*, std: float = 0.3, **options: Any) -> PixelCnn:
    """A network with large weights, so that every visible value has an influence."""
    torch.manual_seed(0)
    sampler = PixelCnn(**(TINY | options))
    for parameter in sampler.parameters():
        nn.init.normal_(parameter, std=std)
    return sampler.eval()


def binary() -> tuple[PixelCnn, Tensor, Tensor]:
    """A network for 2×2 pixels of two levels, all its 4096 images, and their probabilities."""
    sampler = build(size=2, levels=2, width=6, num_layers=2, kernel=3, std=0.6)
    images = torch.tensor(list(itertools.product((0.25, 0.75), repeat=12))).view(-1, 3, 2, 2)
    with torch.no_grad():
        return sampler, images, sampler.log_prob(images).double().exp()


def test_probabilities_of_all_images_sum_to_one() -> None:
    _, images, p = binary()
    assert len(images) == 4096
    assert p.sum().item() == pytest.approx(1, abs=1e-5)
    assert p.max() > 4 * p.min()


@pytest.mark.parametrize(("num_groups", "kernel", "num_layers"), [(3, 3, 3), (3, 5, 2), (1, 3, 3)])
def test_each_value_depends_on_all_earlier_values_within_reach_and_no_others(
    num_groups: int, kernel: int, num_layers: int
) -> None:
    torch.manual_seed(0)
    side = 7
    network = GatedMaskedNetwork(
        (side, side), num_groups=num_groups, inputs=1, num_classes=3, width=48, num_layers=num_layers, kernel=kernel,
        place=2,
    )  # fmt: skip
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.15)
    network = network.double()
    weight = torch.randn(3, dtype=torch.float64)[:, None, None]
    x = torch.randn(1, num_groups, side, side, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda given: (network(given) * weight).sum(dim=2)[0], x)
    seen = (jacobian[:, :, :, 0] != 0).numpy()  # (group, row, column) of the output, then of the input
    for g, r, c in itertools.product(range(num_groups), range(side), range(side)):
        for g2, r2, c2 in itertools.product(range(num_groups), range(side), range(side)):
            earlier = (r2, c2, g2) < (r, c, g)
            if not earlier:
                assert not seen[g, r, c, g2, r2, c2], (g, r, c, g2, r2, c2)
            elif r - r2 <= network.reach and abs(c - c2) <= network.reach:
                assert seen[g, r, c, g2, r2, c2], (g, r, c, g2, r2, c2)


@torch.no_grad()
def test_log_prob_is_the_sum_over_all_values_and_the_map_its_shares() -> None:
    sampler = build()
    x = torch.rand(3, 3, 16, 16)
    level = (x * 8).floor().long()
    p = torch.softmax(sampler.logits((level + 0.5) / 8).double(), dim=2)
    expected = p.gather(2, level[:, :, None])[:, :, 0].log()
    assert torch.allclose(sampler.anomaly_map(x).double(), -expected.sum(dim=1), atol=1e-4)
    assert torch.allclose(sampler.log_prob(x).double(), expected.sum(dim=(1, 2, 3)), rtol=1e-5)
    assert torch.equal(sampler.log_prob(x), sampler.log_prob(sampler.quantised(x)))


@torch.no_grad()
def test_all_eight_bit_values_are_separate_levels() -> None:
    sampler = build(size=16, levels=256)
    x = (torch.arange(256, dtype=torch.float32) / 255).view(1, 1, 16, 16).expand(1, 3, -1, -1)
    assert len(sampler.quantised(x).unique()) == 256


@torch.no_grad()
def test_logits_of_windows_equal_those_of_the_whole_image() -> None:
    sampler = build()
    x = torch.rand(2, 3, 16, 16)
    whole = sampler.logits(x)
    seen = sampler.network.reach + 1
    assert seen == 5
    for row, column in itertools.product((0, 1, 4, 5, 11, 15), repeat=2):
        top, left = max(0, row + 1 - seen), max(0, column + 1 - seen)
        links = sampler.links(x[:, :, top : top + seen], torch.full((2,), top))[:, :, row - top, None]
        given = x[:, :, row, None, left : left + seen]
        logits = sampler.logits_row(given, links[..., left : left + seen])
        assert torch.allclose(logits[..., 0, column - left], whole[..., row, column], atol=1e-4)


def test_samples_are_as_frequent_as_their_probability() -> None:
    sampler, images, p = binary()
    drawn = sampler.sampling_loop().sample(20_000, rng=np.random.default_rng(0), options=Options())
    place = (drawn.reshape(len(drawn), 12) > 0.5) @ (1 << np.arange(11, -1, -1))
    frequency = np.bincount(place, minlength=4096) / len(drawn)
    for value in range(12):  # frequencies of each value and each pair of neighbours
        on = images.flatten(1).numpy()[:, value] > 0.5
        assert frequency[on].sum() == pytest.approx(p.numpy()[on].sum(), abs=0.015)
        both = on & (images.flatten(1).numpy()[:, value - 1] > 0.5)
        assert frequency[both].sum() == pytest.approx(p.numpy()[both].sum(), abs=0.015)


def test_inpainting_keeps_known_pixels_and_draws_the_others_given_earlier_ones() -> None:
    sampler, images, p = binary()
    x = np.full((20_000, 3, 2, 2), 0.7, dtype=np.float32)  # between two levels
    x[:, 1] = 0.1
    mask = np.zeros((20_000, 2, 2), dtype=np.bool_)
    mask[:, 1, 1] = True  # the last pixel, with all others before it
    given = sampler.sampling_loop().inpaint(x, mask, rng=np.random.default_rng(0), options=Options())
    assert np.array_equal(given[:, :, ~mask[0]], x[:, :, ~mask[0]])
    fits = (images[:, :, ~mask[0]] > 0.5).numpy() == (x[0][:, ~mask[0]] > 0.5)
    chance = p.numpy() * fits.all(axis=(1, 2))
    red = (images[:, 0, 1, 1] > 0.5).numpy()
    assert (given[:, 0, 1, 1] > 0.5).mean() == pytest.approx(chance[red].sum() / chance.sum(), abs=0.015)
    assert 0.02 < chance[red].sum() / chance.sum() < 0.98


def test_sampling_depends_on_seed_and_temperature() -> None:
    loop = build(size=5).sampling_loop()

    def draw(seed: int, temperature: float = 1.0) -> Any:
        return loop.sample(2, rng=np.random.default_rng(seed), options=Options(temperature=temperature))

    first = draw(0)
    assert first.shape == (2, 3, 5, 5)
    assert first.dtype == np.float32
    assert np.array_equal(first, draw(0))
    assert not np.array_equal(first, draw(1))
    assert np.array_equal(draw(0, 1e-6), draw(1, 1e-6))  # always the most probable value
    with pytest.raises(UsageError, match=r"temperature 0\.0: .* e\.g\. 1"):
        draw(0, 0.0)


def test_classes_are_drawn_from_their_softmax() -> None:
    logits = np.tile(np.array([[0.0, 1.0, -800.0, 2.0]]), (40_000, 1))
    for temperature in (1.0, 0.5):
        share = np.bincount(draw_class(logits, rng=np.random.default_rng(0), temperature=temperature), minlength=4)
        expected = np.exp(logits[0] / temperature)
        assert share / 40_000 == pytest.approx(expected / expected.sum(), abs=0.01)
        assert share[2] == 0


@torch.no_grad()
def test_detector_map_equals_the_exact_map_on_levels_and_is_continuous_between_them() -> None:
    sampler = build(smooth=1)
    x = sampler.quantised(torch.rand(2, 3, 16, 16))
    assert torch.allclose(sampler.smoothed_map(x), sampler.anomaly_map(x), atol=1e-4)
    below, above = x.clone(), x.clone()
    below[0, 1, 5, 5], above[0, 1, 5, 5] = 0.5 - 1e-6, 0.5 + 1e-6  # 0.5 is the border between two levels
    assert (sampler.anomaly_map(below) - sampler.anomaly_map(above)).abs().max() > 1e-2
    assert torch.allclose(sampler.smoothed_map(below), sampler.smoothed_map(above), atol=1e-3)


@torch.no_grad()
def test_only_the_region_of_interest_is_drawn_and_scored() -> None:
    sampler = build()
    sampler.preprocess.set_roi(region_of_interest())
    outside = ~sampler.preprocess.roi
    drawn = sampler.sampling_loop().sample(2, rng=np.random.default_rng(0), options=Options())
    assert (drawn[:, :, outside.numpy()] == 0).all()
    assert (drawn[:, :, ~outside.numpy()] > 0).all()
    x = sampler.preprocess(draw_parts(2, seed=0))
    assert (sampler.anomaly_map(x)[:, outside] == 0).all()
    assert torch.allclose(sampler.log_prob(x), -sampler.anomaly_map(x).sum(dim=(1, 2)))


@pytest.mark.slow
def test_training_learns_the_dependence_on_earlier_values() -> None:
    def plain(num: int, *, seed: int) -> Tensor:
        """Images of one random grey value each; a single pixel has no information."""
        grey = torch.randint(0, 256, (num, 1, 1, 1), generator=torch.Generator().manual_seed(seed))
        return grey.to(torch.uint8).expand(-1, 20, 20, 3).contiguous()

    torch.manual_seed(0)
    options = {"size": 8, "levels": 4, "epochs": 18, "noise": 0.0, "score": "mean", "smooth": 1, "standardise": False}
    sampler = PixelCnn(**(TINY | options))
    train_on(sampler, plain(40, seed=0))
    with torch.no_grad():
        x = sampler.quantised(sampler.preprocess(plain(16, seed=1)))
        bits = -sampler.log_prob(x).mean().item() / (3 * 8 * 8 * math.log(2))
        assert bits < 0.5 * math.log2(4)
        assert torch.allclose(sampler.as_detector().anomaly(x).score, -sampler.log_prob(x) / 64, rtol=1e-4)
        x[:, :, 4:6, 4:6] = sampler.quantised(1 - x[:, :, 4:6, 4:6])
        assert (
            sampler.anomaly_map(x)[:, 4:6, 4:6].mean(dim=(1, 2)) > 2 * sampler.anomaly_map(x)[:, :4].mean(dim=(1, 2))
        ).all()


@pytest.mark.parametrize("ability", ["encode", "decode", "reconstruct", "interpolate", "attribute"])
def test_unsupported_abilities_have_a_reason(ability: str) -> None:
    assert not PixelCnn.supports(ability)
    assert "no latent" in PixelCnn.unsupported[ability]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("size", 1),
        ("levels", 1),
        ("levels", 257),
        ("width", 16),
        ("width", 0),
        ("kernel", 4),
        ("kernel", 1),
        ("smooth", 4),
    ],
)
def test_invalid_options_are_refused(option: str, value: int) -> None:
    with pytest.raises(UsageError, match=f"{option} {value}: .*, e.g. "):
        PixelCnn(**{option: value})
