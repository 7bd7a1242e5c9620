"""The cost of fewer bits: verdicts that flip, and the ranking of drawn defects, of a converted file beside the fp32 file.

No test image is read. The good images are the calibration images, and the defects are drawn onto them. Each file is
calibrated through its own graph. A model with leave-one-out calibration scores each of these images without its part group.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from anomaly.data.synthetic import DEFECTS, draw_defect, estimate_foreground
from anomaly.errors import ParityError, UsageError
from anomaly.inference.difference import relative_difference
from anomaly.inference.scorer import Scorer
from anomaly.metrics import auroc
from anomaly.system.progress import Report

FLIP_MARGIN = 1e-3
"""Distance of a score from the threshold up to which a changed verdict is not a flip"""
SIZES = (0.06, 0.12, 0.24)
"""Longest extent of a drawn defect over the shorter side of the image"""
CONTRASTS = (0.3, 0.6)
"""Largest change of a drawn defect in hundreds of grey levels"""
NUM_DRAWINGS = 2
"""Drawings of each kind, size and contrast"""


class Bounds(NamedTuple):
    """Largest loss that a converted file may have.

    Args:
        auroc_loss: AUROC of drawn defects against calibration images, before minus after.
        flips: share of verdicts that change, in [0, 1].
    """

    auroc_loss: float
    flips: float


def draw_defects(
    images: Sequence[NDArray[np.uint8]], *, num_each: int, seed: int
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Draw defects of every kind, size and contrast onto images (H, W, 3) in turn; invisible ones are left out.

    Args:
        images: good images, (H, W, 3) uint8 RGB.
        num_each: drawings of each kind, size and contrast.
        seed: seed of places and shapes.

    Yields:
        Number of the good image, and the image with a defect.
    """
    foregrounds = [estimate_foreground(image) for image in images]
    plan = [(kind, size, contrast) for kind in DEFECTS for size in SIZES for contrast in CONTRASTS]
    for number, (kind, size, contrast) in enumerate(one for one in plan for _ in range(num_each)):
        at = number % len(images)
        rng = np.random.default_rng((seed, number))
        try:
            drawn, _ = draw_defect(images[at], kind, size=size, contrast=contrast, foreground=foregrounds[at], rng=rng)
        except UsageError:
            continue
        yield at, drawn


def compare_verdicts(
    reference: Sequence[Scorer],
    converted: Sequence[Scorer],
    *,
    good: Sequence[NDArray[np.uint8]],
    seed: int,
    report: Report,
) -> dict[str, Any]:
    """Score calibration images, and defects drawn onto them, with both files.

    Args:
        reference: scorer of each calibration image by the model in fp32.
        converted: scorer of each calibration image by the model of fewer bits, calibrated through its own graph.
        good: calibration images, (H, W, 3) uint8 RGB.
        seed: seed of the drawn defects.
        report: progress function.

    Returns:
        Numbers of images and flips, AUROC of both files, and the change of the scores.
    """
    defects = list(draw_defects(good, num_each=NUM_DRAWINGS, seed=seed))
    images = [*enumerate(good), *defects]
    scores: list[tuple[float, float]] = []
    for at, image in images:
        first, second = (float(scorers[at].score(image[None]).score[0]) for scorers in (reference, converted))
        scores.append((first, second))
        report(len(scores), len(images))
    before, after = np.array(scores).T
    labels = np.arange(len(images)) >= len(good)
    flips = ((before > 1) != (after > 1)) & (np.abs(before - 1) > FLIP_MARGIN)
    change = relative_difference(before, after)
    return {
        "num_good": len(good),
        "num_drawn_defects": len(defects),
        "seed": seed,
        "num_flips": int(flips.sum()),
        "num_flips_of_good": int(flips[: len(good)].sum()),
        "share_of_flips": float(flips.mean()),
        "auroc_before": auroc(before, labels),
        "auroc_after": auroc(after, labels),
        "score": {
            "max": float(change.max()),
            "mean": float(change.mean()),
            "max_of_good": float(change[: len(good)].max()),
        },
    }


def check_bounds(comparison: dict[str, Any], *, bounds: Bounds, name: str) -> None:
    """Refuse a converted file that loses more than the bounds allow.

    Args:
        comparison: result of `compare_verdicts`.
        bounds: largest loss.
        name: name of the file for the message.

    Raises:
        ParityError: more flips, or a larger loss of AUROC.
    """
    loss = comparison["auroc_before"] - comparison["auroc_after"]
    if comparison["share_of_flips"] > bounds.flips or not loss <= bounds.auroc_loss:
        raise ParityError(
            f"{name} loses too much: {summary(comparison)}. At most {bounds.flips:.1%} of verdicts may flip and"
            f" {100 * bounds.auroc_loss:.2g} points of AUROC may be lost: take fp16 or fp32, or allow more with"
            " --max-flips and --max-auroc-loss"
        )


def summary(comparison: dict[str, Any]) -> str:
    """Write the result of `compare_verdicts` in one line."""
    num = comparison["num_good"] + comparison["num_drawn_defects"]
    return (
        f"AUROC of drawn defects {100 * comparison['auroc_before']:.2f} before,"
        f" {100 * comparison['auroc_after']:.2f} after, {comparison['num_flips']} of {num} verdicts flip"
    )
