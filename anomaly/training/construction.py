"""The construction of a calibration: which images train, which calibrate, and how each of these is scored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from anomaly.conformal.guarantee import Construction, GuaranteeKind
from anomaly.data.folders import Category, Sample
from anomaly.data.splits import Split, split
from anomaly.detectors.base import Detector
from anomaly.errors import DataError, UsageError
from anomaly.samplers.base import Sampler

CalibrationChoice = Literal["auto", "split", "leave_one_out", "cross"]
NUM_FOLDS = 5
"""Models of a cross calibration, each trained without a fifth of the images"""


def choose_construction(
    calibration: CalibrationChoice,
    *,
    model: Detector | Sampler,
    category: Category,
    tiled: bool,
    guarantee: GuaranteeKind,
) -> Construction:
    """Choose the construction; `auto` uses every image twice where the detector can leave an image out.

    Args:
        calibration: requested construction.
        model: untrained model.
        category: folder of the images.
        tiled: whether large images are scored in tiles or windows.
        guarantee: kind of guarantee; a 95 % bound needs images outside the training set.

    Raises:
        UsageError: the detector, the tiles, the guarantee or the data set exclude the requested construction.
    """
    supported = isinstance(model, Detector) and model.supports_leave_one_out
    reasons = {
        f"{type(model).__name__} is trained on all images at once": calibration == "leave_one_out" and not supported,
        f"{type(model).__name__} is a sampler": isinstance(model, Sampler),
        f"{type(model).__name__} stops early on images of its own": model.needs_stopping_images,
        "images are scored in tiles or windows": tiled,
        "guarantee `bound` needs images outside the training set": guarantee == "bound",
        f"{category.name} brings its own calibration images": bool(category.calibration_images),
    }
    against = [reason for reason, holds in reasons.items() if holds]
    if calibration == "auto":
        return "leave_one_out" if supported and not against else "split"
    if calibration != "split" and against:
        raise UsageError(f"calibration {calibration}: {against[0]}; give --calibration split")
    return calibration


def split_images(
    samples: Sequence[Sample],
    category: Category,
    part_groups: Mapping[Path, str],
    *,
    model: Detector | Sampler,
    construction: Construction,
    seed: int,
) -> Split:
    """Split good images; the category's own calibration images stay calibration images.

    With `leave_one_out` and `cross`, all images train and calibrate.

    Raises:
        DataError: too few images or groups.
    """
    given = set(category.calibration_images)
    if construction == "split":
        return split(
            [s for s in samples if s not in given],
            part_groups,
            seed=seed,
            stopping=model.needs_stopping_images,
            calibration_images=[s for s in samples if s in given],
        )
    ordered = tuple(sorted(samples, key=lambda sample: sample.path.as_posix()))
    least = 2 if construction == "leave_one_out" else NUM_FOLDS
    num = len({part_groups[s.path] for s in ordered})
    if num < least:
        raise DataError(
            f"{len(ordered)} good images of {num} different parts are too few for calibration {construction}:"
            f" give at least {least} images of different parts"
        )
    return Split(ordered, ordered, ())


def group_sizes(samples: Sequence[Sample], part_groups: Mapping[Path, str]) -> list[int]:
    """Count the images in the part group of each sample; empty where every image is a part of its own."""
    sizes = Counter(part_groups[s.path] for s in samples)
    return [sizes[part_groups[s.path]] for s in samples] if len(sizes) < len(samples) else []
