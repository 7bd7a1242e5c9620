"""Exponential moving average of a network's weights, whose state travels in checkpoints.

As in J. Ho et al., "Denoising Diffusion Probabilistic Models", 2020, arXiv 2006.11239 (appendix B: decay 0.9999), with a decay
that rises from low values over the first updates, so that a short training does not average in its random beginning.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn


class Ema(nn.Module):
    """A second network that follows the first one's weights: a ← d · a + (1 - d) · w.

    After n updates d is min(decay, (1 + n) / (10 + n)); buffers, such as the statistics of a batch norm, are copied. The
    network that is averaged is not part of this module; its copy is, as `average`, in eval mode and without gradients.

    Args:
        network: what is followed, with its initial weights.
        decay: d in the long run, in [0, 1); about 1 / (1 - d) updates are averaged over.
    """

    num_updates: Tensor
    """() int64"""

    def __init__(self, network: nn.Module, *, decay: float) -> None:
        super().__init__()
        self.average = copy.deepcopy(network).requires_grad_(False).eval()
        self.decay = decay
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64))

    def train(self, mode: bool = True) -> Ema:
        """Stay in eval mode: the average is never trained."""
        super().train(mode)
        self.average.eval()
        return self

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Follow the weights of `network`, of the same architecture; to be called after each optimiser step."""
        self.num_updates += 1
        num = int(self.num_updates)
        decay = min(self.decay, (1 + num) / (10 + num))
        followed = [p.detach() for p in network.parameters()]
        torch._foreach_lerp_(list(self.average.parameters()), followed, 1 - decay)
        for kept, seen in zip(self.average.buffers(), network.buffers(), strict=True):
            kept.copy_(seen)

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """Run the averaged network."""
        return self.average(*inputs, **options)
