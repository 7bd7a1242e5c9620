"""Layer norm over a whole map."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from anomaly.detectors.fastflow import MapNorm


def random_parameters(module: nn.Module, *, deviation: float) -> None:
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(deviation * torch.randn(parameter.shape, generator=generator))


def test_map_norm_is_layer_norm() -> None:
    norm = MapNorm((6, 9, 7))
    random_parameters(norm, deviation=1.0)
    y = 3 * torch.randn(4, 6, 9, 7) + 5
    expected = functional.layer_norm(y, (6, 9, 7), norm.weight, norm.bias, 1e-5)
    assert torch.allclose(norm(y), expected, atol=1e-5, rtol=0)
