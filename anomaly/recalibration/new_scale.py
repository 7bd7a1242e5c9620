"""The new scale of a calibrated file: fit, record and comparison of old and new."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from anomaly.conformal.guarantee import GuaranteeKind
from anomaly.conformal.scale import Scale
from anomaly.errors import ParityError
from anomaly.inference.artifact import LabelledRecord, Metadata, calibration_tensors, set_calibration_tensors
from anomaly.inference.difference import relative_difference
from anomaly.inference.golden import Golden, golden_batch
from anomaly.inference.scorer import score_bytes
from anomaly.recalibration.calibration_set import CalibrationFit, Scales, Values, rescale

MAX_DIFFERENCE = 1e-3
"""Largest allowed difference of a new file from the expected values, in calibrated units"""


@dataclass(frozen=True)
class NewScale:
    """Result of a fit, for `score` and `map`."""

    threshold: dict[str, float]
    """threshold in the units of the calibration scores"""
    scale: dict[str, Scale]
    """scale of the raw values; 1 is the threshold"""


def fit_new_scale(
    calibration: CalibrationFit, labelled_good: Values, file: Scales, *, alpha: float, guarantee: GuaranteeKind
) -> NewScale:
    """Fit the scale of a calibration, with a threshold that labelled good images can raise.

    Args:
        calibration: calibration images.
        labelled_good: values of labelled good images, calibrated by the file.
        file: scales of the file.
        alpha: share of good parts that may be rejected.
        guarantee: kind of guarantee.
    """
    threshold, scale = {}, {}
    for part, alone in calibration.scale.items():
        labelled = rescale(labelled_good[part], file[part], alone)
        threshold[part] = calibration.values[part].raised_threshold(labelled, alpha=alpha, guarantee=guarantee)
        scale[part] = Scale(alone.offset, alone.scale * threshold[part])
    return NewScale(threshold, scale)


def scored_golden(graph: onnx.ModelProto, golden: Golden, metadata: Metadata) -> Golden:
    """Golden image with its score and map maximum by the new graph."""
    batch = golden_batch(golden, fixed=metadata.fixed)
    scores = score_bytes(graph.SerializeToString(), batch, tiling=metadata.tiling)
    return dataclasses.replace(golden, score=float(scores.score[0]), map_maximum=float(scores.anomaly_map[0].max()))


def labelled_record(sha256: list[str], labelled_good: Values, file: Scales, fit: NewScale) -> LabelledRecord:
    """Build the record of labelled good images.

    Args:
        sha256: hashes of the image files.
        labelled_good: their values, calibrated by the file.
        file: scales of the file.
        fit: new scale.
    """
    return LabelledRecord(
        sha256=sha256,
        scores=rescale(labelled_good["score"], file["score"], fit.scale["score"]).tolist(),
        peaks=rescale(labelled_good["map"], file["map"], fit.scale["map"]).tolist(),
        map_threshold=1 / fit.threshold["map"],
    )


def set_scales(graph: onnx.ModelProto, scales: Scales) -> None:
    """Write the scales of `score` and `map` into a graph, in place."""
    set_calibration_tensors(
        graph, {f"{end}_{part}": getattr(scales[part], end) for part in scales for end in ("offset", "scale")}
    )


def file_scales(graph: onnx.ModelProto) -> dict[str, Scale]:
    """Read the scales of `score` and `map` from a graph."""
    tensors = calibration_tensors(graph)
    return {part: Scale(tensors[f"offset_{part}"], tensors[f"scale_{part}"]) for part in ("score", "map")}


def scale_changes(before: Scales, after: Scales) -> dict[str, Any]:
    """Offset, scale and threshold of score and map before and after, in raw units."""
    return {
        part: {
            "offset": [before[part].offset, after[part].offset],
            "scale": [before[part].scale, after[part].scale],
            "threshold": [scale.offset + scale.scale for scale in (before[part], after[part])],
        }
        for part in after
    }


def differences(expected: NDArray[np.float64], actual: NDArray[np.float64]) -> dict[str, float]:
    """Largest and mean relative difference of a new file from the expected values."""
    difference = relative_difference(expected, actual)
    return {"max": float(difference.max()), "mean": float(difference.mean())}


def refuse_difference(certificate: dict[str, Any]) -> None:
    """Refuse a new file whose scores or map maxima differ from the expected values by more than `MAX_DIFFERENCE`.

    Raises:
        ParityError: the difference is larger, or not a number.
    """
    worst = max(certificate["score"]["max"], certificate["map_maximum"]["max"])
    if not worst <= MAX_DIFFERENCE:
        raise ParityError(
            f"the new file differs from the expected values by {worst:.2g}, more than {MAX_DIFFERENCE:g}, and is not"
            " kept: use another device"
        )
