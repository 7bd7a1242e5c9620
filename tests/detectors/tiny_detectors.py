"""Small options of every detector, and a training loop without a trainer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anomaly.detectors.base import Detector
from anomaly.nn.batch import Batch
from anomaly.training.fitted_model import build_detector
from tests.plates import draw_part

FEATURES = {"size": 64, "backbone": "resnet10t", "layers": (1, 2), "weights": "none"}
OPTIONS: dict[str, dict[str, Any]] = {
    "autoencoder": {
        "size": 64, "width": 8, "smooth": 3, "loss": "l2", "score": "l2", "epochs": 10, "batch_size": 8, "learning_rate": 3e-3
    },
    "riad": {
        "size": 64, "width": 8, "regions": (4, 8), "smooth": 3, "epochs": 10, "batch_size": 8, "learning_rate": 3e-3
    },
    "ganomaly": {
        "size": 64, "width": 4, "latent": 16, "measure": "l1", "smooth": 3, "epochs": 10, "batch_size": 8,
        "learning_rate": 3e-3
    },
    "fanogan": {
        "size": 16, "width": 8, "latent": 8, "measure": "l1", "smooth": 3, "epochs": 60, "batch_size": 8, "critic_steps": 1,
        "learning_rate": 3e-3, "encoder_learning_rate": 3e-3
    },
    "differnet": {
        **FEATURES, "layers": (1,), "hidden": 32, "num_steps": 2, "num_rotations": 1, "train_rotations": 2,
        "learning_rate": 3e-3, "epochs": 10, "batch_size": 8
    },
    "fastflow": {**FEATURES, "num_steps": 2, "epochs": 10},
    "anomalib": {
        "model": "Padim", "options": {"n_features": 20}, "size": 64, "weights": "none", "inner_epochs": 2, "batch_size": 8
    },
    "frozen_features": {**FEATURES, "num_patches": 400, "smooth": 3},
    "memory_bank": {
        "size": (64, 64), "backbones": ("resnet10t",), "layers": (1, 2), "weights": "none", "dimensions": 32,
        "bank_size": 100, "num_candidates": 1000, "num_projected": 1000
    },
}  # fmt: skip
"""Options with which each detector trains in about two seconds and detects a large red patch"""


def build(name: str, **options: Any) -> Detector:
    torch.manual_seed(0)
    return build_detector(name, OPTIONS[name] | options)


def parts(num: int, *, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.stack([draw_part(seed + n) for n in range(num)]))


def batch_of(image: Tensor, *, name: str = "") -> Batch:
    num = len(image)
    mask = torch.zeros(image.shape[:3], dtype=torch.bool)
    return Batch(image, mask, torch.zeros(num, dtype=torch.bool), [f"{name}{n}" for n in range(num)])


def without_trainer(detector: Detector, *, num_steps: int) -> Detector:
    """Replace the trainer for `training_step` and `configure_optimizers`."""
    detector.log = lambda *_, **__: None  # type: ignore[method-assign,assignment]
    detector._trainer = SimpleNamespace(estimated_stepping_batches=num_steps)  # type: ignore[assignment]
    return detector


def fit(detector: Detector, image: Tensor, *, num_epochs: int, batch_size: int = 8) -> list[float]:
    """Train like a trainer, and return the losses."""
    batches = [batch_of(part, name=f"{n}/") for n, part in enumerate(image.split(batch_size))]
    without_trainer(detector, num_steps=num_epochs * len(batches)).train()
    configured: Any = detector.configure_optimizers()
    losses = []
    for _ in range(num_epochs):
        for index, batch in enumerate(batches):
            loss = detector.training_step(batch, index)
            assert isinstance(loss, Tensor)
            configured["optimizer"].zero_grad()
            loss.backward()
            configured["optimizer"].step()
            configured["lr_scheduler"]["scheduler"].step()
            losses.append(loss.item())
    detector.on_fit_end()
    detector.eval()
    return losses
