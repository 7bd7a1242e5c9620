"""Coupling on feature maps: inverse, log-determinant and permutation."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from anomaly.nn.coupling_2d import ConvCoupling


def random_parameters(module: nn.Module, *, deviation: float) -> None:
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(deviation * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("channels", [4, 7])
@pytest.mark.parametrize("kernel", [1, 3])
def test_inverse_restores_the_data(channels: int, kernel: int) -> None:
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
def test_shares_of_the_log_determinant_sum_to_the_jacobian(kernel: int) -> None:
    coupling = ConvCoupling(5, hidden_ratio=1.0, kernel=kernel, clamp=2.0, seed=1).double()
    random_parameters(coupling, deviation=0.7)
    x = torch.randn(1, 5, 2, 3, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda x: coupling(x)[0].flatten(), x).reshape(30, 30)
    expected = torch.linalg.slogdet(jacobian).logabsdet
    assert expected.abs() > 0.5
    assert coupling(x)[1].sum().item() == pytest.approx(expected.item(), abs=1e-8)


def test_permutation_depends_on_the_seed() -> None:
    orders = [ConvCoupling(16, hidden_ratio=1.0, kernel=1, clamp=2.0, seed=seed).order.tolist() for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == list(range(16))
