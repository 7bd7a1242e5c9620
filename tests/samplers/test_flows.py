"""Normalizing flows: exact inverses and log-determinants of steps and whole flows, and densities that integrate to 1."""

from __future__ import annotations

import math
from typing import Any, TypeVar

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from anomaly.errors import Unsupported, UsageError
from anomaly.generation.base import Options
from anomaly.nn.batch import Batch
from anomaly.nn.flow_steps import (
    Actnorm,
    Invertible1x1,
    Logit,
    MaskedCoupling,
    Step,
    channel_mask,
    checkerboard_mask,
    squeeze,
    unsqueeze,
)
from anomaly.nn.multi_scale_flow import scale_shapes
from anomaly.samplers._flow import Flow
from anomaly.samplers.glow import Glow
from anomaly.samplers.realnvp import RealNvp
from tests.plates import draw_part

pytestmark = pytest.mark.filterwarnings("ignore::Warning:pytorch_lightning")
OPTIONS: dict[str, dict[str, Any]] = {"realnvp": {"width": 8}, "glow": {"width": 8, "num_steps": 2}}
Module = TypeVar("Module", bound=nn.Module)
FLOWS: dict[str, type[Flow]] = {"realnvp": RealNvp, "glow": Glow}
NAMES = sorted(FLOWS)


def build(name: str, **options: Any) -> Flow:
    torch.manual_seed(0)
    tiny = {"size": 16, "num_scales": 2, "smooth": 3, "epochs": 3, "batch_size": 4, "learning_rate": 3e-3}
    return FLOWS[name](**(tiny | OPTIONS[name] | options))


def shaken(module: Module, *, by: float = 0.15) -> Module:
    """Change every parameter, because an untrained flow is the identity."""
    random = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(by * torch.randn(parameter.shape, generator=random))
    return module


def parts(num: int, *, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.stack([draw_part(seed + n) for n in range(num)]))


def batch_of(image: Tensor, *, name: str = "") -> Batch:
    num = len(image)
    mask = torch.zeros(image.shape[:3], dtype=torch.bool)
    return Batch(image, mask, torch.zeros(num, dtype=torch.bool), [f"{name}{n}" for n in range(num)])


def fit(sampler: Flow, image: Tensor) -> Flow:
    trainer = pl.Trainer(
        max_epochs=sampler.epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    batches: Any = [batch_of(part, name=f"{n}/") for n, part in enumerate(torch.split(image, sampler.batch_size))]
    trainer.fit(sampler, DataLoader(batches, batch_size=None))
    return sampler.eval()


def steps() -> dict[str, Step]:
    """Build one of each step for maps (12, 2, 2), squeezed images (3, 4, 4)."""
    torch.manual_seed(0)
    coupling: dict[str, Any] = {"width": 6, "clamp": 2.0, "size": (2, 2)}
    return {
        "actnorm of a channel": Actnorm((12, 1, 1), shrinkage=0.0),
        "actnorm of an element": Actnorm((12, 2, 2), shrinkage=0.0),
        "invertible 1x1": Invertible1x1(12),
        "checkerboard coupling": MaskedCoupling(checkerboard_mask(12), kernel=3, **coupling),
        "opposite coupling": MaskedCoupling(~checkerboard_mask(12), kernel=1, **coupling),
        "channel coupling": MaskedCoupling(channel_mask(12), kernel=3, **coupling),
    }


STEPS = list(steps())


def log_det_by_autograd(function: Any, y: Tensor) -> float:
    """Compute log |det| of the Jacobian at one image y (1, ...)."""
    jacobian = torch.func.jacrev(function)(y).reshape(y.numel(), y.numel())
    return float(torch.linalg.slogdet(jacobian).logabsdet)


@pytest.mark.parametrize("name", STEPS)
def test_step_is_invertible(name: str) -> None:
    step = shaken(steps()[name])
    y = 2 * torch.randn(3, 12, 2, 2)
    with torch.no_grad():
        after, _ = step(y)
        assert (after - y).abs().max() > 0.05
        torch.testing.assert_close(step.inverse(after), y, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", STEPS)
def test_log_det_of_a_step_equals_its_jacobian(name: str) -> None:
    step = shaken(steps()[name]).double().requires_grad_(False)
    y = 2 * torch.randn(1, 12, 2, 2, dtype=torch.float64)
    _, log_det = step(y)
    expected = log_det_by_autograd(lambda v: step(v)[0], y)
    assert abs(expected) > 0.01
    assert float(log_det.expand(y.shape).sum()) == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("channels", [1, 2, 5, 48, 96])
def test_inverse_of_the_mixing_matrix_is_exact_at_every_width(channels: int) -> None:
    torch.manual_seed(0)
    step = shaken(Invertible1x1(channels), by=0.02)
    y = torch.randn(2, channels, 3, 3)
    with torch.no_grad():
        torch.testing.assert_close(step.inverse(step(y)[0]), y, atol=1e-4, rtol=1e-4)


def test_mixing_matrix_starts_as_a_rotation() -> None:
    torch.manual_seed(0)
    y = torch.randn(2, 24, 3, 3)
    mixed, log_det = Invertible1x1(24).requires_grad_(False)(y)
    torch.testing.assert_close(mixed.norm(dim=1), y.norm(dim=1))
    assert abs(float(log_det.sum())) < 1e-5


def test_coupling_starts_as_the_identity() -> None:
    y = torch.randn(2, 12, 2, 2)
    after, log_det = steps()["channel coupling"](y)
    assert torch.equal(after, y)
    assert not log_det.any()


def test_squeeze_turns_checkerboard_colours_into_channel_halves() -> None:
    y = torch.randn(2, 3, 6, 4)
    assert squeeze(y).shape == (2, 12, 3, 2)
    assert torch.equal(unsqueeze(squeeze(y)), y)
    board = unsqueeze(checkerboard_mask(12).float().view(1, 12, 1, 1).expand(1, 12, 3, 2))[0]
    rows, columns = torch.meshgrid(torch.arange(6), torch.arange(4), indexing="ij")
    assert torch.equal(board, ((rows + columns) % 2 == 0).float().expand(3, 6, 4))
    across = channel_mask(12) & checkerboard_mask(12)
    assert int(across.sum()) == 3  # each half has values of both colours


def test_actnorm_gives_zero_mean_and_unit_variance() -> None:
    torch.manual_seed(0)
    y = 3 + 5 * torch.randn(6, 4, 8, 8) * torch.tensor([0.1, 1.0, 2.0, 9.0]).view(1, 4, 1, 1)
    step = Actnorm((4, 1, 1), shrinkage=0.0)
    step.initialize(y)
    after, _ = step(y)
    torch.testing.assert_close(after.mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(after.var(dim=(0, 2, 3), correction=0), torch.ones(4), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_first_batch_initialises_every_actnorm_in_turn(name: str) -> None:
    sampler = build(name)
    seen: list[Tensor] = []
    inner = [step for step in sampler.flow.scales.modules() if isinstance(step, Actnorm)]
    for step in inner:
        step.register_forward_hook(lambda *arguments: seen.append(arguments[2][0]))
    x = sampler.preprocess(parts(8))
    v, _ = sampler.logit(x, torch.rand(x.shape))
    sampler.flow.initialize(v)
    assert sampler.flow.is_initialized
    seen.clear()
    sampler.flow(v)
    assert len(seen) == len(inner)
    for after in seen:
        torch.testing.assert_close(after.mean(dim=(0, 2, 3)), torch.zeros(after.shape[1]), atol=1e-3, rtol=0)
        torch.testing.assert_close(after.var(dim=(0, 2, 3)), torch.ones(after.shape[1]), atol=2e-2, rtol=0)


def test_logit_includes_its_jacobian_and_dequantises_into_the_unit_interval() -> None:
    logit = Logit(levels=256, margin=0.05)
    x = (torch.arange(256, dtype=torch.float64) / 255).view(1, 1, 16, 16).expand(2, 3, 16, 16)
    v, log_det = logit(x, 0.5)
    torch.testing.assert_close(logit.inverse(v), x)
    centres = (torch.arange(256, dtype=torch.float64) + 0.5) / 256
    torch.testing.assert_close(torch.sigmoid(v[0, 0].flatten()), 0.05 + 0.9 * centres)
    slope = 256 / 255  # dx/dx'
    small = 1e-6
    change = (logit(x + small, 0.5)[0] - logit(x - small, 0.5)[0]) / (2 * small) * slope
    torch.testing.assert_close(log_det, torch.log(change), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_whole_flow_is_invertible(name: str) -> None:
    sampler = build(name, num_scales=3)
    x = sampler.preprocess(parts(4))
    sampler.flow.initialize(sampler.logit(x, torch.rand(x.shape))[0])
    shaken(sampler.flow, by=0.03)
    with torch.no_grad():
        z = sampler.encode(x)
        assert z.shape == (4, *sampler.latent_shape) == (4, 768)
        torch.testing.assert_close(sampler.decode(z), x, atol=1e-4, rtol=0)
        drawn = torch.randn(4, 768)
        v = sampler.flow.inverse(drawn)
        torch.testing.assert_close(sampler.flow(v)[0], drawn, atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_log_prob_is_the_change_of_variables(name: str) -> None:
    sampler = shaken(build(name, size=4, bits=6)).double()
    sampler.requires_grad_(False)
    x = torch.rand(1, 3, 4, 4, dtype=torch.float64)
    z = sampler.encode(x)
    fresh = build(name, size=4, bits=6).double().requires_grad_(False)
    assert float((z - fresh.encode(x)).abs().mean()) > 0.1
    log_det = log_det_by_autograd(sampler.encode, x) + 48 * math.log(64 / 63)  # from x' = (63 x + 0.5) / 64
    prior = float(-0.5 * (z * z).sum() - 24 * math.log(2 * math.pi))
    assert float(sampler.log_prob(x)) == pytest.approx(prior + log_det, rel=1e-6)
    assert float(sampler.bits_per_dim(x)) == pytest.approx(6 - (prior + log_det) / (48 * math.log(2)), rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_map_sums_to_minus_log_prob(name: str) -> None:
    sampler = shaken(build(name), by=0.05)
    x = sampler.preprocess(parts(3))
    with torch.no_grad():
        anomaly_map, exact = sampler.anomaly_map(x), sampler.double().log_prob(x.double())
        assert anomaly_map.shape == (3, 16, 16)
        torch.testing.assert_close(anomaly_map.double().sum(dim=(1, 2)), -exact, rtol=1e-5, atol=1e-3)


@torch.no_grad()
def test_shares_of_log_prob_are_assigned_to_their_pixels() -> None:
    sampler = build("realnvp", num_scales=3)  # untrained, it only permutes values
    x = torch.rand(2, 3, 16, 16)
    v, log_det = sampler.logit(x, 0.5)
    own = 0.5 * v * v + 0.5 * math.log(2 * math.pi) - log_det
    torch.testing.assert_close(sampler.anomaly_map(x), own.sum(dim=1))


@torch.no_grad()
def test_shares_of_mixed_channels_are_spread_over_their_block() -> None:
    sampler = build("glow", num_scales=1)  # untrained, it rotates each block of 2×2 pixels
    x = torch.rand(2, 3, 16, 16)
    v, log_det = sampler.logit(x, 0.5)
    blocks = (0.5 * v * v + 0.5 * math.log(2 * math.pi)).sum(dim=1).unfold(1, 2, 2).unfold(2, 2, 2).mean(dim=(3, 4))
    expected = blocks.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2) - log_det.sum(dim=1)
    torch.testing.assert_close(sampler.anomaly_map(x), expected)


@pytest.mark.parametrize("kind", ["couplings", "couplings and mixing"])
@torch.no_grad()
def test_density_in_two_dimensions_integrates_to_one(kind: str) -> None:
    torch.manual_seed(0)
    flow: list[Any] = []
    for number in range(4):
        mask = torch.tensor([number % 2 == 0, number % 2 == 1])
        flow.append(Actnorm((2, 1, 1), shrinkage=0.0))
        flow.append(MaskedCoupling(mask, width=16, kernel=1, clamp=1.0, size=(1, 1)))
        if kind == "couplings and mixing":
            flow.append(Invertible1x1(2))
    shaken(nn.ModuleList(flow), by=0.25)
    axis = torch.linspace(-20, 20, 401)
    grid = torch.cartesian_prod(axis, axis)
    y = grid.view(-1, 2, 1, 1)
    log_density = torch.full((len(y),), -math.log(2 * math.pi))
    for step in flow:
        y, log_det = step(y)
        log_density += log_det.expand(y.shape).sum(dim=(1, 2, 3))
    log_density -= 0.5 * (y * y).sum(dim=(1, 2, 3))
    density = log_density.double().exp()
    normal = torch.exp(-0.5 * (grid * grid).sum(dim=1)) / (2 * math.pi)
    assert float((density - normal).abs().sum()) * 0.1**2 > 0.5  # no longer the initial density
    assert float(density.sum()) * 0.1**2 == pytest.approx(1, abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_training_lowers_the_bits_and_the_state_holds_the_flow(name: str) -> None:
    image = parts(12)
    untrained = build(name)
    x = untrained.preprocess(image)
    untrained.flow.initialize(untrained.logit(x[:4], torch.rand(4, 3, 16, 16))[0])
    sampler = fit(build(name, epochs=8), image)
    with torch.no_grad():
        assert sampler.bits_per_dim(x).mean() < untrained.bits_per_dim(x).mean() - 0.05
        again = build(name, epochs=8)
        again.load_state_dict(sampler.state_dict())
        again.eval()
        z = torch.randn(2, 768)
        assert torch.equal(again.decode(z), sampler.decode(z))
        assert torch.equal(again.as_detector().anomaly(x).score, sampler.as_detector().anomaly(x).score)
    drawn = sampler.sampling_loop().sample(3, rng=np.random.default_rng(0), options=Options(temperature=0.7))
    assert drawn.shape == (3, 3, 16, 16)
    assert np.array_equal(
        drawn, again.sampling_loop().sample(3, rng=np.random.default_rng(0), options=Options(temperature=0.7))
    )


@pytest.mark.parametrize("name", NAMES)
def test_noise_is_seeded_and_used_only_in_training(name: str) -> None:
    losses = []
    for seed in (0, 0, 1):
        sampler = build(name, seed=seed)
        sampler.log = lambda *_, **__: None  # type: ignore[method-assign]
        losses += [sampler.training_step(batch_of(parts(4)), 0).item() for _ in range(2)]
    assert losses[:2] == losses[2:4]
    assert losses[0] != losses[1]
    assert losses[0] != losses[4]
    x = sampler.preprocess(parts(2))
    assert torch.equal(sampler.anomaly_map(x), sampler.anomaly_map(x))


def test_training_ignores_pixels_outside_the_region() -> None:
    losses = []
    for outside in (0, 255):
        sampler = build("realnvp")
        sampler.log = lambda *_, **__: None  # type: ignore[method-assign]
        image = parts(4)
        mask = torch.zeros(image.shape[1:3], dtype=torch.bool)
        mask[: mask.shape[0] // 2] = True
        image[:, ~mask] = outside
        sampler.preprocess.set_roi(mask)
        losses.append(sampler.training_step(batch_of(image), 0).item())
    assert losses[0] == losses[1]


@pytest.mark.parametrize("name", NAMES)
def test_supported_and_unsupported_abilities(name: str) -> None:
    sampler = build(name, size=8)
    assert sampler.density == "exact"
    x = np.random.default_rng(0).random((2, 3, 8, 8), dtype=np.float32)
    drawing, options = sampler.sampling_loop(), Options()
    np.testing.assert_allclose(drawing.reconstruct(x, rng=np.random.default_rng(0), options=options), x, atol=1e-4)
    walk = drawing.interpolate(x[0], x[1], num=3, options=options)
    np.testing.assert_allclose(walk[[0, 2]], x, atol=1e-4)
    with pytest.raises(
        Unsupported, match=f"{type(sampler).__name__} does not support inpaint: a flow reproduces every image"
    ):
        drawing.inpaint(x, np.zeros((2, 8, 8), dtype=bool), rng=np.random.default_rng(0), options=options)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 30}, r"size 30, num_scales 2: .* multiple of 4 .* e\.g\. 28"),
        ({"num_scales": 0}, r"size 16, num_scales 0: .* 1 scale or more"),
        ({"bits": 0}, r"bits 0: .* e\.g\. 8"),
        ({"smooth": 4}, r"smooth 4: .* e\.g\. 5"),
    ],
)
def test_invalid_options_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build(name, **options)


def test_scales_keep_every_value() -> None:
    shapes = scale_shapes((3, 64, 64), num_scales=3)
    assert shapes == [(12, 32, 32), (24, 16, 16), (48, 8, 8)]
    handed = sum(math.prod(shape) // 2 for shape in shapes[:-1]) + math.prod(shapes[-1])
    assert handed == 3 * 64 * 64
