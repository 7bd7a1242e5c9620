"""What fewer bits cost: verdicts that flip and the ranking of drawn defects, the converted file against the one in fp32.

Neither test images nor defects of the customer's are looked at: the good images are the calibration images, the defects are
drawn onto them, and each file is calibrated through itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from anomaly.data.synthetic import DEFECTS, draw_defect, estimate_foreground
from anomaly.errors import ParityError, UsageError
from anomaly.inference.scorer import Scorer, relative_difference
from anomaly.metrics import auroc
from anomaly.system.progress import Report

FLIP_MARGIN = 1e-3
"""Verdicts closer to the threshold than this do not count as flips"""
SIZES = (0.06, 0.12, 0.24)
"""Longest extent of a drawn defect over the shorter side of the image"""
CONTRASTS = (0.3, 0.6)
"""Largest change in hundreds of grey levels"""
NUM_EACH = 2
"""Drawings of each kind, size and contrast"""


class Bounds(NamedTuple):
    """What a converted file may lose.

    Args:
        auroc_loss: of drawn defects against calibration images, before minus after.
        flips: share of verdicts that change.
    """

    auroc_loss: float
    flips: float


def draw_defects(images: Sequence[NDArray[np.uint8]], *, num_each: int, seed: int) -> Iterator[NDArray[np.uint8]]:
    """Draw every kind of defect in every size and contrast onto images (H, W, 3) in turn.

    A defect that shows nowhere on the part is left out.
    """
    foregrounds = [estimate_foreground(image) for image in images]
    plan = [(kind, size, contrast) for kind in DEFECTS for size in SIZES for contrast in CONTRASTS]
    for number, (kind, size, contrast) in enumerate(one for one in plan for _ in range(num_each)):
        at = number % len(images)
        rng = np.random.default_rng((seed, number))
        try:
            yield draw_defect(images[at], kind, size=size, contrast=contrast, foreground=foregrounds[at], rng=rng)[0]
        except UsageError:
            continue


def compare_verdicts(
    reference: Scorer, converted: Scorer, *, good: Sequence[NDArray[np.uint8]], seed: int, report: Report
) -> dict[str, Any]:
    """Score calibration images, and defects drawn onto them, with both files.

    Args:
        reference: in fp32.
        converted: calibrated through itself.
        good: calibration images, (H, W, 3) uint8 RGB.
        seed: of the drawn defects.
        report: progress.

    Returns:
        Numbers of images and flips, AUROC of both, and how far the scores of good images moved.
    """
    defects = list(draw_defects(good, num_each=NUM_EACH, seed=seed))
    images = [*good, *defects]
    said: list[tuple[float, float]] = []
    for image in images:
        said.append((float(reference.score(image[None]).score[0]), float(converted.score(image[None]).score[0])))
        report(len(said), len(images))
    before, after = np.array(said).T
    labels = np.arange(len(images)) >= len(good)
    flips = ((before > 1) != (after > 1)) & (np.abs(before - 1) > FLIP_MARGIN)
    moved = relative_difference(before, after)
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
            "max": float(moved.max()),
            "mean": float(moved.mean()),
            "max_of_good": float(moved[: len(good)].max()),
        },
    }


def refuse_beyond(found: dict[str, Any], *, bounds: Bounds, name: str) -> None:
    """Refuse a converted file that loses more than it may.

    Raises:
        ParityError: more flips or more AUROC than the bounds; the text has the numbers.
    """
    loss = found["auroc_before"] - found["auroc_after"]
    if found["share_of_flips"] > bounds.flips or not loss <= bounds.auroc_loss:
        raise ParityError(f"{name} loses too much and is not kept: {summary(found)}; at most {bounds.flips:.1%} of verdicts"
                          f" may flip and {100 * bounds.auroc_loss:.2g} points be lost: take fp16 or fp32, or allow more by"
                          " --max-flips and --max-auroc-loss")  # fmt: skip


def summary(found: dict[str, Any]) -> str:
    """Tell in a line what `compare_verdicts` found."""
    num = found["num_good"] + found["num_drawn_defects"]
    return (
        f"AUROC of drawn defects {100 * found['auroc_before']:.2f} before, {100 * found['auroc_after']:.2f} after,"
        f" {found['num_flips']} of {num} verdicts flip"
    )
