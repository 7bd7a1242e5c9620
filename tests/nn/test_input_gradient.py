"""Input gradient against automatic differentiation, and rotation by fixed angles."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from anomaly.errors import UsageError
from anomaly.nn.input_gradient import InputGradient
from anomaly.nn.rotation import equally_spaced, rotate


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name in ("alexnet", "squeezenet1_1"):
        built = torchvision.models.get_model(name, weights=None).features
    else:
        built = timm.create_model(name, pretrained=False, features_only=True, out_indices=(3,))
    return built.eval().requires_grad_(False)  # type: ignore[no-any-return]


def differentiated(net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Result, its random weight, and the derivative of the weighted sum with respect to x."""
    x = x.clone().requires_grad_()
    result = net(x)
    y: Tensor = result[-1] if isinstance(result, list) else result
    weight = torch.randn(y.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(7))
    (gradient,) = torch.autograd.grad((y * weight).sum(), x)
    return y.detach(), weight, gradient


NAMES = [
    "resnet18",
    "resnet10t",
    "mobilenetv2_100",
    "mobilenetv3_small_050",
    "squeezenet1_1",
    "alexnet",
    "efficientnet_b0",
    "tf_efficientnet_lite0",
]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_gradient_equals_automatic_differentiation(name: str) -> None:
    net = network(name)
    reverse = InputGradient(net, size=(64, 64))
    net.double()  # `reverse` uses the network's own modules
    for size in (64, 75):
        x = torch.randn(2, 3, size, size, dtype=torch.float64)
        y, weight, expected = differentiated(net, x)
        with torch.no_grad():
            output, pullback = reverse(x)
            gradient = pullback(weight)
        assert torch.allclose(output, y, rtol=1e-12, atol=1e-14)
        assert (gradient - expected).abs().max() < 1e-8 * expected.abs().max()


def test_smooth_network_agrees_in_single_precision() -> None:
    net = network("efficientnet_b0")
    x = torch.randn(2, 3, 64, 64)
    _, weight, expected = differentiated(net, x)
    with torch.no_grad():
        gradient = InputGradient(net, size=(64, 64))(x)[1](weight)
    assert (gradient - expected).abs().max() < 1e-5 * expected.abs().max()


class Summed(nn.Module):
    """Broadcasting, constants, an input with three uses, and the functional forms."""

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(x.mean((2, 3), keepdim=True))
        y = torch.cat([functional.relu(x * gate), functional.silu(2.0 * x) + 1.0, x + x], 1)
        return y.mean((2, 3)).flatten(1)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 6, (3, 5), stride=(2, 3), padding=(2, 1), dilation=(2, 1), groups=3),
        nn.MaxPool2d(3, stride=2, padding=1),
        nn.MaxPool2d(3, stride=2, ceil_mode=True),
        nn.MaxPool2d(2, stride=3),
        nn.AvgPool2d(3, stride=2, padding=1),
        nn.AvgPool2d(2, stride=2, ceil_mode=True, count_include_pad=False),
        nn.AvgPool2d(3, stride=2, padding=1, ceil_mode=True),
        nn.AvgPool2d(2, stride=3),
        nn.AdaptiveAvgPool2d(1),
        nn.ReLU6(),
        nn.LeakyReLU(0.2),
        nn.Hardswish(),
        nn.Hardsigmoid(),
        nn.Flatten(),
        nn.Dropout(0.5),
        Summed(),
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [(11, 14), (12, 9)])
def test_every_rule(layer: nn.Module, size: tuple[int, int]) -> None:
    net = nn.Sequential(copy.deepcopy(layer)).eval()
    reverse = InputGradient(net, size=size)
    net.double()
    x = torch.randn(2, 3, *size, dtype=torch.float64) * 3
    y, weight, expected = differentiated(net, x)
    with torch.no_grad():
        output, pullback = reverse(x)
        gradient = pullback(weight)
    assert torch.allclose(output, y, rtol=1e-12)
    assert gradient.shape == x.shape
    assert torch.allclose(gradient, expected, rtol=1e-6, atol=1e-12)


@torch.no_grad()
def test_equal_elements_of_a_window_share_the_gradient() -> None:
    pool = nn.Sequential(nn.MaxPool2d(2))
    x = torch.zeros(1, 1, 2, 4)
    x[0, 0] = torch.tensor([[5.0, 5.0, 7.0, 0.0], [5.0 - 1e-6, 0.0, 0.0, 0.0]])
    _, pullback = InputGradient(pool, size=(4, 4))(x)
    gradient = pullback(torch.tensor([[[[6.0, 1.0]]]]))
    expected = torch.tensor([[2.0, 2.0, 1.0, 0.0], [2.0, 0.0, 0.0, 0.0]])
    assert torch.allclose(gradient[0, 0], expected, atol=0.01)


@torch.no_grad()
def test_gradient_is_stable_under_rounding_noise() -> None:
    """Without rounded corners, single patches differ by several percent."""
    net = network("resnet18")
    reverse = InputGradient(net, size=(64, 64))
    x = torch.randn(1, 3, 64, 64)
    x[:, :, :, 32:] = 1.0  # flat
    y, pullback = reverse(x)
    single = pullback(torch.ones_like(y))
    with_noise = reverse(x * (1 + 1e-6 * torch.randn_like(x)))[1](torch.ones_like(y))
    assert (single - with_noise).abs().max() < 2e-3 * single.abs().max()


@pytest.mark.parametrize(
    ("net", "named"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 3, padding="same")), "padding 'same'"),
        (nn.Sequential(nn.GroupNorm(1, 3)), "GroupNorm"),
        (nn.Sequential(nn.AdaptiveAvgPool2d(2)), "AdaptiveAvgPool2d to 2"),
        (nn.Sequential(nn.AvgPool2d(2, divisor_override=3)), "divisor_override"),
        (nn.Sequential(nn.MaxPool2d(2, dilation=2)), "dilation of MaxPool2d"),
        (nn.Sequential(nn.BatchNorm2d(3, affine=False)), "BatchNorm2d without"),
    ],
)
def test_unsupported_operation_is_named(net: nn.Module, named: str) -> None:
    with pytest.raises(UsageError, match=f"does not support .*{named}.*e.g. one of resnet18, "):
        InputGradient(net.eval(), size=(32, 32))


@pytest.mark.parametrize(("name", "named"), [("convnext_atto", "LayerNorm|permute"), ("tf_mixnet_s", "split")])
def test_unsupported_backbone_is_rejected(name: str, named: str) -> None:
    with pytest.raises(UsageError, match=f"does not support .*({named})"):
        InputGradient(network(name), size=(32, 32))


class _Branch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_control_flow_is_rejected() -> None:
    with pytest.raises(UsageError, match="does not support the control flow"):
        InputGradient(_Branch(), size=(32, 32))


@torch.no_grad()
def test_rotation_is_counterclockwise_and_invertible() -> None:
    x = torch.zeros(2, 3, 33, 33)
    x[:, :, 16, 26] = 1.0  # right of the centre
    up, left = rotate(x, 90.0), rotate(x, 180.0)
    assert up[0, 0].argmax() == 6 * 33 + 16
    assert left[0, 0].argmax() == 16 * 33 + 6
    assert torch.equal(rotate(x, 0.0), x)
    assert torch.equal(rotate(x, 360.0), x)
    assert torch.equal(rotate(up, -90.0), x)
    diagonal = rotate(x, 45.0)[0, 0]  # 10/√2 up and right
    assert diagonal.sum().item() == pytest.approx(1.0, abs=0.3)
    rows, columns = torch.meshgrid(torch.arange(33.0), torch.arange(33.0), indexing="ij")
    assert (diagonal * rows).sum().item() / diagonal.sum().item() == pytest.approx(16 - 50**0.5, abs=0.1)
    assert (diagonal * columns).sum().item() / diagonal.sum().item() == pytest.approx(16 + 50**0.5, abs=0.1)


@torch.no_grad()
def test_rotation_is_continuous_at_quarter_turns() -> None:
    smooth = functional.interpolate(torch.rand(1, 2, 5, 5), (40, 40), mode="bicubic", align_corners=False)
    for quarter in (90.0, 180.0, 270.0):
        below, exact = rotate(smooth, quarter - 0.01), rotate(smooth, quarter)
        assert torch.allclose(below[..., 1:-1, 1:-1], exact[..., 1:-1, 1:-1], atol=0.02)
    corner = rotate(torch.ones(1, 1, 40, 40), 45.0)
    assert corner[0, 0, 0, 0] == 0
    assert corner[0, 0, 20, 20] == pytest.approx(1, abs=1e-5)
    assert equally_spaced(6) == [0, 60, 120, 180, 240, 300]
