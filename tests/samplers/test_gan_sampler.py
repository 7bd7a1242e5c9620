"""GAN: objectives by hand and on points in the plane, order of the steps, and unsupported abilities."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from anomaly.errors import Unsupported, UsageError
from anomaly.generation.base import Options
from anomaly.nn.residual_gan import SampleNorm, gradient_penalty
from anomaly.samplers.gan import Gan, Objective, clip_weights, critic_loss, generator_loss
from anomaly.testing.toy_training import as_batch, draw_parts

pytestmark = pytest.mark.filterwarnings("ignore::Warning:pytorch_lightning")
TINY: dict[str, Any] = {"size": 16, "width": 4, "latent": 8, "epochs": 2, "batch_size": 4}
OBJECTIVES: tuple[Objective, ...] = ("non-saturating", "lsgan", "wgan", "wgan-gp")


class Record(pl.Callback):
    """Records the state before and after every batch."""

    def __init__(self) -> None:
        self.states: list[dict[str, Tensor]] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.states.append(copy.deepcopy(pl_module.state_dict()))

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self.states.append(copy.deepcopy(pl_module.state_dict()))


def train(sampler: Gan, *, num: int = 12, callbacks: tuple[pl.Callback, ...] = (), precision: Any = "32-true") -> Gan:
    batches = [as_batch(part, name=str(n)) for n, part in enumerate(draw_parts(num, seed=0).split(4))]
    trainer = pl.Trainer(
        max_epochs=sampler.epochs,
        accelerator="cpu",
        precision=precision,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
    )
    trainer.fit(sampler, DataLoader(batches, batch_size=None))
    return sampler.eval()


def test_objectives_equal_their_papers() -> None:
    real, fake = torch.tensor([2.0, -0.5, 0.3]), torch.tensor([-1.0, 0.4])
    log = torch.nn.functional.logsigmoid
    given = {name: critic_loss(name, real=real, fake=fake).item() for name in OBJECTIVES}
    wanted = {name: generator_loss(name, fake=fake).item() for name in OBJECTIVES}
    assert given["non-saturating"] == pytest.approx(-(log(real).mean() + log(-fake).mean()).item())
    assert wanted["non-saturating"] == pytest.approx(-log(fake).mean().item())
    assert given["lsgan"] == pytest.approx((((real - 1) ** 2).mean() / 2 + (fake**2).mean() / 2).item())
    assert wanted["lsgan"] == pytest.approx((((fake - 1) ** 2).mean() / 2).item())
    assert given["wgan"] == given["wgan-gp"] == pytest.approx((-0.3 - 0.6), abs=1e-6)
    assert wanted["wgan"] == wanted["wgan-gp"] == pytest.approx(0.3, abs=1e-6)


def mlp(inputs: int, outputs: int, *, width: int) -> nn.Sequential:
    """A critic or generator of points (N, inputs, 1, 1), in the layout of images."""
    layers = (nn.Linear(inputs, width), nn.LeakyReLU(0.2), nn.Linear(width, width), nn.LeakyReLU(0.2))
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(width, outputs))


def critic_step(
    critic: nn.Module, optimizer: torch.optim.Optimizer, real: Tensor, fake: Tensor, *, penalty: float, random: Any
) -> float:
    loss = critic_loss("wgan-gp", real=critic(real)[:, 0], fake=critic(fake)[:, 0])
    slope = gradient_penalty(lambda y: critic(y)[:, 0], real, fake, generator=random)
    optimizer.zero_grad()
    (loss + penalty * slope).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return -loss.item()


@pytest.mark.parametrize("shift", [1.0, 2.0])
def test_critic_estimates_the_distance_between_two_gaussians(shift: float) -> None:
    torch.manual_seed(0)
    random = torch.Generator().manual_seed(0)
    critic = mlp(2, 1, width=32)
    optimizer = torch.optim.Adam(critic.parameters(), lr=3e-3, betas=(0.0, 0.9))
    move = shift * torch.tensor([0.6, 0.8]).view(1, 2, 1, 1)
    for _ in range(300):
        real, fake = torch.randn((2, 256, 2, 1, 1), generator=random)
        critic_step(critic, optimizer, real + move, fake, penalty=50.0, random=random)
    with torch.no_grad():
        same = torch.randn(
            (20_000, 2, 1, 1), generator=random
        )  # the same points shifted, without further sampling error
        estimate = -critic_loss("wgan-gp", real=critic(same + move)[:, 0], fake=critic(same)[:, 0]).item()
    assert estimate == pytest.approx(shift, rel=0.1)  # moving all mass costs the length of the shift


def ring(num: int, *, random: torch.Generator) -> Tensor:
    """Draw points (num, 2, 1, 1) from 8 Gaussians of deviation 0.1 on a ring of radius 2."""
    angle = torch.randint(0, 8, (num,), generator=random) * (math.pi / 4)
    centres = 2 * torch.stack((angle.cos(), angle.sin()), dim=1)
    return (centres + 0.1 * torch.randn((num, 2), generator=random))[:, :, None, None]


@pytest.mark.slow
def test_wgan_gp_covers_all_gaussians_of_a_ring() -> None:
    torch.manual_seed(0)
    random = torch.Generator().manual_seed(0)
    generator, critic = mlp(2, 2, width=64), mlp(2, 1, width=64)
    players = [torch.optim.Adam(net.parameters(), lr=1e-3, betas=(0.5, 0.9)) for net in (generator, critic)]

    def draw(num: int) -> Tensor:
        points: Tensor = generator(torch.randn((num, 2, 1, 1), generator=random))
        return points[:, :, None, None]

    for _ in range(450):
        for _ in range(3):
            critic_step(critic, players[1], ring(128, random=random), draw(128).detach(), penalty=1.0, random=random)
        loss = generator_loss("wgan-gp", fake=critic(draw(128))[:, 0])
        players[0].zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        players[0].step()
    with torch.no_grad():
        points = draw(4000)[:, :, 0, 0]
    angle = torch.arange(8) * (math.pi / 4)
    distance, nearest = torch.cdist(points, 2 * torch.stack((angle.cos(), angle.sin()), dim=1)).min(dim=1)
    share = torch.bincount(nearest[distance < 0.5], minlength=8) / 4000
    assert share.min() > 0.03, share
    assert share.sum() > 0.5, share


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_critic_and_generator_step_in_turn(objective: Objective) -> None:
    torch.manual_seed(0)
    sampler, record = Gan(**TINY, objective=objective, critic_steps=2, clip=0.015), Record()
    train(sampler, callbacks=(record,))
    assert len(record.states) == 7
    for step in range(6):
        before, after = record.states[step : step + 2]
        moved = {key.split(".")[0] for key in before if key.endswith(".weight") and not before[key].equal(after[key])}
        assert moved == ({"critic", "generator", "ema"} if step % 2 else {"critic"})
    assert all(p.requires_grad for net in (sampler.generator, sampler.critic) for p in net.parameters())
    heights = max(p.abs().max().item() for p in sampler.critic.parameters())
    assert (heights <= 0.015) == (objective == "wgan")
    norms = {type(module) for module in sampler.critic.modules()} & {nn.BatchNorm2d, SampleNorm}
    assert norms == ({SampleNorm} if objective == "wgan-gp" else {nn.BatchNorm2d})


def test_weights_are_clipped_on_both_sides() -> None:
    layer = nn.Linear(2, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[-3.0, 0.004]]))
    clip_weights(layer, bound=0.01)
    assert layer.weight[0].tolist() == pytest.approx([-0.01, 0.004])


@torch.no_grad()
def test_samples_use_the_averaged_generator_and_depend_on_the_seed() -> None:
    torch.manual_seed(0)
    sampler = train(Gan(**TINY))
    many = torch.randn(2000, 8)
    inner = sampler.ema.average.layers[:2](many[:, :, None, None])  # after the first batch norm
    norm = sampler.ema.average.layers[1]
    assert torch.allclose(inner.mean(dim=(0, 2, 3)), norm.bias, atol=0.1)  # measured with the averaged weights
    assert torch.allclose(inner.std(dim=(0, 2, 3)), norm.weight.abs(), rtol=0.15)
    z = torch.randn(3, 8)
    x = sampler.decode(z)
    assert x.shape == (3, 3, 16, 16)
    assert x.min() >= 0
    assert x.max() <= 1
    assert torch.allclose(x, (sampler.ema.average(z[:, :, None, None]) + 1) / 2)
    assert not torch.allclose(x, sampler._images(sampler.generator, z))
    loop = sampler.sampling_loop()
    drawn = [loop.sample(3, rng=np.random.default_rng(seed), options=Options()) for seed in (0, 0, 1)]
    assert np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])


def test_mixed_precision_trains_to_finite_weights() -> None:
    sampler = train(Gan(**TINY, objective="wgan-gp"), precision="bf16-mixed")
    assert all(torch.isfinite(value).all() for value in sampler.state_dict().values())


@torch.no_grad()
def test_generated_images_are_black_outside_the_region() -> None:
    sampler = Gan(**TINY)
    roi = torch.zeros(72, 88, dtype=torch.bool)
    roi[20:60, 10:70] = True
    sampler.preprocess.set_roi(roi)
    for x in (sampler.decode(torch.randn(2, 8)), sampler._draw(2)):
        assert not x[:, :, ~sampler.preprocess.roi].any()
        assert x[:, :, sampler.preprocess.roi].all()


def test_unsupported_abilities_are_refused_with_the_reason() -> None:
    sampler = Gan(**TINY)
    x = torch.zeros(1, 3, 16, 16)
    for ability, use in (
        ("encode", sampler.encode),
        ("log_prob", sampler.log_prob),
        ("anomaly_map", sampler.anomaly_map),
    ):
        with pytest.raises(Unsupported, match=f"Gan does not support {ability}: (a generator|a GAN has neither)"):
            use(x)
    loop, options = sampler.sampling_loop(), Options()
    with pytest.raises(Unsupported, match=r"Gan does not support reconstruct: .*fanogan"):
        loop.reconstruct(x.numpy(), rng=np.random.default_rng(0), options=options)
    with pytest.raises(Unsupported, match=r"Gan does not support interpolate: .*fanogan"):
        loop.interpolate(x[0].numpy(), x[0].numpy(), num=3, options=options)
    with pytest.raises(
        Unsupported, match="Gan has no detector form: a GAN has neither a likelihood nor a reconstruction"
    ):
        sampler.as_detector()
    assert set(sampler.functions()) == {"decode"}


@pytest.mark.parametrize(("option", "value"), [("size", 40), ("critic_steps", 0)])
def test_invalid_options_are_refused(option: str, value: int) -> None:
    with pytest.raises(UsageError, match=f"{option} {value}: .*e.g. "):
        Gan(**{option: value})
