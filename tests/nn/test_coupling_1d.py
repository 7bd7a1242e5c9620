"""Couplings on vectors: exact inverse, log-determinant and hand-written derivative."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from anomaly.nn.coupling_1d import LARGEST, VectorCoupling, VectorFlow


def randomised(flow: torch.nn.Module) -> torch.nn.Module:
    """Set large random weights, so that every term matters."""
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    if isinstance(flow, VectorFlow):
        flow.initialize(torch.randn(30, len(flow.mean)) * 2 + 1)
    return flow


@pytest.mark.parametrize("dim", [8, 9])
@torch.no_grad()
def test_inverse_restores_the_data(dim: int) -> None:
    torch.manual_seed(0)
    flow = randomised(VectorFlow(dim, num_steps=3, hidden=16, clamp=3.0))
    y = torch.randn(20, dim)
    z, _ = flow(y)
    assert not torch.allclose(z, y, atol=0.1)
    assert torch.allclose(flow.inverse(z), y, atol=1e-4)


@pytest.mark.parametrize("num_steps", [1, 3])
def test_log_determinant_equals_the_jacobian(num_steps: int) -> None:
    torch.manual_seed(1)
    flow = randomised(VectorFlow(7, num_steps=num_steps, hidden=12, clamp=3.0)).double()
    y = torch.randn(4, 7, dtype=torch.float64)
    _, log_det = flow(y)
    for row, value in zip(y, log_det, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda v: flow(v[None])[0][0], row)
        assert torch.linalg.slogdet(jacobian).logabsdet.item() == pytest.approx(value.item(), abs=1e-5)


def test_pullback_equals_automatic_differentiation() -> None:
    torch.manual_seed(2)
    flow = randomised(VectorFlow(9, num_steps=4, hidden=12, clamp=3.0)).double()
    y = torch.randn(5, 9, dtype=torch.float64, requires_grad=True)
    g_z, g_log_det = torch.randn(5, 9, dtype=torch.float64), torch.randn(5, 1, dtype=torch.float64)
    z, log_det = flow(y)
    (expected,) = torch.autograd.grad((z * g_z).sum() + (log_det * g_log_det[:, 0]).sum(), y)
    with torch.no_grad():
        z_again, log_det_again, pullback = flow.with_pullback(y)
        gradient = pullback(g_z, g_log_det)
    assert torch.equal(z_again, z)
    assert torch.equal(log_det_again, log_det)
    assert torch.allclose(gradient, expected, rtol=1e-10)


def test_output_and_pullback_are_bounded() -> None:
    torch.manual_seed(3)
    step = VectorCoupling(4, hidden=6, clamp=3.0, seed=0)
    y = torch.tensor([[1e8, 1.0, -1e8, 2.0]], requires_grad=True)
    z, _ = step(y)
    assert z.abs().max() == LARGEST
    (expected,) = torch.autograd.grad(z.sum(), y)
    with torch.no_grad():
        *_, pullback = step.with_pullback(y)
        assert torch.allclose(pullback(torch.ones(1, 4), torch.zeros(1, 1)), expected)


@torch.no_grad()
def test_both_halves_change_within_the_clamp() -> None:
    torch.manual_seed(4)
    step = randomised(VectorCoupling(6, hidden=8, clamp=0.5, seed=3))
    x = torch.randn(50, 6) * 10
    y, log_det = step(x)
    changed = y != x.index_select(1, step.order)
    assert changed.all()
    assert 0.3 < log_det.abs().max() < 6 * 0.5
    assert sorted(step.order.tolist()) == list(range(6))


@torch.no_grad()
def test_autocast_keeps_the_sums_in_full_precision() -> None:
    torch.manual_seed(5)
    flow = VectorFlow(8, num_steps=2, hidden=16, clamp=3.0)
    y = torch.randn(40, 8)
    flow.initialize(y)
    exact = flow(y)
    with torch.autocast("cpu", torch.bfloat16):
        low = flow(y)
    for one, two in zip(low, exact, strict=True):
        assert isinstance(one, Tensor)
        assert one.dtype == torch.float32
        assert torch.allclose(one, two, atol=0.05)


@torch.no_grad()
def test_linear_step_whitens() -> None:
    torch.manual_seed(6)
    flow = VectorFlow(4, num_steps=0, hidden=8, clamp=3.0)
    assert not flow.is_initialized
    y = torch.randn(500, 4) @ torch.randn(4, 4) + 5
    flow.initialize(y)
    assert flow.is_initialized
    z, log_det = flow(y)
    assert torch.allclose(z.mean(dim=0), torch.zeros(4), atol=1e-4)
    covariance = torch.cov(y.T, correction=0)
    expected = flow.whitening.T @ covariance @ flow.whitening
    assert torch.allclose(torch.cov(z.T, correction=0), expected, atol=1e-4)
    variances = torch.linalg.eigvalsh(covariance)
    shrunk = variances / (variances + 0.01 * variances.mean())
    assert torch.allclose(torch.linalg.eigvalsh(expected), shrunk, atol=1e-3)
    assert log_det.item() == pytest.approx(torch.linalg.slogdet(flow.whitening).logabsdet.item(), abs=1e-4)
    flow.initialize(torch.cat((y[:3], y[:3])))  # fewer vectors than dimensions, each twice
    assert torch.isfinite(flow(y)[0]).all()
