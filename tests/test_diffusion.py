"""DDPM and DDIM: schedules and steps against the papers' formulas and diffusers, inversion, bound, RePaint, the detector."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from numpy.typing import NDArray
from torch import Tensor, nn

from anomaly.errors import UsageError
from anomaly.nn.denoiser import Denoiser
from anomaly.nn.ema import Ema
from anomaly.samplers.ddpm import Ddpm
from anomaly.samplers.noise_schedule import Schedule, noise_schedule
from anomaly.sampling.diffusion import INVERTIBLE, Chain, DiffusionProcess
from anomaly.sampling.process import Array, Facts, Options
from anomaly.trial import as_batch, draw_defects, draw_parts, train_on

TINY: dict[str, Any] = {
    "size": 16, "patch": 1, "widths": (8, 16), "epochs": 20, "batch_size": 8, "smooth": 3, "learning_rate": 3e-3,
    "detect_steps": 1, "detect_strengths": (0.15, 0.3), "latent_steps": 5, "bound_steps": 6,
}  # fmt: skip
SIZE = 4
MEAN, DEVIATION = 0.2, 0.3
"""Of the pixels in [-1, 1] of made-up images that are white noise: their best denoiser is known"""


def alphas(name: Schedule = "offset-cosine", num: int = 1000) -> list[float]:
    kept: list[float] = noise_schedule(name, num_timesteps=num).alphas_cumprod.tolist()
    return kept


class Exact:
    """Stands in for the network: the best denoiser of N(MEAN, DEVIATION²) pixels, E[eps | x_t]."""

    def __init__(self, levels: list[float], *, size: int = SIZE) -> None:
        self.levels = np.array(levels)
        self.facts = Facts("Exact", [size, size], [3, size, size], {}, {"alphas_cumprod": levels})

    def __call__(self, function: str, *inputs: NDArray[Any]) -> NDArray[Any]:
        assert function == "denoise"
        x, t = inputs
        assert x.dtype == np.float32
        assert t.dtype == np.int64
        assert t.shape == (len(x),)
        a = self.levels[t].reshape(-1, 1, 1, 1)
        eps = np.sqrt(1 - a) * (x - np.sqrt(a) * MEAN) / (a * DEVIATION**2 + 1 - a)
        return eps.astype(np.float32)

    def process(self) -> DiffusionProcess:
        return DiffusionProcess(self, self.facts)

    def images(self, num: int) -> Array:
        drawn = np.random.default_rng(7).normal(MEAN, DEVIATION, (num, 3, *self.facts.size))
        return ((drawn.clip(-0.95, 0.95) + 1) / 2).astype(np.float32)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# schedules


def test_linear_schedule_is_the_papers() -> None:
    beta = [1e-4 + (0.02 - 1e-4) * n / 999 for n in range(1000)]
    level, golden = 1.0, []
    for b in beta:
        level *= 1 - b
        golden.append(level)
    assert golden[0] == pytest.approx(0.9999)
    assert golden[-1] == pytest.approx(4.0358e-5, rel=1e-4)
    assert alphas("linear") == pytest.approx(golden, rel=1e-4)


@pytest.mark.parametrize(("name", "offset"), [("cosine", 0.0), ("offset-cosine", 0.008)])
def test_cosine_schedules_are_the_papers(name: Schedule, offset: float) -> None:
    def f(t: float) -> float:
        return math.cos((t / 100 + offset) / (1 + offset) * math.pi / 2) ** 2

    found = alphas(name, 100)
    for t in (0, 1, 30, 50, 90):
        assert found[t] == pytest.approx(f(t + 1) / f(0), rel=1e-4)
    assert found[-1] / found[-2] == pytest.approx(0.001, rel=1e-2)  # the last β is held at 0.999
    if name == "cosine":
        assert found[49] == pytest.approx(0.5, rel=1e-4)


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


def test_eta_1_has_the_posteriors_variance_at_full_steps() -> None:
    levels = alphas("linear", 50)
    chain = Chain(levels)
    timesteps = chain.timesteps(50)
    assert timesteps == list(range(49, -1, -1))
    for t, s in itertools.pairwise([*timesteps, -1]):
        before = levels[s] if s >= 0 else 1.0
        beta = 1 - levels[t] / before
        assert chain.sigma(t=t, s=s, eta=1.0) ** 2 == pytest.approx(beta * (1 - before) / (1 - levels[t]), rel=1e-9)
        assert chain.sigma(t=t, s=s, eta=0.0) == 0


def test_zero_noise_gives_the_image_back() -> None:
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


def test_noising_again_keeps_the_distribution() -> None:
    chain, x = Chain(alphas()), np.full((1, 200000), 0.5, dtype=np.float32)
    low = chain.noised(x, rng(1).standard_normal(x.shape, dtype=np.float32), t=100)
    high = chain.again(low, rng(2).standard_normal(x.shape, dtype=np.float32), t=400, s=100)
    assert high.mean() == pytest.approx(math.sqrt(chain.a(400)) * 0.5, abs=0.01)
    assert high.var() == pytest.approx(1 - chain.a(400), abs=0.01)


@pytest.mark.parametrize("name", ["linear", "offset-cosine"])
@pytest.mark.parametrize("steps", [5, 50])
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_loop_is_that_of_diffusers(name: Schedule, steps: int, eta: float) -> None:
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
    ours = exact.process().sample(3, rng=rng(), options=Options(steps=steps, eta=eta))
    assert np.abs(ours - ((x.numpy() + 1) / 2).clip(0, 1)).max() < 1e-4


# the process over the exact denoiser


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_samples_have_the_distribution_of_the_data(eta: float) -> None:
    drawn = Exact(alphas(num=200), size=16).process().sample(64, rng=rng(), options=Options(steps=200, eta=eta)) * 2 - 1
    assert drawn.mean() == pytest.approx(MEAN, abs=0.01)
    assert drawn.std() == pytest.approx(DEVIATION, abs=0.02)


@pytest.mark.parametrize(("steps", "largest"), [(20, 0.01), (100, 0.002)])
def test_inversion_and_the_way_back_meet(steps: int, largest: float) -> None:
    exact, options = Exact(alphas()), Options(steps=steps)
    process, x = exact.process(), exact.images(4)
    z = process.invert(x, options=options)
    top = process.chain.a(process.chain.invertible(steps)[0])
    assert top >= INVERTIBLE
    assert np.abs(process.draw(z, options=options) - x).max() < largest
    # the exact flow maps quantiles to quantiles
    white = (2 * x - 1 - MEAN) / DEVIATION * math.sqrt(top * DEVIATION**2 + 1 - top) + math.sqrt(top) * MEAN
    assert np.abs(z - white).max() < (0.3 if steps == 20 else 0.06)


def test_interpolation_has_both_ends() -> None:
    exact, options = Exact(alphas()), Options(steps=50)
    a, b = exact.images(2)
    way = exact.process().interpolate(a, b, num=5, options=options)
    assert way.shape == (5, 3, SIZE, SIZE)
    assert np.abs(way[0] - a).max() < 0.005
    assert np.abs(way[-1] - b).max() < 0.005
    assert np.abs(way[2] - a).max() > 0.05
    still = exact.process().interpolate(a, a, num=3, options=options)
    assert np.abs(still - a).max() < 0.005


def test_reconstruction_keeps_more_of_the_image_at_less_strength() -> None:
    exact = Exact(alphas(), size=16)
    x = exact.images(4)
    errors = [
        np.abs(exact.process().reconstruct(x, rng=rng(), options=Options(steps=50, strength=strength)) - x).mean()
        for strength in (0.02, 0.2, 1.0)
    ]
    assert errors[0] < errors[1] < errors[2]
    assert errors[0] < 0.02
    assert errors[2] > 0.1


def test_repaint_leaves_known_pixels_and_fits_unknown_ones() -> None:
    exact = Exact(alphas(num=100), size=16)
    x, mask = exact.images(3), np.zeros((3, 16, 16), dtype=bool)
    mask[:, 4:12, 5:13] = True
    options = Options(steps=10, eta=1.0)
    drawn = exact.process().inpaint(np.where(mask[:, None], 0, x), mask, rng=rng(), options=options)
    assert np.array_equal(drawn.transpose(0, 2, 3, 1)[~mask], x.transpose(0, 2, 3, 1)[~mask])
    inside = drawn.transpose(0, 2, 3, 1)[mask] * 2 - 1
    assert inside.mean() == pytest.approx(MEAN, abs=0.1)
    assert inside.std() == pytest.approx(DEVIATION, abs=0.1)
    again = exact.process().inpaint(np.where(mask[:, None], 0, x), mask, rng=rng(), options=options)
    assert np.array_equal(drawn, again)


def test_repaint_noises_known_pixels_to_the_step_before() -> None:
    """The network sees known pixels at the noise level of its own step, each step three times but the last."""
    levels = alphas(num=20)
    seen: list[tuple[int, float]] = []
    exact = Exact(levels, size=32)

    def call(function: str, *inputs: NDArray[Any]) -> NDArray[Any]:
        x, t = inputs
        seen.append((int(t[0]), float(x[:, :, :, 16:].var())))
        return exact(function, *inputs)

    x, mask = np.full((8, 3, 32, 32), 0.5, dtype=np.float32), np.zeros((8, 32, 32), dtype=bool)
    mask[:, :, :16] = True
    DiffusionProcess(call, exact.facts).inpaint(x, mask, rng=rng(), options=Options(steps=4, eta=1.0))
    assert [t for t, _ in seen] == [19] * 3 + [14] * 3 + [9] * 3 + [4]
    for t, variance in seen:
        assert variance == pytest.approx(1 - levels[t], rel=0.05)


def test_process_refuses_what_it_cannot_do() -> None:
    exact = Exact(alphas(num=100))
    process, x = exact.process(), exact.images(2)
    for options, message in (
        (Options(steps=0), "steps 0: .* give 1 to 100"),
        (Options(steps=101), "steps 101: .* give 1 to 100"),
        (Options(eta=-0.1), "eta -0.1: .* from 0 to 1"),
        (Options(eta=1.5), "eta 1.5"),
    ):
        with pytest.raises(UsageError, match=message):
            process.sample(1, rng=rng(), options=options)
        with pytest.raises(UsageError, match=message):
            process.reconstruct(x, rng=rng(), options=options)
        with pytest.raises(UsageError, match=message):
            process.inpaint(x, np.ones((2, SIZE, SIZE), dtype=bool), rng=rng(), options=options)
    for strength in (0.0, -1.0, 1.01):
        with pytest.raises(UsageError, match=rf"strength {strength}: .*e\.g\. 0\.25"):
            process.reconstruct(x, rng=rng(), options=Options(strength=strength))
    with pytest.raises(UsageError, match=r"the mask is .*give"):
        process.inpaint(x, np.ones((2, SIZE), dtype=bool), rng=rng(), options=Options())
    with pytest.raises(UsageError, match="Exact takes"):
        process.reconstruct(x[:, :, :2], rng=rng(), options=Options())
    with pytest.raises(UsageError, match="1 images of an interpolation"):
        process.interpolate(x[0], x[1], num=1, options=Options())
    with pytest.raises(UsageError, match="give two of one size"):
        process.interpolate(x[0], x[1][:, :2], num=3, options=Options())
    assert process.knows == {"steps", "eta", "strength"}


# averaged weights


def test_average_follows_by_hand_and_travels_in_the_state() -> None:
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


# the sampler


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
def test_ddpm_refuses_options_it_cannot_have(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build(**options)


@pytest.mark.parametrize("weighting", ["noise", "velocity"])
def test_loss_is_the_noise_at_the_drawn_steps(weighting: str) -> None:
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


def test_training_lowers_the_averaged_networks_error(trained: Ddpm) -> None:
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


def test_noise_is_that_of_the_velocity_and_patches_come_back() -> None:
    network = Denoiser(size=8, in_channels=3, out_channels=3, widths=(4, 8), patch=2, alphas_cumprod=[0.36, 0.64])
    network.network = _Same()
    x = torch.rand(2, 3, 8, 8)
    said = network(x, torch.tensor([0, 1]))
    assert torch.allclose(said[0], 0.8 * x[0] + 0.6 * x[0])
    assert torch.allclose(said[1], 0.6 * x[1] + 0.8 * x[1])
    noise = torch.rand(2, 3, 8, 8)
    assert torch.allclose(network.errors(said, noise, torch.tensor([0, 1]))[0], (said[0] - noise[0]) ** 2 / 0.36)


def test_process_is_reproducible_and_keeps_to_images(trained: Ddpm) -> None:
    process, options = trained.drawing(), Options(steps=5, eta=0.5)
    one, two, other = (process.sample(3, rng=rng(seed), options=options) for seed in (0, 0, 1))
    assert np.array_equal(one, two)
    assert not np.array_equal(one, other)
    assert one.shape == (3, 3, 16, 16)
    assert one.dtype == np.float32
    assert one.min() >= 0
    assert one.max() <= 1


@torch.no_grad()
def test_encode_and_decode_meet(trained: Ddpm) -> None:
    sampler = build(latent_steps=50)
    sampler.load_state_dict(trained.state_dict())
    sampler.eval()
    x = sampler.preprocess(draw_parts(4, seed=70))
    z = sampler.encode(x)
    assert z.shape == (4, *sampler.latent_shape)
    assert float((sampler.decode(z) - x).abs().mean()) < 0.05
    options = Options(steps=50)
    inverted = sampler.drawing().invert(x.numpy(), options=options)
    assert np.abs(sampler.drawing().draw(inverted, options=options) - x.numpy()).mean() < 0.03


class _ExactNetwork(nn.Module):
    """`Exact` as an averaged network."""

    def __init__(self, levels: list[float]) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        a = torch.tensor(self.levels, dtype=torch.float32)[t].view(-1, 1, 1, 1)
        return (1 - a).sqrt() * (x - a.sqrt() * MEAN) / (a * DEVIATION**2 + 1 - a)


@torch.no_grad()
def test_bound_lies_below_the_exact_density_and_near_it() -> None:
    """With the best denoiser the bound of 1000 linear steps is hardly below log p; its draws in strata are unbiased."""
    sampler = build(schedule="linear")
    sampler.ema.average = _ExactNetwork(sampler.alphas_cumprod)
    x = torch.from_numpy(Exact(sampler.alphas_cumprod, size=16).images(16))
    scaled = (2 * x - 1 - MEAN) / DEVIATION
    log_p = (-0.5 * scaled**2 - math.log(DEVIATION * math.sqrt(2 * math.pi)) + math.log(2)).flatten(1).sum(dim=1)
    # every term of the sum, with one draw of noise each
    draws = torch.Generator().manual_seed(5)
    levels = np.array([1.0, *sampler.alphas_cumprod])
    kept = levels[1:] / levels[:-1]
    weights = (1 - kept[1:]) / (2 * kept[1:] * (1 - levels[2:]))  # eq. 12 with sigma² = β
    sampler.bound_at = torch.arange(1000)
    sampler.bound_weights = torch.tensor([1 / (2 * kept[0]), *weights])
    noise = torch.randn((1000, 3, 16, 16), generator=draws)
    sampler.bound_noise = (
        noise / noise.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
    )  # its chance would hide the gap
    whole = sampler.log_prob(x)
    gap = float((log_p - whole).mean()) / x[0].numel()
    # the expected gap: eq. 5 of the best denoiser, less the entropy of the data, both in closed form
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


def test_strata_weigh_as_the_whole_sum_does() -> None:
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
def test_surprise_is_the_error_of_partial_diffusion_by_hand(trained: Ddpm) -> None:
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
    assert torch.allclose(sampler.surprise(x), expected, atol=1e-5)


@torch.no_grad()
def test_defects_surprise(trained: Ddpm) -> None:
    good = draw_parts(8, seed=500)
    defect = draw_defects(good)
    assert float(trained(defect).score.min()) > float(trained(good).score.max())
    surprise = trained.surprise(trained.preprocess(defect))
    assert surprise.shape == (8, 16, 16)
    usual = trained.surprise(trained.preprocess(good))
    assert float(surprise[:, 6:11, 7:12].mean()) > 1.2 * float(usual[:, 6:11, 7:12].mean())


def test_region_of_interest_rules_the_loss() -> None:
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


def test_facts_and_functions_are_what_the_process_needs(trained: Ddpm) -> None:
    facts = trained.process_facts()
    assert facts.own["alphas_cumprod"] == pytest.approx(alphas())
    assert set(trained.functions()) == {"denoise"}
    assert trained.can("surprise")
    assert not trained.can("attribute")
    with pytest.raises(UsageError, match=r"Ddpm has no attribute: .*white noise"):
        trained.drawing().attribute(*[np.zeros((1, 3, 16, 16), dtype=np.float32)] * 3, strength=1.0, options=Options())
    assert dataclasses.asdict(facts)["latent_shape"] == [3, 16, 16]
