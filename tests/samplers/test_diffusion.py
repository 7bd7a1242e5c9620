"""DDPM: training, bound, encoding, and detector form."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from anomaly.errors import UsageError
from anomaly.generation.base import Options
from anomaly.nn.denoiser import Denoiser
from anomaly.samplers.ddpm import Ddpm
from anomaly.testing.toy_training import as_batch, draw_defects, draw_parts, train_on
from tests.generation.exact_denoiser import DEVIATION, MEAN, Exact, alphas, rng

TINY: dict[str, Any] = {
    "size": 16, "patch": 1, "widths": (8, 16), "epochs": 20, "batch_size": 8, "smooth": 3, "learning_rate": 3e-3,
    "detect_steps": 1, "detect_strengths": (0.15, 0.3), "latent_steps": 5, "bound_steps": 6,
}  # fmt: skip


def build(**options: Any) -> Ddpm:
    torch.manual_seed(0)
    return Ddpm(**(TINY | options))


@pytest.fixture(scope="module")
def trained() -> Ddpm:
    sampler = build()
    train_on(sampler, draw_parts(24, seed=24))
    return sampler


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 15}, "size 15 .*multiple of 2, e.g. 14"),
        ({"widths": (6, 16)}, r"widths \[6, 16\]: .*multiple of 4"),
        ({"widths": ()}, "widths"),
        ({"patch": 0}, "patch 0"),
        ({"smooth": 4}, "smooth 4"),
        ({"detect_strengths": (1.5,)}, "strength 1.5"),
        ({"detect_strengths": ()}, "detect_strengths"),
        ({"detect_steps": 300}, "steps 300: .*give 1 to 150"),
        ({"bound_steps": 1}, "bound_steps 1"),
    ],
)
def test_invalid_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build(**options)


@pytest.mark.parametrize("weighting", ["noise", "velocity"])
def test_loss_is_the_error_at_the_drawn_steps(weighting: str) -> None:
    sampler = build(weighting=weighting)
    logged: dict[str, float] = {}
    sampler.log = lambda name, value, **_: logged.__setitem__(name, value.item())  # type: ignore[method-assign,assignment]
    batch = as_batch(draw_parts(3, seed=1), name="")
    draws = torch.Generator().manual_seed(0)
    noise, t = torch.randn((3, 3, 16, 16), generator=draws), torch.randint(1000, (3,), generator=draws)
    a = torch.tensor(sampler.alphas_cumprod)[t].view(-1, 1, 1, 1)
    x_t = a.sqrt() * (2 * sampler.preprocessed(batch) - 1) + (1 - a).sqrt() * noise
    squares = (sampler.network(x_t, t) - noise) ** 2
    expected = float((squares if weighting == "noise" else squares / a).mean().detach())
    assert float(sampler.training_step(batch, 0).detach()) == pytest.approx(expected, rel=1e-4)
    assert logged == {weighting: pytest.approx(expected, rel=1e-4)}


@pytest.mark.slow
def test_training_lowers_the_error_of_the_averaged_network(trained: Ddpm) -> None:
    x = 2 * trained.preprocess(draw_parts(8, seed=900)) - 1
    noise, t = torch.randn(x.shape, generator=torch.Generator().manual_seed(3)), torch.arange(8) * 120 + 50
    x_t = trained._scheduler.add_noise(x, noise, t)
    with torch.no_grad():
        errors = [
            float(sampler.network.errors(sampler.denoise(x_t, t), noise, t).mean())
            for sampler in (build().eval(), trained)
        ]
    assert errors[1] < 0.5 * errors[0]
    assert int(trained.ema.num_updates) == 60
    for name, value in trained.ema.average.state_dict().items():
        assert not torch.equal(value, trained.network.state_dict()[name])


class _Same(nn.Module):
    def forward(self, x: Tensor, t: Tensor, *, return_dict: bool) -> tuple[Tensor]:
        return (x,)


def test_network_converts_velocity_to_noise_and_restores_patches() -> None:
    network = Denoiser(size=8, in_channels=3, out_channels=3, widths=(4, 8), patch=2, alphas_cumprod=[0.36, 0.64])
    network.network = _Same()
    x = torch.rand(2, 3, 8, 8)
    predicted = network(x, torch.tensor([0, 1]))
    assert torch.allclose(predicted[0], 0.8 * x[0] + 0.6 * x[0])
    assert torch.allclose(predicted[1], 0.6 * x[1] + 0.8 * x[1])
    noise = torch.rand(2, 3, 8, 8)
    assert torch.allclose(
        network.errors(predicted, noise, torch.tensor([0, 1]))[0], (predicted[0] - noise[0]) ** 2 / 0.36
    )


def test_sampling_loop_is_reproducible_and_gives_images(trained: Ddpm) -> None:
    loop, options = trained.sampling_loop(), Options(steps=5, eta=0.5)
    one, two, other = (loop.sample(3, rng=rng(seed), options=options) for seed in (0, 0, 1))
    assert np.array_equal(one, two)
    assert not np.array_equal(one, other)
    assert one.shape == (3, 3, 16, 16)
    assert one.dtype == np.float32
    assert one.min() >= 0
    assert one.max() <= 1


@pytest.mark.slow
@torch.no_grad()
def test_decode_inverts_encode(trained: Ddpm) -> None:
    sampler = build(latent_steps=50)
    sampler.load_state_dict(trained.state_dict())
    sampler.eval()
    x = sampler.preprocess(draw_parts(4, seed=70))
    z = sampler.encode(x)
    assert z.shape == (4, *sampler.latent_shape)
    assert float((sampler.decode(z) - x).abs().mean()) < 0.05
    options = Options(steps=50)
    inverted = sampler.sampling_loop().invert(x.numpy(), options=options)
    assert np.abs(sampler.sampling_loop().draw(inverted, options=options) - x.numpy()).mean() < 0.03


class _ExactNetwork(nn.Module):
    """`Exact` in place of the averaged network."""

    def __init__(self, levels: list[float]) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        a = torch.tensor(self.levels, dtype=torch.float32)[t].view(-1, 1, 1, 1)
        return (1 - a).sqrt() * (x - a.sqrt() * MEAN) / (a * DEVIATION**2 + 1 - a)


@torch.no_grad()
def test_bound_is_slightly_below_the_exact_density() -> None:
    """With the best denoiser the bound of 1000 linear steps is close to log p, and its stratified draws are unbiased."""
    sampler = build(schedule="linear")
    sampler.ema.average = _ExactNetwork(sampler.alphas_cumprod)
    x = torch.from_numpy(Exact(sampler.alphas_cumprod, size=16).images(16))
    scaled = (2 * x - 1 - MEAN) / DEVIATION
    log_p = (-0.5 * scaled**2 - math.log(DEVIATION * math.sqrt(2 * math.pi)) + math.log(2)).flatten(1).sum(dim=1)
    # every term of the sum, with one noise draw per term
    draws = torch.Generator().manual_seed(5)
    levels = np.array([1.0, *sampler.alphas_cumprod])
    kept = levels[1:] / levels[:-1]
    weights = (1 - kept[1:]) / (2 * kept[1:] * (1 - levels[2:]))  # eq. 12 with sigma² = β
    sampler.bound_at = torch.arange(1000)
    sampler.bound_weights = torch.tensor([1 / (2 * kept[0]), *weights])
    noise = torch.randn((1000, 3, 16, 16), generator=draws)
    sampler.bound_noise = (
        noise / noise.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
    )  # its randomness would hide the gap
    whole = sampler.log_prob(x)
    gap = float((log_p - whole).mean()) / x[0].numel()
    # expected gap: eq. 5 of the best denoiser minus the entropy of the data, both in closed form
    a, before, beta = levels[1:], levels[:-1], 1 - kept
    ratio = (1 - before[1:]) / (1 - a[1:])
    error = a * DEVIATION**2 / (a * DEVIATION**2 + 1 - a)
    bound = 0.5 * math.log(2 * math.pi * beta[0]) + 0.5 * (ratio - 1 - np.log(ratio)).sum()
    bound += (beta / (2 * kept * (1 - a)) * error).sum()
    bound += 0.5 * (a[-1] * (DEVIATION**2 + MEAN**2) - a[-1] - math.log(1 - a[-1]))
    expected = bound - 0.5 * math.log(2 * math.pi * math.e * DEVIATION**2)
    assert 0 < expected < 0.005  # nats per value
    assert gap == pytest.approx(expected, abs=0.01)
    for name in ("bound_at", "bound_weights", "bound_noise"):
        assert torch.isfinite(getattr(sampler, name)).all()
    estimates = []
    for seed in range(20):
        drawn = build(schedule="linear", bound_steps=16, seed=seed)
        drawn.ema.average = sampler.ema.average
        estimates.append(float(drawn.log_prob(x).mean()))
    mean, error = np.mean(estimates), np.std(estimates) / math.sqrt(20)
    assert abs(mean - float(whole.mean())) < 4 * error + 0.01 * x[0].numel()


@pytest.mark.slow
def test_weights_of_the_strata_equal_the_whole_sum() -> None:
    sampler = build(schedule="linear", bound_steps=16)
    assert int(sampler.bound_at[0]) == 0
    assert 10 <= len(sampler.bound_at) == len(sampler.bound_noise) <= 16
    assert sampler.bound_at[1:].tolist() == sorted(set(sampler.bound_at[1:].tolist()))
    levels = np.array([1.0, *sampler.alphas_cumprod])
    kept = levels[1:] / levels[:-1]
    whole = ((1 - kept[1:]) / (2 * kept[1:] * (1 - levels[2:]))).sum()
    drawn = [float(build(schedule="linear", bound_steps=16, seed=seed).bound_weights[1:].sum()) for seed in range(30)]
    assert np.mean(drawn) == pytest.approx(whole, abs=4 * np.std(drawn) / math.sqrt(30))


@torch.no_grad()
def test_anomaly_map_is_the_error_of_partial_diffusion(trained: Ddpm) -> None:
    sampler = build(detect_strengths=(0.2, 0.4), detect_steps=2).eval()
    sampler.load_state_dict(trained.state_dict())
    x = sampler.preprocess(draw_parts(2, seed=80))
    expected = torch.zeros(2, 16, 16)
    for noise, timesteps in zip(sampler.detect_noise, ((199, 99), (399, 199)), strict=True):
        a = [*(sampler.alphas_cumprod[t] for t in timesteps), 1.0]
        state = math.sqrt(a[0]) * (2 * x - 1) + math.sqrt(1 - a[0]) * noise
        for n, t in enumerate(timesteps):
            eps = sampler.denoise(state, torch.full((2,), t))
            x_0 = (state - math.sqrt(1 - a[n]) * eps) / math.sqrt(a[n])
            state = math.sqrt(a[n + 1]) * x_0 + math.sqrt(1 - a[n + 1]) * eps
        expected += (state.clamp(-1, 1) - (2 * x - 1)).abs().mean(dim=1) / 2
    assert torch.allclose(sampler.anomaly_map(x), expected, atol=1e-5)


@torch.no_grad()
def test_defects_score_higher_than_good_images(trained: Ddpm) -> None:
    good = draw_parts(8, seed=500)
    defect = draw_defects(good)
    detector = trained.as_detector().eval()
    assert float(detector(defect).score.min()) > float(detector(good).score.max())
    anomaly_map = trained.anomaly_map(trained.preprocess(defect))
    assert anomaly_map.shape == (8, 16, 16)
    usual = trained.anomaly_map(trained.preprocess(good))
    assert float(anomaly_map[:, 6:11, 7:12].mean()) > 1.2 * float(usual[:, 6:11, 7:12].mean())


def test_loss_uses_only_the_region_of_interest() -> None:
    losses = []
    for outside in (0, 255):
        sampler = build()
        mask = torch.zeros(72, 88, dtype=torch.bool)
        mask[10:60, 10:70] = True
        sampler.preprocess.set_roi(mask)
        sampler.log = lambda *_, **__: None  # type: ignore[method-assign,assignment]
        image = torch.where(mask[None, ..., None], draw_parts(4, seed=2), torch.tensor(outside, dtype=torch.uint8))
        losses.append(sampler.training_step(as_batch(image, name=""), 0).item())
    assert losses[0] == losses[1]


def test_info_and_functions_serve_the_sampling_loop(trained: Ddpm) -> None:
    info = trained.info()
    assert info.settings["alphas_cumprod"] == pytest.approx(alphas())
    assert set(trained.functions()) == {"denoise"}
    assert trained.supports("anomaly_map")
    assert not trained.supports("attribute")
    with pytest.raises(UsageError, match=r"Ddpm does not support attribute: .*white noise"):
        trained.sampling_loop().attribute(
            *[np.zeros((1, 3, 16, 16), dtype=np.float32)] * 3, strength=1.0, options=Options()
        )
    assert dataclasses.asdict(info)["latent_shape"] == [3, 16, 16]
