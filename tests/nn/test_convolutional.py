"""Encoder-decoder networks: shapes, gradients and skip connections."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from anomaly.nn.convolutional import StridedAutoencoder, UNet


def check_gradients(module: nn.Module, loss: Tensor) -> None:
    loss.backward()
    without_gradient = [name for name, p in module.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not without_gradient


@pytest.mark.parametrize("size", [64, 128, 256])
def test_autoencoders_keep_the_shape_and_train_all_parameters(size: int) -> None:
    x = torch.rand(2, 3, size, size)
    for network in (UNet(widths=(4, 8, 8, 8, 8), skips=2), StridedAutoencoder(size=size, latent=6)):
        y = network(x)
        assert y.shape == x.shape
        assert y.min() >= 0
        assert y.max() <= 1
        check_gradients(network, ((y - x) ** 2).mean())


def test_strided_autoencoder_has_the_layers_of_the_paper() -> None:
    code = StridedAutoencoder(size=128, latent=100).encoder(torch.rand(1, 3, 128, 128))
    assert code.shape == (1, 100, 1, 1)
    widths = [m.out_channels for m in StridedAutoencoder(size=256, latent=500).encoder if isinstance(m, nn.Conv2d)]
    assert widths == [32, 32, 32, 32, 64, 64, 128, 64, 32, 500]


@pytest.mark.parametrize("skips", [0, 4])
def test_unet_has_skip_connections_only_at_coarse_levels(skips: int) -> None:
    """Without skip connections, a fine pattern reaches the head only through the bottleneck."""
    torch.manual_seed(0)
    network = UNet(widths=(4, 8, 8, 8, 8), skips=skips).eval()
    for up in network.up:
        nn.init.zeros_(up.weight)  # disconnects the bottleneck
    x = torch.rand(1, 3, 64, 64)
    difference = (network(x) - network(1 - x)).abs().max()
    assert (difference > 0) == (skips == 4)
