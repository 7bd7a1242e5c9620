"""Synthetic plates with two holes: the small data that most tests share."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from anomaly.imaging.image_file import write_png

NUM_TRAIN, NUM_TEST_GOOD, NUM_TEST_DEFECT = 40, 6, 6
HEIGHT, WIDTH = 72, 88


def draw_part(seed: int) -> NDArray[np.uint8]:
    """A bright plate with two holes on a dark ground, a little moved and lit differently by its seed."""
    rng = np.random.default_rng(seed)
    image = np.full((HEIGHT, WIDTH, 3), 40, dtype=np.float64)
    x, y = 12 + rng.integers(0, 4), 10 + rng.integers(0, 4)
    cv2.rectangle(image, (int(x), int(y)), (int(x) + 60, int(y) + 48), (170, 160, 150), -1)
    for dx in (15, 45):
        cv2.circle(image, (int(x) + dx, int(y) + 24), 7, (60, 60, 70), -1)
    image = cv2.GaussianBlur(image, (0, 0), 1.0) * rng.uniform(0.95, 1.05) + rng.normal(0, 3, image.shape)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def draw_scratch(image: NDArray[np.uint8], seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A thick bright line across the plate, and its mask (0 or 255)."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(image.shape[:2], dtype=np.uint8)
    start, end = (
        (int(rng.integers(20, 40)), int(rng.integers(15, 50))),
        (int(rng.integers(45, 70)), int(rng.integers(15, 50))),
    )
    cv2.line(mask, start, end, 255, 4)
    defect = image.copy()
    defect[mask > 0] = (250, 90, 80)
    return defect, mask


def make_category(root: Path) -> Path:
    """Write a category in MVTec layout."""
    for n in range(NUM_TRAIN):
        write_png(_made(root / "train/good") / f"{n:03d}.png", draw_part(n))
    for n in range(NUM_TEST_GOOD):
        write_png(_made(root / "test/good") / f"{n:03d}.png", draw_part(1000 + n))
    for n in range(NUM_TEST_DEFECT):
        defect, mask = draw_scratch(draw_part(2000 + n), n)
        write_png(_made(root / "test/scratch") / f"{n:03d}.png", defect)
        write_png(_made(root / "ground_truth/scratch") / f"{n:03d}_mask.png", mask)
    return root


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


TINY = {
    "size": 64,
    "width": 8,
    "epochs": 25,
    "batch_size": 8,
    "smooth": 3,
    "loss": "l2",
    "score": "l2",
    "learning_rate": 3e-3,
}
"""Options of an autoencoder that trains in a second"""
TINY_BANK = {
    "size": (64, 64),
    "backbones": ("resnet10t",),
    "layers": (1, 2),
    "weights": "none",
    "dimensions": 32,
    "bank_size": 100,
    "num_candidates": 1000,
    "num_projected": 1000,
}
"""Options of a memory bank that fits in a second"""
