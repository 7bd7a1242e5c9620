"""What a calibration stands on: held-out goods, photographed anew or as the file keeps them, and what it says of images.

Values come in pairs, `score` and `map` (the maximum of an image's map), as arrays of one number an image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly.conformal.calibration import UNIT_MARGIN, Promise, Scale, fit_scale, limit_for, rank_for
from anomaly.errors import DataError
from anomaly.imaging.statistics import image_statistics
from anomaly.inference.artifact import MarkedRecord, Metadata
from anomaly.inference.scorer import OnnxScorer
from anomaly.recalibration.labelled_images import Marked
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
    """Goods that are exchangeable with goods to come: the promise is made on them."""

    scale: Scales
    """raw, by these images alone"""
    values: Values
    """ascending, calibrated by that scale"""


def from_photographs(values: Values, file: Scales, *, alpha: float, promise: Promise) -> HeldOut:
    """Take good photographs, whose values the file gave, as held-out goods.

    Raises:
        CalibrationError: as `fit_scale`.
    """
    raw = {part: values[part] * file[part].unit + file[part].zero for part in values}
    scale = {part: fit_scale(raw[part], alpha=alpha, promise=promise) for part in raw}
    return HeldOut(scale, {part: np.sort(carried(values[part], file[part], scale[part])) for part in values})


def from_file(metadata: Metadata, file: Scales) -> HeldOut:
    """Take the held-out goods that a file was calibrated on.

    Of their maps the file keeps the limit alone, at rank k of n. As goods are only added and the limit only rises, the k - 1
    images up to it need no place (-inf stands for it), and the n - k above it are put out of reach (inf): the limit with
    others added is then never too low, and exact where k = n.
    """
    promise: Promise = "bound" if metadata.promise == "bound" else "expected"
    scores = np.array(metadata.calibration.scores)
    limit = {
        "score": limit_for(scores, alpha=metadata.alpha, promise=promise),
        "map": metadata.marked.map_limit if metadata.marked else 1.0,
    }
    rank = rank_for(len(scores), alpha=metadata.alpha, promise=promise)
    peaks = np.full(len(scores), np.inf)
    peaks[:rank] = -np.inf
    peaks[rank - 1] = 1 / (1 + UNIT_MARGIN)
    return HeldOut(
        {part: Scale(file[part].zero, file[part].unit * limit[part]) for part in limit},
        {"score": scores / limit["score"], "map": peaks},
    )


def carried(values: NDArray[np.float64], before: Scale, after: Scale) -> NDArray[np.float64]:
    """Carry calibrated values from one affine scale to another."""
    return (values * before.unit + before.zero - after.zero) / after.unit


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
        limit=1.0, batch_size=8, max_pixels=max_pixels, num_threads=num_cpus(), large=scorer.metadata.tiling is not None
    )
    scores, peaks, statistics, bad = [], [], [], []
    with progress_bar(f"score the {what} images") as report:
        for done, scored in enumerate(score_images(items, scorers={ONLY: scorer}, settings=settings, seconds={})):
            if scored.row.score is None:
                bad.append(scored.row.message)
            elif sha256 and scored.row.sha256 != sha256[done]:
                bad.append(f"{scored.item.path}: other bytes than when it was marked, by its SHA-256; unset the mark")
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


def earlier(metadata: Metadata, marked: Marked) -> MarkedRecord:
    """Give the goods that were marked before and still count: those of which the new file of marks says nothing."""
    record = metadata.marked
    if record is None:
        return MarkedRecord([], [], [], 1.0)
    stays = [n for n, sha256 in enumerate(record.sha256) if sha256 not in marked.told]
    return MarkedRecord(
        sha256=[record.sha256[n] for n in stays],
        scores=[record.scores[n] for n in stays],
        peaks=[record.peaks[n] for n in stays],
        map_limit=record.map_limit,
    )
