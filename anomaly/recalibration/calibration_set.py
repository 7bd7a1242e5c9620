"""What a calibration stands on: calibration images, imaged anew or as the file keeps them, and what it says of images.

Values come in pairs, `score` and `map` (the maximum of an image's map), as arrays of one number an image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly.conformal.calibration import SCALE_MARGIN, GuaranteeKind, Scale, fit_scale, rank_for, threshold_for
from anomaly.errors import DataError
from anomaly.imaging.statistics import image_statistics
from anomaly.inference.artifact import LabelledRecord, Metadata
from anomaly.inference.scorer import OnnxScorer
from anomaly.recalibration.labelled_images import Labelled
from anomaly.scoring.pipeline import ONLY, Settings, score_images
from anomaly.scoring.sources import Item
from anomaly.system.processors import num_cpus
from anomaly.system.progress import progress_bar

Values = dict[str, NDArray[np.float64]]
"""`score` and `map` of images"""
Scales = Mapping[str, Scale]
"""of `score` and `map`"""


@dataclass(frozen=True)
class HeldOut:
    """Good images that are exchangeable with good images to come: the guarantee is made on them."""

    scale: Scales
    """raw, by these images alone"""
    values: Values
    """ascending, calibrated by that scale"""


def from_images(values: Values, file: Scales, *, alpha: float, guarantee: GuaranteeKind) -> HeldOut:
    """Take good images, whose values the file gave, as calibration images.

    Raises:
        CalibrationError: as `fit_scale`.
    """
    raw = {part: values[part] * file[part].scale + file[part].offset for part in values}
    scale = {part: fit_scale(raw[part], alpha=alpha, guarantee=guarantee) for part in raw}
    return HeldOut(scale, {part: np.sort(carried(values[part], file[part], scale[part])) for part in values})


def from_file(metadata: Metadata, file: Scales) -> HeldOut:
    """Take the calibration images that a file was calibrated on.

    Of their maps the file keeps the threshold alone, at rank k of n. As good images are only added and the threshold only rises, the k - 1
    images up to it need no place (-inf stands for it), and the n - k above it are put out of reach (inf): the threshold with
    others added is then never too low, and exact where k = n.
    """
    guarantee: GuaranteeKind = "bound" if metadata.guarantee == "bound" else "expected"
    scores = np.array(metadata.calibration.scores)
    threshold = {
        "score": threshold_for(scores, alpha=metadata.alpha, guarantee=guarantee),
        "map": metadata.labelled.map_threshold if metadata.labelled else 1.0,
    }
    rank = rank_for(len(scores), alpha=metadata.alpha, guarantee=guarantee)
    peaks = np.full(len(scores), np.inf)
    peaks[:rank] = -np.inf
    peaks[rank - 1] = 1 / (1 + SCALE_MARGIN)
    return HeldOut(
        {part: Scale(file[part].offset, file[part].scale * threshold[part]) for part in threshold},
        {"score": scores / threshold["score"], "map": peaks},
    )


def carried(values: NDArray[np.float64], before: Scale, after: Scale) -> NDArray[np.float64]:
    """Carry calibrated values from one affine scale to another."""
    return (values * before.scale + before.offset - after.offset) / after.scale


def say(
    items: Sequence[Item], scorer: OnnxScorer, *, what: str, sha256: Sequence[str], max_pixels: int
) -> tuple[Values, list[dict[str, Any]]]:
    """Score images that calibrate.

    Args:
        items: the images.
        scorer: the model.
        what: the images are, for messages.
        sha256: that their bytes have; empty where any may.
        max_pixels: largest width × height that is decoded.

    Returns:
        Calibrated values, and the statistics of each image.

    Raises:
        DataError: images that cannot be used, or that have other bytes.
    """
    if not items:
        return {"score": np.zeros(0), "map": np.zeros(0)}, []
    settings = Settings(
        threshold=1.0,
        batch_size=8,
        max_pixels=max_pixels,
        num_threads=num_cpus(),
        large=scorer.metadata.tiling is not None,
    )
    scores, peaks, statistics, bad = [], [], [], []
    with progress_bar(f"score the {what} images") as report:
        for done, scored in enumerate(score_images(items, scorers={ONLY: scorer}, settings=settings, seconds={})):
            if scored.row.score is None:
                bad.append(scored.row.message)
            elif sha256 and scored.row.sha256 != sha256[done]:
                bad.append(
                    f"{scored.item.path}: other bytes than when it was labelled, by its SHA-256; unset the label"
                )
            else:
                scores.append(scored.row.score)
                peaks.append(float(scored.anomaly_map.max()))
                statistics.append(image_statistics(scored.image))
            report(done + 1, len(items))
    if bad:
        raise DataError(
            f"{len(bad)} of {len(items)} {what} images cannot be used, first: {bad[0]}; take them out and try again"
        )
    return {"score": np.array(scores, dtype=np.float64), "map": np.array(peaks, dtype=np.float64)}, statistics


def earlier(metadata: Metadata, labelled: Labelled) -> LabelledRecord:
    """Give the good images that were labelled before and still count: those of which the new file of labels says nothing."""
    record = metadata.labelled
    if record is None:
        return LabelledRecord([], [], [], 1.0)
    stays = [n for n, sha256 in enumerate(record.sha256) if sha256 not in labelled.told]
    return LabelledRecord(
        sha256=[record.sha256[n] for n in stays],
        scores=[record.scores[n] for n in stays],
        peaks=[record.peaks[n] for n in stays],
        map_threshold=record.map_threshold,
    )
