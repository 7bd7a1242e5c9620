"""Probability of detection: the share of drawn defects of known kind, size and contrast that a model rejects.

A probability-of-detection study as in non-destructive testing (MIL-HDBK-1823A, 2009), at the calibrated threshold. The images
are real calibration images; only the defects are drawn. An image in a memory bank is scored without its own part group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from anomaly.data.synthetic import DEFECTS, draw_defect, estimate_foreground
from anomaly.errors import UsageError
from anomaly.inference.scorer import Scorer
from anomaly.metrics import Rate
from anomaly.system.progress import Report

SIZES = (0.03, 0.06, 0.12, 0.24)
"""Longest extent of a defect over the shorter side of the image"""
CONTRASTS = (0.15, 0.3, 0.6)
"""Largest change of a defect in hundreds of grey levels"""
LONGEST_SIDE = 1024
"""Side in pixels to which larger images are reduced before drawing; networks see fewer pixels"""


@dataclass(frozen=True)
class DrawnDefect:
    """One drawn defect with the model's outputs."""

    kind: str
    number: int
    """number of the image that it is drawn on"""
    size: float
    """longest extent over the shorter side of the image"""
    contrast: float
    """largest change in hundreds of grey levels"""
    image: NDArray[np.uint8]
    """(H, W, 3) RGB"""
    mask: NDArray[np.bool_]
    """(H, W)"""
    anomaly_map: NDArray[np.float32]
    """(h, w) calibrated"""
    score: float
    """calibrated"""


def draw_and_score(
    images: Sequence[NDArray[np.uint8]], *, scorers: Sequence[Scorer], num_each: int, seed: int, report: Report
) -> list[DrawnDefect]:
    """Draw defects of every kind, size and contrast onto images in turn, and score them.

    Args:
        images: good images, (H, W, 3) uint8 RGB of any sizes.
        scorers: scorer of each image and its drawings; it did not train on the image.
        num_each: drawings of each kind, size and contrast.
        seed: seed of places and shapes.
        report: progress function.

    Returns:
        The drawn defects; defects too faint to be visible at their place are left out.
    """
    reduced = [_reduce(image) for image in images]
    foregrounds = [estimate_foreground(image) for image in reduced]
    plan = [(k, s, c) for k in DEFECTS for s in SIZES for c in CONTRASTS for _ in range(num_each)]
    drawn = []
    for number, (kind, size, contrast) in enumerate(plan):
        at = number % len(reduced)
        rng = np.random.default_rng((seed, number))
        report(number + 1, len(plan))
        try:
            image, mask = draw_defect(
                reduced[at], kind, size=size, contrast=contrast, foreground=foregrounds[at], rng=rng
            )
        except UsageError:
            continue
        scores = scorers[at].score(image[None])
        drawn.append(DrawnDefect(kind, at, size, contrast, image, mask, scores.anomaly_map[0], float(scores.score[0])))
    return drawn


def detection_rates(drawn: Sequence[DrawnDefect], *, threshold: float) -> dict[tuple[str, float, float], Rate]:
    """Share of drawn defects above the threshold, by kind, size and contrast."""
    cells: dict[tuple[str, float, float], list[bool]] = {}
    for defect in drawn:
        cells.setdefault((defect.kind, defect.size, defect.contrast), []).append(defect.score > threshold)
    return {cell: Rate(sum(hits), len(hits)) for cell, hits in cells.items()}


def _reduce(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    scale = LONGEST_SIDE / max(image.shape[:2])
    if scale >= 1:
        return image
    size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
