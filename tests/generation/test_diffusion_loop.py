"""Diffusion loop: schedules and steps against the papers and diffusers, inversion, RePaint, and averaged weights."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from numpy.typing import NDArray
from torch import nn

from anomaly.errors import UsageError
from anomaly.generation.base import Options
from anomaly.generation.diffusion import INVERTIBLE, Chain, DiffusionLoop
from anomaly.nn.ema import Ema
from anomaly.samplers._noise_schedule import Schedule, noise_schedule
from tests.generation.exact_denoiser import DEVIATION, MEAN, SIZE, Exact, alphas, rng

# schedules


def test_linear_schedule_equals_the_paper() -> None:
    beta = [1e-4 + (0.02 - 1e-4) * n / 999 for n in range(1000)]
    level, golden = 1.0, []
    for b in beta:
        level *= 1 - b
        golden.append(level)
    assert golden[0] == pytest.approx(0.9999)
    assert golden[-1] == pytest.approx(4.0358e-5, rel=1e-4)
    assert alphas("linear") == pytest.approx(golden, rel=1e-4)


@pytest.mark.parametrize(("name", "offset"), [("cosine", 0.0), ("offset-cosine", 0.008)])
def test_cosine_schedules_equal_the_papers(name: Schedule, offset: float) -> None:
    def f(t: float) -> float:
        return math.cos((t / 100 + offset) / (1 + offset) * math.pi / 2) ** 2

    alpha = alphas(name, 100)
    for t in (0, 1, 30, 50, 90):
        assert alpha[t] == pytest.approx(f(t + 1) / f(0), rel=1e-4)
    assert alpha[-1] / alpha[-2] == pytest.approx(0.001, rel=1e-2)  # the last β is bounded by 0.999
    if name == "cosine":
        assert alpha[49] == pytest.approx(0.5, rel=1e-4)


def test_schedule_refuses_few_steps() -> None:
    with pytest.raises(UsageError, match=r"num_timesteps 5: .*e.g. 1000"):
        noise_schedule("linear", num_timesteps=5)


# single steps


def test_posterior_of_ddpm_by_hand() -> None:
    """Eq. 6 and 7 for ᾱ = (0.9, 0.72): α_2 = 0.8, β_2 = 0.2; x_0 = 0.5, x_2 = 1."""
    chain = Chain([0.9, 0.72])
    variance = (1 - 0.9) / (1 - 0.72) * 0.2  # 0.0714286
    mean = math.sqrt(0.9) * 0.2 / 0.28 * 0.5 + math.sqrt(0.8) * 0.1 / 0.28 * 1.0
    assert chain.sigma(t=1, s=0, eta=1.0) ** 2 == pytest.approx(variance)
    x_t = np.full((1, 1), 1.0, dtype=np.float32)
    eps = (x_t - math.sqrt(0.72) * 0.5) / math.sqrt(0.28)
    drawn = chain.back(x_t, eps, np.zeros_like(x_t), t=1, s=0, eta=1.0, bound=math.inf)
    assert float(drawn[0, 0]) == pytest.approx(mean, rel=1e-6)
    # DDPM's own form of the mean, eq. 11
    assert mean == pytest.approx((1.0 - 0.2 / math.sqrt(0.28) * float(eps[0, 0])) / math.sqrt(0.8), rel=1e-6)


def test_eta_1_has_the_posterior_variance_at_full_steps() -> None:
    levels = alphas("linear", 50)
    chain = Chain(levels)
    timesteps = chain.timesteps(50)
    assert timesteps == list(range(49, -1, -1))
    for t, s in itertools.pairwise([*timesteps, -1]):
        before = levels[s] if s >= 0 else 1.0
        beta = 1 - levels[t] / before
        assert chain.sigma(t=t, s=s, eta=1.0) ** 2 == pytest.approx(beta * (1 - before) / (1 - levels[t]), rel=1e-9)
        assert chain.sigma(t=t, s=s, eta=0.0) == 0


def test_zero_noise_restores_the_image() -> None:
    chain, x = Chain(alphas()), rng().random((2, 3, 4, 4), dtype=np.float32)
    for t in (0, 100, 700):
        at_t = chain.noised(x, np.zeros_like(x), t=t)
        assert np.allclose(at_t, math.sqrt(chain.a(t)) * x)
        assert np.allclose(chain.clean(at_t, np.zeros_like(x), t=t), x, atol=1e-5)
        noise = rng(1).standard_normal(x.shape, dtype=np.float32)
        assert np.allclose(chain.clean(chain.noised(x, noise, t=t), noise, t=t), x, atol=1e-5)
    assert np.array_equal(chain.noised(x, np.ones_like(x), t=-1), x)
    assert np.allclose(
        chain.move(chain.noised(x, noise, t=500), noise, t=500, s=90), chain.noised(x, noise, t=90), atol=1e-5
    )


def test_added_noise_keeps_the_distribution() -> None:
    chain, x = Chain(alphas()), np.full((1, 200000), 0.5, dtype=np.float32)
    low = chain.noised(x, rng(1).standard_normal(x.shape, dtype=np.float32), t=100)
    high = chain.again(low, rng(2).standard_normal(x.shape, dtype=np.float32), t=400, s=100)
    assert high.mean() == pytest.approx(math.sqrt(chain.a(400)) * 0.5, abs=0.01)
    assert high.var() == pytest.approx(1 - chain.a(400), abs=0.01)


@pytest.mark.parametrize("name", ["linear", "offset-cosine"])
@pytest.mark.parametrize("steps", [5, 50])
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_loop_equals_diffusers(name: Schedule, steps: int, eta: float) -> None:
    levels = alphas(name, 100)
    exact = Exact(levels)
    theirs = DDIMScheduler(
        num_train_timesteps=100, trained_betas=noise_schedule(name, num_timesteps=100).betas.numpy(),
        timestep_spacing="trailing",
    )  # fmt: skip
    theirs.set_timesteps(steps)
    draws = rng()
    x = torch.from_numpy(draws.standard_normal((3, 3, SIZE, SIZE), dtype=np.float32))
    for t in theirs.timesteps.tolist():
        eps = torch.from_numpy(exact("denoise", x.numpy(), np.full(3, t)))
        noise = torch.from_numpy(draws.standard_normal(x.shape, dtype=np.float32)) if eta else None
        x = theirs.step(eps, t, x, eta=eta, use_clipped_model_output=True, variance_noise=noise).prev_sample
    ours = exact.sampling_loop().sample(3, rng=rng(), options=Options(steps=steps, eta=eta))
    assert np.abs(ours - ((x.numpy() + 1) / 2).clip(0, 1)).max() < 1e-4


# loop over the exact denoiser


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_samples_have_the_distribution_of_the_data(eta: float) -> None:
    drawn = (
        Exact(alphas(num=200), size=16).sampling_loop().sample(64, rng=rng(), options=Options(steps=200, eta=eta)) * 2
        - 1
    )
    assert drawn.mean() == pytest.approx(MEAN, abs=0.01)
    assert drawn.std() == pytest.approx(DEVIATION, abs=0.02)


@pytest.mark.parametrize(("steps", "largest"), [(20, 0.01), (100, 0.002)])
def test_inversion_and_drawing_are_inverse(steps: int, largest: float) -> None:
    exact, options = Exact(alphas()), Options(steps=steps)
    loop, x = exact.sampling_loop(), exact.images(4)
    z = loop.invert(x, options=options)
    top = loop.chain.a(loop.chain.invertible(steps)[0])
    assert top >= INVERTIBLE
    assert np.abs(loop.draw(z, options=options) - x).max() < largest
    # the exact flow maps quantiles to quantiles
    white = (2 * x - 1 - MEAN) / DEVIATION * math.sqrt(top * DEVIATION**2 + 1 - top) + math.sqrt(top) * MEAN
    assert np.abs(z - white).max() < (0.3 if steps == 20 else 0.06)


def test_interpolation_includes_both_ends() -> None:
    exact, options = Exact(alphas()), Options(steps=50)
    a, b = exact.images(2)
    between = exact.sampling_loop().interpolate(a, b, num=5, options=options)
    assert between.shape == (5, 3, SIZE, SIZE)
    assert np.abs(between[0] - a).max() < 0.005
    assert np.abs(between[-1] - b).max() < 0.005
    assert np.abs(between[2] - a).max() > 0.05
    still = exact.sampling_loop().interpolate(a, a, num=3, options=options)
    assert np.abs(still - a).max() < 0.005


def test_lower_strength_keeps_more_of_the_image() -> None:
    exact = Exact(alphas(), size=16)
    x = exact.images(4)
    errors = [
        np.abs(exact.sampling_loop().reconstruct(x, rng=rng(), options=Options(steps=50, strength=strength)) - x).mean()
        for strength in (0.02, 0.2, 1.0)
    ]
    assert errors[0] < errors[1] < errors[2]
    assert errors[0] < 0.02
    assert errors[2] > 0.1


def test_repaint_keeps_known_pixels_and_draws_matching_unknown_ones() -> None:
    exact = Exact(alphas(num=100), size=16)
    x, mask = exact.images(3), np.zeros((3, 16, 16), dtype=bool)
    mask[:, 4:12, 5:13] = True
    options = Options(steps=10, eta=1.0)
    drawn = exact.sampling_loop().inpaint(np.where(mask[:, None], 0, x), mask, rng=rng(), options=options)
    assert np.array_equal(drawn.transpose(0, 2, 3, 1)[~mask], x.transpose(0, 2, 3, 1)[~mask])
    inside = drawn.transpose(0, 2, 3, 1)[mask] * 2 - 1
    assert inside.mean() == pytest.approx(MEAN, abs=0.1)
    assert inside.std() == pytest.approx(DEVIATION, abs=0.1)
    again = exact.sampling_loop().inpaint(np.where(mask[:, None], 0, x), mask, rng=rng(), options=options)
    assert np.array_equal(drawn, again)


def test_repaint_gives_known_pixels_the_noise_of_the_step() -> None:
    """The network receives known pixels at its own noise level, three times per step except the last."""
    levels = alphas(num=20)
    seen: list[tuple[int, float]] = []
    exact = Exact(levels, size=32)

    def run_function(function: str, *inputs: NDArray[Any]) -> NDArray[Any]:
        x, t = inputs
        seen.append((int(t[0]), float(x[:, :, :, 16:].var())))
        return exact(function, *inputs)

    x, mask = np.full((8, 3, 32, 32), 0.5, dtype=np.float32), np.zeros((8, 32, 32), dtype=bool)
    mask[:, :, :16] = True
    DiffusionLoop(run_function, exact.info).inpaint(x, mask, rng=rng(), options=Options(steps=4, eta=1.0))
    assert [t for t, _ in seen] == [19] * 3 + [14] * 3 + [9] * 3 + [4]
    for t, variance in seen:
        assert variance == pytest.approx(1 - levels[t], rel=0.05)


def test_invalid_options_are_refused() -> None:
    exact = Exact(alphas(num=100))
    loop, x = exact.sampling_loop(), exact.images(2)
    for options, message in (
        (Options(steps=0), "steps 0: .* give 1 to 100"),
        (Options(steps=101), "steps 101: .* give 1 to 100"),
        (Options(eta=-0.1), "eta -0.1: .* from 0 to 1"),
        (Options(eta=1.5), "eta 1.5"),
    ):
        with pytest.raises(UsageError, match=message):
            loop.sample(1, rng=rng(), options=options)
        with pytest.raises(UsageError, match=message):
            loop.reconstruct(x, rng=rng(), options=options)
        with pytest.raises(UsageError, match=message):
            loop.inpaint(x, np.ones((2, SIZE, SIZE), dtype=bool), rng=rng(), options=options)
    for strength in (0.0, -1.0, 1.01):
        with pytest.raises(UsageError, match=rf"strength {strength}: .*e\.g\. 0\.25"):
            loop.reconstruct(x, rng=rng(), options=Options(strength=strength))
    with pytest.raises(UsageError, match=r"mask of shape .*give"):
        loop.inpaint(x, np.ones((2, SIZE), dtype=bool), rng=rng(), options=Options())
    with pytest.raises(UsageError, match="Exact takes"):
        loop.reconstruct(x[:, :, :2], rng=rng(), options=Options())
    with pytest.raises(UsageError, match="1 images of an interpolation"):
        loop.interpolate(x[0], x[1], num=1, options=Options())
    with pytest.raises(UsageError, match="give two of one size"):
        loop.interpolate(x[0], x[1][:, :2], num=3, options=Options())
    assert loop.known_options == {"steps", "eta", "strength"}


# averaged weights


def test_weight_average_equals_its_formula_and_is_part_of_the_state() -> None:
    network = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    network[0].weight.data.fill_(0.0)  # type: ignore[union-attr,operator]
    ema = Ema(network, decay=0.5)
    expected = 0.0
    for n, value in enumerate((1.0, 3.0, -2.0, 5.0), start=1):
        network[0].weight.data.fill_(value)  # type: ignore[union-attr,operator]
        network[1].running_mean.fill_(value)  # type: ignore[union-attr,operator]
        ema.update(network)
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * value
        assert ema.average[0].weight.item() == pytest.approx(expected)  # type: ignore[index,union-attr]
        assert ema.average[1].running_mean.item() == value  # type: ignore[index,union-attr]
    other = Ema(network, decay=0.5)
    other.load_state_dict(ema.state_dict())
    assert int(other.num_updates) == 4
    ema.train()
    assert not ema.average.training
    assert not any(p.requires_grad for p in ema.parameters())
    assert torch.equal(ema(torch.ones(2, 1)), other(torch.ones(2, 1)))
