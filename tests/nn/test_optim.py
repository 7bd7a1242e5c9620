"""Adam with a cosine or a one-cycle schedule against reference learning rates."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from anomaly.nn.optim import cosine_adam, one_cycle_adam


def learning_rates(configured: Any, *, num_steps: int) -> list[float]:
    """Learning rate of each step, and after the last step."""
    optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    assert configured["lr_scheduler"]["interval"] == "step"
    rates = [optimizer.param_groups[0]["lr"]]
    for _ in range(num_steps):
        optimizer.step()
        scheduler.step()
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


def test_cosine_starts_at_the_learning_rate_and_ends_at_zero() -> None:
    layer = nn.Linear(2, 2)
    configured: Any = cosine_adam(
        layer.parameters(), num_steps=8.0, learning_rate=0.1, betas=(0.5, 0.9), weight_decay=0.2
    )
    expected = [0.05 * (1 + math.cos(math.pi * step / 8)) for step in range(9)]
    assert learning_rates(configured, num_steps=8) == pytest.approx(expected)
    assert configured["optimizer"].defaults["betas"] == (0.5, 0.9)
    assert configured["optimizer"].defaults["weight_decay"] == 0.2


def test_cosine_scales_parameter_groups() -> None:
    one, other = nn.Linear(2, 2), nn.Linear(2, 2)
    groups: list[dict[str, Any]] = [{"params": one.parameters()}, {"params": other.parameters(), "lr": 1.0}]
    configured: Any = cosine_adam(groups, num_steps=2, learning_rate=0.1)
    configured["optimizer"].step()
    configured["lr_scheduler"]["scheduler"].step()
    assert [group["lr"] for group in configured["optimizer"].param_groups] == pytest.approx([0.05, 0.5])


@pytest.mark.parametrize("num_steps", [0, 1])
def test_trainings_without_steps_are_supported(num_steps: int) -> None:
    layer = nn.Linear(2, 2)
    assert cosine_adam(layer.parameters(), num_steps=num_steps, learning_rate=0.1)
    assert one_cycle_adam(layer.parameters(), num_steps=num_steps, learning_rate=0.1)


def test_one_cycle_rises_over_15_percent_of_the_steps() -> None:
    layer = nn.Linear(2, 2)
    rates = learning_rates(one_cycle_adam(layer.parameters(), num_steps=101, learning_rate=0.1), num_steps=100)
    assert max(rates) == pytest.approx(0.1, rel=1e-3)
    assert 13 <= max(range(101), key=rates.__getitem__) <= 16
    assert rates[0] == pytest.approx(0.004)
    assert rates[-1] < 1e-5


def test_gradients_change_the_weights() -> None:
    layer = nn.Linear(2, 2)
    before = layer.weight.detach().clone()
    configured: Any = cosine_adam(layer.parameters(), num_steps=4, learning_rate=0.1)
    layer(torch.ones(1, 2)).sum().backward()
    configured["optimizer"].step()
    assert (layer.weight - before).abs().max().item() == pytest.approx(0.1, rel=1e-3)
