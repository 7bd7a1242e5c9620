"""Which defects would be caught: synthetic ones of known kind, size and contrast, drawn onto calibration images.

A probability-of-detection study as in non-destructive testing (MIL-HDBK-1823A, 2009): the share rejected at the calibrated
threshold, by what the defect is. The images are real and held out; only the defects are drawn.
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
"""Longest extent over the shorter side of the image"""
CONTRASTS = (0.15, 0.3, 0.6)
"""Largest change in hundreds of grey levels"""
LONGEST_SIDE = 1024
"""Larger images are reduced to this before a defect is drawn: the network sees fewer pixels still"""


@dataclass(frozen=True)
class Trial:
    """One drawn defect and what the model said."""

    kind: str
    size: float
    contrast: float
    image: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    anomaly_map: NDArray[np.float32]
    score: float


def draw_and_score(
    images: Sequence[NDArray[np.uint8]], *, scorer: Scorer, num_each: int, seed: int, report: Report
) -> list[Trial]:
    """Draw every kind of defect in every size and contrast onto images in turn, and score them.

    Args:
        images: good ones that were not trained on, (H, W, 3) uint8 RGB of any sizes.
        scorer: the model.
        num_each: drawings per kind, size and contrast.
        seed: of places and shapes.
        report: progress.

    Returns:
        One trial per drawing; a defect that shows nowhere on the part (too faint on that spot) is left out.
    """
    reduced = [_reduce(p) for p in images]
    foregrounds = [estimate_foreground(p) for p in reduced]
    plan = [(k, s, c) for k in DEFECTS for s in SIZES for c in CONTRASTS for _ in range(num_each)]
    trials = []
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
        said = scorer.score(image[None])
        trials.append(Trial(kind, size, contrast, image, mask, said.anomaly_map[0], float(said.score[0])))
    return trials


def caught_rates(trials: Sequence[Trial], *, threshold: float) -> dict[tuple[str, float, float], Rate]:
    """Share of trials above the threshold, by kind, size and contrast."""
    cells: dict[tuple[str, float, float], list[bool]] = {}
    for trial in trials:
        cells.setdefault((trial.kind, trial.size, trial.contrast), []).append(trial.score > threshold)
    return {cell: Rate(sum(hits), len(hits)) for cell, hits in cells.items()}


def _reduce(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    scale = LONGEST_SIDE / max(image.shape[:2])
    if scale >= 1:
        return image
    size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
