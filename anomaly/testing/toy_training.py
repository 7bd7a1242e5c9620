"""A short trial of a detector: a real training on small made-up parts in memory, on the CPU."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

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

HEIGHT, WIDTH = 72, 88
"""Of the made-up images"""
NUM_TRAIN, NUM_FEW = 24, 8
"""Images of the fit that has to find a defect, and of those that are only compared with one another"""


class ContractError(AnomalyError, AssertionError):
    """A detector that does not keep the contract; its text says which check met what, and what to do."""


def draw_parts(num: int, *, seed: int) -> Tensor:
    """Draw good images of a washer and a bar on dark ground, a little moved, lit and noisy each in its own way.

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
    """Copies of images (N, 72, 88, 3) with a large patch of a colour that no part has."""
    defect = good.clone()
    defect[:, 26:50, 36:66] = torch.tensor([250, 40, 60], dtype=torch.uint8)
    return defect


def region_of_interest() -> Tensor:
    """A region (72, 88) bool that cuts through the parts."""
    mask = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    mask[8:58, 6:62] = True
    return mask


def as_batch(image: Tensor, *, name: str) -> Batch:
    """A batch of good images (N, H, W, 3), whose paths begin with `name`."""
    num = len(image)
    label, mask = torch.zeros(num, dtype=torch.bool), torch.zeros(image.shape[:3], dtype=torch.bool)
    return Batch(image, mask, label, [f"{name}{n}" for n in range(num)])


def unusual_images() -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Draw images (n, H, W, 3) that show what images hide: extremes, odd sizes, a single pixel, each with its name."""
    rng = np.random.default_rng(0)
    yield "black", np.zeros((2, HEIGHT, WIDTH, 3), dtype=np.uint8)
    yield "white", np.full((2, HEIGHT, WIDTH, 3), 255, dtype=np.uint8)
    yield "noise of an odd size", rng.integers(0, 256, (3, 131, 57, 3), dtype=np.uint8)
    yield "one pixel", np.full((1, 1, 1, 3), 128, dtype=np.uint8)
    yield "long and narrow", rng.integers(0, 256, (1, 9, 301, 3), dtype=np.uint8)


class _Gradients(pl.Callback):
    """Notes which parameters ever got a gradient."""

    def __init__(self) -> None:
        self.seen: set[str] = set()

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for name, parameter in pl_module.named_parameters():
            if name not in self.seen and parameter.grad is not None and bool(parameter.grad.any()):
                self.seen.add(name)


def train_on(detector: Detector, image: Tensor) -> set[str]:
    """Train a detector on images in memory as `anomaly fit` does, with its own epochs and batch size.

    Args:
        detector: left in eval mode, without its trainer.
        image: (N, H, W, 3) uint8 RGB; a last batch of a single image is left out.

    Returns:
        Names of the parameters that got a gradient.
    """
    size = detector.batch_size
    batches = [as_batch(image[n : n + size], name=f"{n}/") for n in range(0, len(image), size)]
    if len(batches) > 1 and len(batches[-1].path) == 1:
        batches.pop()
    stopping = [as_batch(draw_parts(4, seed=77), name="stopping/")] if detector.needs_stopping_images else []
    gradients = _Gradients()
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.filterwarnings("ignore", module="pytorch_lightning")  # advice on loaders and loggers
        logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
        trainer = pl.Trainer(
            max_epochs=detector.epochs, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, callbacks=[gradients],
        )  # fmt: skip
        trainer.fit(detector, _loader(batches), _loader(stopping) if stopping else None)
    detector.trainer = None
    detector.eval()
    return gradients.seen


def _loader(batches: list[Batch]) -> DataLoader[Any]:
    return DataLoader(batches, batch_size=None, collate_fn=lambda batch: batch)  # type: ignore[arg-type]


@dataclass
class Builder:
    """Builds the detector under check, always from the same seed, and trains it once for all checks."""

    cls: type[Detector]
    options: dict[str, Any]
    """of its constructor: small ones, with which it trains in a second or two"""
    with_gradient: set[str] = field(default_factory=set, init=False)
    """names of the parameters that got a gradient in a fit"""
    _kept: dict[int, Detector] = field(default_factory=dict, init=False)

    def build(self) -> Detector:
        """A new one, not trained."""
        pl.seed_everything(0, verbose=False)
        return self.cls(**self.options)

    def train(self, image: Tensor, *, roi: Tensor | None) -> Detector:
        """A new one, trained on images (N, H, W, 3), within a region of interest (H, W)."""
        detector = self.build()
        if roi is not None:
            detector.preprocess.set_roi(roi)
        self.with_gradient |= train_on(detector, image)
        return detector

    def fitted(self, num_images: int) -> Detector:
        """A copy of one that was trained on so many good images."""
        if num_images not in self._kept:
            self._kept[num_images] = self.train(draw_parts(num_images, seed=num_images), roi=None)
        return copy.deepcopy(self._kept[num_images])

    def calibrated(self) -> Detector:
        """A copy of a trained one, calibrated on 20 good images at alpha 0.1."""
        detector = self.fitted(NUM_TRAIN)
        detector.calibrate([as_batch(draw_parts(20, seed=1), name="")], alpha=0.1, guarantee="expected")
        return detector

    def requires(self, check: str) -> Callable[[bool, str, str], None]:
        """Give a function that raises a `ContractError` of this check where its condition does not hold.

        Its arguments are the condition, what was met where it does not hold, and what to do then.
        """

        def require(condition: bool, met: str, remedy: str) -> None:
            if not condition:
                raise ContractError(f"{self.cls.__name__} fails {check!r}: {met}; {remedy}")

        return require
