"""Toy training: a real training on small synthetic parts in memory, on the CPU."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import cv2
import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from anomaly.detectors.base import Detector
from anomaly.errors import AnomalyError
from anomaly.nn.batch import Batch
from anomaly.nn.trainable import Trainable

HEIGHT, WIDTH = 72, 88
"""Size of the synthetic images in pixels"""
NUM_TRAIN, NUM_FEW = 24, 8
"""Training images for the detection of a defect, and for comparisons between trainings"""


Model = TypeVar("Model", bound=Trainable)
"""Detector or sampler"""


class ContractError(AnomalyError, AssertionError):
    """Violation of the contract; the message names the check, the finding and the remedy."""


def draw_parts(num: int, *, seed: int) -> Tensor:
    """Draw good images of a washer and a bar on a dark background, with random shift, brightness and noise.

    Returns:
        (num, 72, 88, 3) uint8 RGB.
    """
    images = []
    for n in range(num):
        rng = np.random.default_rng((seed, n))
        image = np.full((HEIGHT, WIDTH, 3), (50, 45, 55), dtype=np.float64)
        x, y = int(rng.integers(-2, 3)), int(rng.integers(-2, 3))
        cv2.circle(image, (32 + x, 36 + y), 22, (165, 150, 140), -1)
        cv2.circle(image, (32 + x, 36 + y), 8, (70, 65, 75), -1)
        cv2.rectangle(image, (62 + x, 12 + y), (72 + x, 60 + y), (120, 140, 160), -1)
        image = cv2.GaussianBlur(image, (0, 0), 1.0) * rng.uniform(0.95, 1.05) + rng.normal(0, 3, image.shape)
        images.append(np.clip(np.rint(image), 0, 255).astype(np.uint8))
    return torch.from_numpy(np.stack(images))


def draw_defects(good: Tensor) -> Tensor:
    """Copy images (N, 72, 88, 3) and draw a large red patch on each."""
    defect = good.clone()
    defect[:, 26:50, 36:66] = torch.tensor([250, 40, 60], dtype=torch.uint8)
    return defect


def region_of_interest() -> Tensor:
    """Region of interest (72, 88) bool that cuts through the parts."""
    mask = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    mask[8:58, 6:62] = True
    return mask


def as_batch(image: Tensor, *, name: str) -> Batch:
    """Batch of good images (N, H, W, 3); their paths start with `name`."""
    num = len(image)
    label, mask = torch.zeros(num, dtype=torch.bool), torch.zeros(image.shape[:3], dtype=torch.bool)
    return Batch(image, mask, label, [f"{name}{n}" for n in range(num)])


def unusual_images() -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Yield names and images (n, H, W, 3) with extreme values or unusual sizes."""
    rng = np.random.default_rng(0)
    yield "black", np.zeros((2, HEIGHT, WIDTH, 3), dtype=np.uint8)
    yield "white", np.full((2, HEIGHT, WIDTH, 3), 255, dtype=np.uint8)
    yield "noise of an odd size", rng.integers(0, 256, (3, 131, 57, 3), dtype=np.uint8)
    yield "one pixel", np.full((1, 1, 1, 3), 128, dtype=np.uint8)
    yield "long and narrow", rng.integers(0, 256, (1, 9, 301, 3), dtype=np.uint8)


class _Gradients(pl.Callback):
    """Record the parameters that got a gradient."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for name, parameter in pl_module.named_parameters():
            if name not in self.names and parameter.grad is not None and bool(parameter.grad.any()):
                self.names.add(name)


def train_on(model: Trainable, image: Tensor) -> set[str]:
    """Train a detector or sampler on images in memory as `anomaly fit` does, with its own epochs and batch size.

    Args:
        model: detector or sampler, in eval mode and without a trainer afterwards.
        image: (N, H, W, 3) uint8 RGB; a last batch of a single image is dropped.

    Returns:
        Names of the parameters that got a gradient.
    """
    size = model.batch_size
    batches = [as_batch(image[n : n + size], name=f"{n}/") for n in range(0, len(image), size)]
    if len(batches) > 1 and len(batches[-1].path) == 1:
        batches.pop()
    stopping = [as_batch(draw_parts(4, seed=77), name="stopping/")] if model.needs_stopping_images else []
    gradients = _Gradients()
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.filterwarnings("ignore", module="pytorch_lightning")  # advice on loaders and loggers
        logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
        trainer = pl.Trainer(
            max_epochs=model.epochs, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, callbacks=[gradients],
        )  # fmt: skip
        trainer.fit(model, _loader(batches), _loader(stopping) if stopping else None)
    model.trainer = None
    model.eval()
    return gradients.names


def _loader(batches: list[Batch]) -> DataLoader[Any]:
    return DataLoader(batches, batch_size=None, collate_fn=lambda batch: batch)  # type: ignore[arg-type]


@dataclass
class Builder(Generic[Model]):
    """Build the detector or sampler under check from a fixed seed, and train it once for all checks."""

    cls: type[Model]
    options: dict[str, Any]
    """constructor arguments for a training of about two seconds"""
    with_gradient: set[str] = field(default_factory=set, init=False)
    """names of the parameters that got a gradient in a training"""
    _fitted: dict[int, Model] = field(default_factory=dict, init=False)

    def build(self) -> Model:
        """Build an untrained model."""
        pl.seed_everything(0, verbose=False)
        return self.cls(**self.options)

    def train(self, image: Tensor, *, roi: Tensor | None) -> Model:
        """Build a model and train it on images (N, H, W, 3), inside a region of interest (H, W)."""
        model = self.build()
        if roi is not None:
            model.preprocess.set_roi(roi)
        self.with_gradient |= train_on(model, image)
        return model

    def fitted(self, num_images: int) -> Model:
        """Return a copy of the model trained on this number of good images."""
        if num_images not in self._fitted:
            self._fitted[num_images] = self.train(draw_parts(num_images, seed=num_images), roi=None)
        return copy.deepcopy(self._fitted[num_images])

    def calibrated(self: Builder[Detector]) -> Detector:
        """Return a copy of the trained detector, calibrated on 20 good images at alpha 0.1."""
        detector = self.fitted(NUM_TRAIN)
        detector.calibrate([as_batch(draw_parts(20, seed=1), name="")], alpha=0.1, guarantee="expected")
        return detector

    def requires(self, check: str) -> Callable[[bool, str, str], None]:
        """Return a function that raises a `ContractError` of this check if a condition is false.

        Its arguments are the condition, the finding if it is false, and the remedy.
        """

        def require(condition: bool, finding: str, remedy: str) -> None:
            if not condition:
                raise ContractError(f"{self.cls.__name__} fails {check!r}: {finding}; {remedy}")

        return require
