"""`Ema`: exponential moving average of a network's weights.

J. Ho et al., "Denoising Diffusion Probabilistic Models", 2020, arXiv 2006.11239 (appendix B: decay 0.9999). What differs: the
decay rises from low values over the first updates. A short training then does not average its random initial weights.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn


class Ema(nn.Module):
    """Average a of a network's weights w: a ← d · a + (1 - d) · w.

    After n updates d is min(decay, (1 + n) / (10 + n)). Buffers, such as batch-norm statistics, are copied. The module
    contains the average, as `average` in eval mode and without gradients, but not the network itself.

    Args:
        network: network with its initial weights.
        decay: final decay d in [0, 1); the average covers about 1 / (1 - d) updates.
    """

    num_updates: Tensor
    """() int64"""

    def __init__(self, network: nn.Module, *, decay: float) -> None:
        super().__init__()
        self.average = copy.deepcopy(network).requires_grad_(False).eval()
        self.decay = decay
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64))

    def train(self, mode: bool = True) -> Ema:
        """Keep the average in eval mode."""
        super().train(mode)
        self.average.eval()
        return self

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Update the average from `network`; call it after each optimisation step."""
        self.num_updates += 1
        num = int(self.num_updates)
        decay = min(self.decay, (1 + num) / (10 + num))
        weights = [p.detach() for p in network.parameters()]
        torch._foreach_lerp_(list(self.average.parameters()), weights, 1 - decay)
        for average, buffer in zip(self.average.buffers(), network.buffers(), strict=True):
            average.copy_(buffer)

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """Run the averaged network."""
        return self.average(*inputs, **options)
