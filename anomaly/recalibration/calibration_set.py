"""Calibration scores of a recalibration: from new good images, or from the model file.

Values come in pairs: `score`, and `map`, the maximum of the anomaly map. Each is an array with one number per image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly.conformal.calibration import SCALE_MARGIN, CalibrationScores, rank_scores
from anomaly.conformal.guarantee import GuaranteeKind
from anomaly.conformal.scale import Scale, fit_scale
from anomaly.errors import DataError
from anomaly.imaging.statistics import image_statistics
from anomaly.inference.artifact import LabelledRecord, Metadata
from anomaly.inference.scorer import OnnxScorer
from anomaly.scoring.pipeline import score_images
from anomaly.scoring.settings import DEFAULT_PRODUCT, Settings
from anomaly.scoring.sources import Item
from anomaly.system.processors import num_cpus
from anomaly.system.progress import progress_bar

Values = dict[str, NDArray[np.float64]]
"""`score` and `map` -> one number per image"""
Scales = Mapping[str, Scale]
"""`score` and `map` -> scale"""


@dataclass(frozen=True)
class CalibrationFit:
    """Good images that are exchangeable with future good images; the guarantee rests on them."""

    scale: Scales
    """scale of the raw values, fitted on these images alone"""
    values: Mapping[str, CalibrationScores]
    """`score` and `map` -> values calibrated by that scale"""


def fit_on_images(
    values: Values, file: Scales, *, group_sizes: Sequence[int], alpha: float, guarantee: GuaranteeKind
) -> CalibrationFit:
    """Fit the scales on good images.

    Args:
        values: values of the images, calibrated by the file.
        file: scales of the file.
        group_sizes: images in the part group of each image; empty where every image is its own group.
        alpha: share of good parts that may be rejected.
        guarantee: kind of guarantee: alpha bounds the `expected` rate, or its 95 % upper `bound`.

    Raises:
        CalibrationError: see `fit_scale`.
    """
    scale, calibrated = {}, {}
    for part, own in values.items():
        raw = own * file[part].scale + file[part].offset
        scale[part] = fit_scale(raw, alpha=alpha, guarantee=guarantee, group_sizes=group_sizes)
        calibrated[part] = rank_scores(rescale(own, file[part], scale[part]), group_sizes=group_sizes)
    return CalibrationFit(scale, calibrated)


def read_from_file(metadata: Metadata, file: Scales) -> CalibrationFit:
    """Restore the calibration scores of a file.

    The file keeps all scores, but only the threshold of the maps, at rank k of n. Good images are only added, and the
    threshold only rises. The k - 1 lower maps are therefore set to -inf and the n - k higher ones to inf. The threshold
    with more images is then never too low, and exact for k = n. The order of the part groups among the maps is not stored
    either: the scores' order stands for it.

    Args:
        metadata: metadata of the file.
        file: scales of the file.
    """
    guarantee: GuaranteeKind = "bound" if metadata.guarantee == "bound" else "expected"
    stored = metadata.calibration.ranked()
    position = stored.position(alpha=metadata.alpha, guarantee=guarantee)
    threshold = {
        "score": stored.threshold(alpha=metadata.alpha, guarantee=guarantee),
        "map": metadata.labelled.map_threshold if metadata.labelled else 1.0,
    }
    peaks = np.full(stored.num_images, np.inf)
    peaks[:position] = -np.inf
    peaks[position] = 1 / (1 + SCALE_MARGIN)
    return CalibrationFit(
        {part: Scale(file[part].offset, file[part].scale * threshold[part]) for part in threshold},
        {"score": replace(stored, scores=stored.scores / threshold["score"]), "map": replace(stored, scores=peaks)},
    )


def rescale(values: NDArray[np.float64], before: Scale, after: Scale) -> NDArray[np.float64]:
    """Convert calibrated values from one scale to another."""
    return (values * before.scale + before.offset - after.offset) / after.scale


def score_all(
    items: Sequence[Item], scorer: OnnxScorer, *, kind: str, sha256: Sequence[str] | None = None, max_pixels: int
) -> tuple[Values, list[dict[str, Any]]]:
    """Score images; an image that cannot be used is an error.

    Args:
        items: images to score.
        scorer: model that scores the images.
        kind: adjective of the images, for messages.
        sha256: expected SHA-256 of each image; None for no check.
        max_pixels: largest width × height that is decoded.

    Returns:
        Calibrated values, and the statistics of each image.

    Raises:
        DataError: an image that cannot be used, or with another SHA-256.
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
    scores, peaks, statistics, errors = [], [], [], []
    with progress_bar(f"score the {kind} images") as report:
        scored_images = score_images(items, scorers={DEFAULT_PRODUCT: scorer}, settings=settings, seconds={})
        for number, scored in enumerate(scored_images):
            if scored.row.score is None:
                errors.append(scored.row.message)
            elif sha256 is not None and scored.row.sha256 != sha256[number]:
                errors.append(f"{scored.item.path}: its SHA-256 has changed since it was labelled; remove the label")
            else:
                scores.append(scored.row.score)
                peaks.append(float(scored.anomaly_map.max()))
                statistics.append(image_statistics(scored.image))
            report(number + 1, len(items))
    if errors:
        raise DataError(
            f"{len(errors)} of {len(items)} {kind} images cannot be used, first: {errors[0]}; remove them and try again"
        )
    return {"score": np.array(scores, dtype=np.float64), "map": np.array(peaks, dtype=np.float64)}, statistics


def earlier_labelled(metadata: Metadata, *, relabelled: frozenset[str]) -> LabelledRecord:
    """Labelled good images of earlier calibrations that still count.

    Args:
        metadata: metadata of the file.
        relabelled: SHA-256 of all images in the new file of labels; these are left out.
    """
    record = metadata.labelled
    if record is None:
        return LabelledRecord([], [], [], 1.0)
    kept = [n for n, sha256 in enumerate(record.sha256) if sha256 not in relabelled]
    return LabelledRecord(
        sha256=[record.sha256[n] for n in kept],
        scores=[record.scores[n] for n in kept],
        peaks=[record.peaks[n] for n in kept],
        map_threshold=record.map_threshold,
    )
