"""What the samplers share that are fitted in closed form, on all images at once."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from anomaly.nn.batch import Batch
from anomaly.samplers.base import Sampler


class OnePassSampler(Sampler):
    """Base of the samplers without gradient descent: one pass over the images, then `learn`.

    What they learned are buffers, so that checkpoint and export work unchanged. All training images are in memory for the
    fit, at the network's size.

    Args:
        options: those of `Sampler`, without epochs.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, epochs=1)
        self.automatic_optimization = False

    @abstractmethod
    def learn(self, x: Tensor) -> None:
        """Fit on images (N, 3, h, w) in [0, 1]."""

    def training_step(self, batch: Batch, index: int) -> None:
        """Nothing: the fit needs all images at once, and is made at the end of training."""

    def configure_optimizers(self) -> None:
        """None: nothing descends a gradient."""

    def on_train_end(self) -> None:
        """Fit on all training images, then measure the map's scale."""
        self.learn(torch.cat([x.cpu() for x in self.training_inputs()]))
        super().on_train_end()
