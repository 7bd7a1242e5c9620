"""`Trainable`: a Lightning module that learns from raw images, the base of detectors and of samplers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from anomaly.errors import TrainingError
from anomaly.nn.batch import Batch
from anomaly.nn.feature_cache import FeatureCache
from anomaly.nn.preprocess import Preprocess


class Trainable(pl.LightningModule):
    """Lightning module with its own preprocessing, its own training options and reproducible random numbers.

    Args:
        preprocess: conversion of uint8 images into the network's input.
        epochs: passes over the training images.
        batch_size: images per optimisation step.
    """

    provenance: dict[str, str]
    """origin and hash of pretrained weights; empty without pretrained weights"""
    needs_stopping_images = False
    """Whether a part of the training images is split off as early-stopping validation images"""
    max_gradient_norm: float | None = None
    """Bound of the gradient's norm; None for no clipping"""

    def __init__(self, *, preprocess: Preprocess, epochs: int, batch_size: int) -> None:
        super().__init__()
        self.preprocess = preprocess
        self.provenance = {}
        self.epochs = epochs
        self.batch_size = batch_size

    def preprocessed(self, batch: Batch) -> Tensor:
        """Move a batch's images to this device and preprocess them in full precision, (N, 3, h, w) float32."""
        image = batch.image
        with torch.autocast(self.device.type, enabled=False):  # as in calibration and in the exported graph
            x: Tensor = self.preprocess(
                [single.to(self.device) for single in image] if isinstance(image, list) else image.to(self.device)
            )
        return x

    def training_inputs(self) -> Iterator[Tensor]:
        """Yield the network's inputs (N, 3, h, w) of one more pass over the training images."""
        loader: Any = self.trainer.train_dataloader
        for batch in itertools.islice(loader, int(self.trainer.num_training_batches)):
            yield self.preprocessed(batch)

    def log(self, name: str, value: Any, *args: Any, **options: Any) -> None:
        """Log a term of the loss. Every term is logged before the optimisation step.

        Raises:
            TrainingError: the value is not finite; no weight has changed yet.
        """
        number = float(value.detach() if isinstance(value, Tensor) else value)
        if not math.isfinite(number):
            raise TrainingError(f"the loss term {name!r} became {number} in epoch {self.current_epoch + 1}")
        super().log(name, value, *args, **options)

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, *_: object, **__: object) -> None:
        """Clip the gradient's norm at `max_gradient_norm`."""
        if self.max_gradient_norm is not None:
            self.clip_gradients(optimizer, gradient_clip_val=self.max_gradient_norm, gradient_clip_algorithm="norm")

    def on_fit_end(self) -> None:
        """Drop the cached images and features."""
        for value in vars(self).values():
            if isinstance(value, FeatureCache):
                value.clear()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the state of every random generator."""
        checkpoint["random"] = {name: generator.get_state() for name, generator in self._generators().items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the state of every random generator."""
        for name, generator in self._generators().items():
            generator.set_state(checkpoint["random"][name])

    def _generators(self) -> dict[str, torch.Generator]:
        return {name: value for name, value in vars(self).items() if isinstance(value, torch.Generator)}
