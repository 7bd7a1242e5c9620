"""`OnePassSampler`: base of the samplers that are fitted in closed form on all images at once."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from anomaly.nn.batch import Batch
from anomaly.samplers.base import Sampler


class OnePassSampler(Sampler):
    """Base of the samplers without gradient descent: one pass over the images, then `learn`.

    The fitted values are buffers, so that checkpoints and export work unchanged. The fit holds all training images in memory,
    at the network's size.

    Args:
        options: options of `Sampler` except `epochs`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, epochs=1)
        self.automatic_optimization = False

    @abstractmethod
    def learn(self, x: Tensor) -> None:
        """Fit on images (N, 3, h, w) in [0, 1]."""

    def training_step(self, batch: Batch, index: int) -> None:
        """Do nothing; the fit needs all images and happens at the end of training."""

    def configure_optimizers(self) -> None:
        """Return no optimiser."""

    def on_train_end(self) -> None:
        """Fit on all training images, then measure the map's scale."""
        self.learn(torch.cat([x.cpu() for x in self.training_inputs()]))
        super().on_train_end()
