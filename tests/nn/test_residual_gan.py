"""Residual networks of WGAN-GP: shapes, combined kernels, norm, and gradient penalty against reference computations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from anomaly.errors import UsageError
from anomaly.nn.residual_gan import Critic, Generator, ResidualBlock, SampleNorm, Trunk, channels, gradient_penalty


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("size", "expected"), [(64, [3, 6, 12, 24, 24]), (128, [3, 6, 12, 24, 24, 24]), (16, [3, 6, 12])]
)
def test_networks_have_one_block_per_halving(size: int, expected: list[int]) -> None:
    assert channels(size, width=3) == expected
    generator, critic = Generator(size=size, width=3, latent=5), Critic(size=size, width=3)
    trunk = Trunk(size=size, width=3, norm=nn.BatchNorm2d)
    image = generator(torch.randn(2, 5))
    assert image.shape == (2, 3, size, size)
    assert image.abs().max() <= 1
    assert critic(image).shape == (2,)
    assert trunk(image).shape == (2, expected[-1], 4, 4)
    assert trunk.num_features == 16 * expected[-1]
    assert len(generator.blocks) == len(trunk.blocks) == len(expected) - 1


@pytest.mark.parametrize("size", [8, 48, 100])
def test_invalid_sizes_are_rejected(size: int) -> None:
    with pytest.raises(UsageError, match=f"size {size}: .* e.g. 64 or 128"):
        Generator(size=size, width=2, latent=4)


def plain_block(block: ResidualBlock, y: Tensor) -> Tensor:
    """Block of the paper: separate resampling and 3×3 convolutions."""

    def up(maps: Tensor) -> Tensor:
        return functional.interpolate(maps, scale_factor=2.0, mode="nearest") if block.resample == "up" else maps

    def down(maps: Tensor) -> Tensor:
        return functional.avg_pool2d(maps, 2) if block.resample == "down" else maps

    hidden = functional.conv2d(up(functional.relu(block.norms[0](y))), block.first.weight, padding=1)
    hidden = functional.relu(block.norms[1](hidden))
    hidden = down(functional.conv2d(hidden, block.second.weight, block.second.bias, padding=1))
    return down(functional.conv2d(up(y), block.shortcut.weight, block.shortcut.bias)) + hidden


@pytest.mark.parametrize("resample", ["up", "down"])
def test_block_equals_the_paper(resample: str) -> None:
    torch.manual_seed(0)
    block = ResidualBlock(4, 6, resample=resample, norm=SampleNorm)  # type: ignore[arg-type]
    for parameter in block.parameters():
        nn.init.normal_(parameter)
    y = torch.randn(2, 4, 8, 12)
    assert torch.allclose(block(y), plain_block(block, y), rtol=1e-4, atol=1e-4)


def test_norm_is_over_the_whole_map_with_one_weight_per_channel() -> None:
    torch.manual_seed(0)
    norm = SampleNorm(5)
    nn.init.normal_(norm.scale)
    nn.init.normal_(norm.offset)
    y = 3 + 2 * torch.randn(4, 5, 6, 7)
    expected = functional.group_norm(y, 1, norm.scale.flatten(), norm.offset.flatten())
    assert torch.allclose(norm(y), expected, atol=1e-5)
    assert torch.allclose(norm(y)[1:2], norm(y[1:2]), atol=1e-6)


def test_initial_weights_have_the_variance_of_the_paper() -> None:
    torch.manual_seed(0)
    block = ResidualBlock(32, 64, resample="down", norm=SampleNorm)
    for weight, variance in (
        (block.shortcut.weight, 2 / (32 + 64)),
        (block.first.weight, 4 / (9 * 32 + 9 * 32)),
        (block.second.weight, 4 / (9 * 32 + 9 * 64)),
    ):
        assert weight.var().item() == pytest.approx(variance, rel=0.1)


@pytest.mark.parametrize("length", [1.0, 3.0, 0.0])
def test_penalty_of_a_linear_critic_depends_on_its_slope(length: float) -> None:
    torch.manual_seed(0)
    slope = torch.randn(3, 4, 4)
    slope = (length * slope / slope.norm()).requires_grad_()
    real, fake = torch.randn(6, 3, 4, 4), torch.randn(6, 3, 4, 4)
    penalty = gradient_penalty(lambda x: (x * slope).sum(dim=(1, 2, 3)), real, fake, generator=seeded())
    assert penalty.item() == pytest.approx((length - 1) ** 2, abs=1e-6)
    (gradient,) = torch.autograd.grad(penalty, slope)
    assert torch.isfinite(gradient).all()
    if length:  # d (|s| - 1)² / ds
        assert torch.allclose(gradient, 2 * (length - 1) * slope / length, atol=1e-5)


def test_penalty_is_between_real_and_fake_images() -> None:
    torch.manual_seed(0)
    real, fake = torch.randn(5, 3, 4, 4), torch.randn(5, 3, 4, 4)
    penalty = gradient_penalty(lambda x: 0.5 * (x * x).sum(dim=(1, 2, 3)), real, fake, generator=seeded(4))
    share = torch.rand(5, 1, 1, 1, generator=seeded(4))  # the gradient of |x|² / 2 is x
    between = share * real + (1 - share) * fake
    assert penalty.item() == pytest.approx(((between.flatten(1).norm(dim=1) - 1) ** 2).mean().item(), rel=1e-5)


def test_penalty_has_a_gradient_for_every_weight_of_the_slope() -> None:
    torch.manual_seed(0)
    critic = Critic(size=16, width=4)
    real, fake = torch.rand(3, 3, 16, 16), -torch.rand(3, 3, 16, 16)
    gradient_penalty(critic, real, fake, generator=seeded(1)).backward()
    without_gradient = [name for name, p in critic.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # a bias after the last norm changes the value, but not the slope
    last = "trunk.blocks.1"
    assert set(without_gradient) == {f"{last}.shortcut.bias", f"{last}.second.bias", f"{last}.norms.1.offset"}


def test_second_derivative_equals_finite_differences() -> None:
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.Softplus(), nn.Flatten(), nn.Linear(36, 1))
    weight = critic[0].weight
    real, fake = torch.rand(3, 3, 8, 8), -torch.rand(3, 3, 8, 8)

    def penalty() -> Tensor:
        return gradient_penalty(lambda x: critic(x)[:, 0], real, fake, generator=seeded(1))

    (slope,) = torch.autograd.grad(penalty(), weight)
    direction = slope / slope.norm()
    values = []
    for step in (1e-2, -2e-2):
        weight.data += step * direction
        values.append(penalty().item())
    assert (values[0] - values[1]) / 2e-2 == pytest.approx(slope.norm().item(), rel=0.01)


def test_penalty_is_equal_under_autocast() -> None:
    torch.manual_seed(0)
    critic = Critic(size=16, width=4)
    real, fake = torch.rand(3, 3, 16, 16), -torch.rand(3, 3, 16, 16)
    exact = gradient_penalty(critic, real, fake, generator=seeded(1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = gradient_penalty(critic, real, fake, generator=seeded(1))
        rounded = critic(real)
    assert torch.equal(mixed, exact)
    assert not torch.equal(rounded, critic(real))
