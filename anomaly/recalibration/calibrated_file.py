"""Write a recalibrated model file, scored again before it replaces the old one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from anomaly.conformal.calibration import CalibrationScores, GuaranteeKind, Scale, check_guarantee
from anomaly.errors import ParityError
from anomaly.imaging.image_file import read_image
from anomaly.imaging.statistics import summarise
from anomaly.inference.artifact import (
    CalibrationRecord,
    LabelledRecord,
    Metadata,
    calibration_tensors,
    graph_sha256,
    load_graph,
    set_calibration_tensors,
    write_model,
)
from anomaly.inference.difference import relative_difference
from anomaly.inference.golden import Golden, golden_batch, golden_png
from anomaly.inference.scorer import OnnxScorer, score_bytes
from anomaly.inference.session import Device
from anomaly.recalibration.calibration_set import (
    CalibrationFit,
    Scales,
    Values,
    earlier_labelled,
    fit_on_images,
    read_from_file,
    rescale,
    score_all,
)
from anomaly.recalibration.label_report import label_report
from anomaly.recalibration.labelled_images import NO_LABELS, LabelledImages
from anomaly.scoring.sources import Item
from anomaly.system.files import atomic_write
from anomaly.system.run_card import now, versions

MAX_DIFFERENCE = 1e-3
"""Largest allowed difference of the new file from the expected values, in calibrated units"""


def write_calibrated(
    model: Path,
    paths: Sequence[str],
    *,
    out: Path,
    source: str,
    group_sizes: Sequence[int] = (),
    excluded: list[str],
    alpha: float,
    guarantee: GuaranteeKind,
    device: Device,
    max_pixels: int,
    labelled: LabelledImages = NO_LABELS,
) -> dict[str, Any]:
    """Fit offset and scale on good images, scored by the file itself, and write the calibrated file.

    Args:
        model: .onnx file.
        paths: good images that were not used in training; without images, the calibration scores of the file are used.
        out: file to write; an existing file stays until the new file is verified.
        source: origin of the images, for the metadata; unused without images.
        group_sizes: images in the part group of each image; empty where every image is its own group; unused without images.
        excluded: names of excluded images; unused without images.
        alpha: share of good parts that may be rejected; without images, the alpha of the file.
        guarantee: kind of guarantee: alpha bounds the `expected` rate, or its 95 % upper `bound`; without images, the
            guarantee of the file.
        device: inference device; `auto` takes a usable GPU, else the CPU.
        max_pixels: largest width × height that is decoded.
        labelled: images of the file of labels.

    Returns:
        The certificate: the guarantee, and the difference of the new file from the expected values.

    Raises:
        DataError: an image that cannot be used.
        CalibrationError: too few images for alpha, or images with equal scores.
        ParityError: the new file does not give the expected values.
        OutputError: the file cannot be written.
    """
    scorer = OnnxScorer(model, device=device, num_threads=0)
    own_groups = CalibrationScores(np.zeros(len(paths)), group_sizes) if paths else scorer.calibration
    # refuse before scoring
    check_guarantee(own_groups.num_groups, alpha=alpha, guarantee=guarantee, construction=own_groups.construction)
    values, statistics = _score(scorer, paths, labelled, max_pixels=max_pixels)
    graph = load_graph(model)
    file = _scales(graph)
    if paths:
        own = {part: values[part][: len(paths)] for part in values}
        calibration = fit_on_images(own, file, group_sizes=group_sizes, alpha=alpha, guarantee=guarantee)
        earlier = LabelledRecord([], [], [], 1.0)
    else:
        calibration = read_from_file(scorer.metadata, file)
        earlier = earlier_labelled(scorer.metadata, relabelled=labelled.sha256)
    counted = slice(len(paths), len(paths) + labelled.num_good)  # labelled defects follow and have no effect
    labelled_good = {
        "score": np.array([*values["score"][counted], *earlier.scores]),
        "map": np.array([*values["map"][counted], *earlier.peaks]),
    }
    fit = _fit(calibration, labelled_good, file, alpha=alpha, guarantee=guarantee)
    expected = {part: rescale(values[part], file[part], fit.scale[part]) for part in fit.scale}
    set_calibration_tensors(
        graph, {f"{end}_{part}": getattr(fit.scale[part], end) for part in fit.scale for end in ("offset", "scale")}
    )
    golden = scorer.metadata.golden
    if paths:
        typical = paths[int(np.argsort(expected["score"][: len(paths)])[len(paths) // 2])]
        image = read_image(typical, white=scorer.metadata.white, max_pixels=max_pixels)
        golden = dataclasses.replace(golden, png=golden_png(image))
    before = scorer.metadata.calibration
    sha256 = [label.sha256 for label in labelled.labels[: labelled.num_good]] + earlier.sha256
    suffix = f" + {len(sha256)} labelled good ({labelled.source})" if labelled.labels else ""
    ranked = calibration.values["score"]
    guaranteed = ranked.guarantee(alpha=alpha, guarantee=guarantee)
    record = CalibrationRecord(
        num_images=ranked.num_images,
        num_part_groups=ranked.num_groups if paths else before.num_part_groups,
        scores=(ranked.scores / fit.threshold["score"]).tolist(),
        date=now(),
        source=(source if paths else before.source.partition(" + ")[0]) + suffix,
        excluded=excluded if paths else before.excluded,
        construction=ranked.construction,
        exact=ranked.exact,
        group_sizes=np.asarray(ranked.group_sizes, dtype=np.int64).tolist(),
    )
    labelled_record = _labelled_record(sha256, labelled_good, file, fit) if sha256 else None
    labelled_scores = np.array(labelled_record.scores if labelled_record else [])
    points = record.ranked().operating_points(guarantee=guarantee, labelled=labelled_scores)
    metadata = dataclasses.replace(
        scorer.metadata,
        alpha=alpha,
        guarantee=guarantee,
        calibration=record,
        image_stats=summarise(statistics) if paths else scorer.metadata.image_stats,
        versions=versions(),
        sha256=graph_sha256(graph),
        golden=_scored_golden(graph, golden, scorer.metadata),
        labelled=labelled_record,
    )
    with atomic_write(out) as candidate:  # the old file stays until the new file is verified
        write_model(candidate, graph, metadata)
        written = OnnxScorer(candidate, device=device, num_threads=0)
        again, _ = _score(written, paths, labelled, max_pixels=max_pixels)
        certificate: dict[str, Any] = {
            "kind": "calibration",
            "model": written.sha256,
            "previous_model": scorer.sha256,
            "provider": written.provider,
            "num_images": ranked.num_images,
            "num_part_groups": record.num_part_groups,
            "construction": ranked.construction,
            "exact": ranked.exact,
            "score": _difference(expected["score"], again["score"]),
            "map_maximum": _difference(expected["map"], again["map"]),
            "refused_above": MAX_DIFFERENCE,
            "alpha": alpha,
            "guarantee": guarantee,
            "expected_rate": guaranteed.expected_rate,
            "rate_bound": guaranteed.rate_bound,
            "guarantee_text": str(guaranteed),
            "rates": [asdict(point) for point in points],
            "source": metadata.calibration.source,
            "moved": _changes(file, fit.scale),
            "labels": label_report(
                labelled,
                num_earlier=len(earlier.sha256),
                before=values["score"][len(paths) :],
                after=again["score"][len(paths) :],
            ),
            "date": now(),
            "versions": versions(),
        }
        worst = max(certificate["score"]["max"], certificate["map_maximum"]["max"])
        if not worst <= MAX_DIFFERENCE:
            raise ParityError(
                f"the calibrated file differs from the expected values by {worst:.2g}, more than {MAX_DIFFERENCE:g}, and is"
                " not kept: calibrate on another device"
            )
    return certificate


@dataclass(frozen=True)
class _Fit:
    """Result of a fit, for `score` and `map`."""

    threshold: dict[str, float]
    """threshold in the units of the calibration scores"""
    scale: dict[str, Scale]
    """scale of the raw values; 1 is the threshold"""


def _fit(
    calibration: CalibrationFit, labelled_good: Values, file: Scales, *, alpha: float, guarantee: GuaranteeKind
) -> _Fit:
    threshold, scale = {}, {}
    for part, alone in calibration.scale.items():
        labelled = rescale(labelled_good[part], file[part], alone)
        threshold[part] = calibration.values[part].raised_threshold(labelled, alpha=alpha, guarantee=guarantee)
        scale[part] = Scale(alone.offset, alone.scale * threshold[part])
    return _Fit(threshold, scale)


def _score(
    scorer: OnnxScorer, paths: Sequence[str], labelled: LabelledImages, *, max_pixels: int
) -> tuple[Values, list[dict[str, float]]]:
    """Values of the good images, then of the labelled images; and the statistics of the good images."""
    good, statistics = score_all(list(map(Item, paths)), scorer, kind="good", max_pixels=max_pixels)
    sha256 = [label.sha256 for label in labelled.labels]
    others, _ = score_all(labelled.items, scorer, kind="labelled", sha256=sha256, max_pixels=max_pixels)
    return {part: np.concatenate([good[part], others[part]]) for part in good}, statistics


def _scored_golden(graph: onnx.ModelProto, golden: Golden, metadata: Metadata) -> Golden:
    """Golden image with its score and map maximum by the new graph."""
    batch = golden_batch(golden, fixed=metadata.fixed)
    scores = score_bytes(graph.SerializeToString(), batch, tiling=metadata.tiling)
    return dataclasses.replace(golden, score=float(scores.score[0]), map_maximum=float(scores.anomaly_map[0].max()))


def _labelled_record(sha256: list[str], labelled_good: Values, file: Scales, fit: _Fit) -> LabelledRecord:
    return LabelledRecord(
        sha256=sha256,
        scores=rescale(labelled_good["score"], file["score"], fit.scale["score"]).tolist(),
        peaks=rescale(labelled_good["map"], file["map"], fit.scale["map"]).tolist(),
        map_threshold=1 / fit.threshold["map"],
    )


def _scales(graph: onnx.ModelProto) -> dict[str, Scale]:
    tensors = calibration_tensors(graph)
    return {part: Scale(tensors[f"offset_{part}"], tensors[f"scale_{part}"]) for part in ("score", "map")}


def _changes(before: Scales, after: Scales) -> dict[str, Any]:
    """Offset, scale and threshold of score and map before and after, in raw units."""
    return {
        part: {
            "offset": [before[part].offset, after[part].offset],
            "scale": [before[part].scale, after[part].scale],
            "threshold": [scale.offset + scale.scale for scale in (before[part], after[part])],
        }
        for part in after
    }


def _difference(expected: NDArray[np.float64], actual: NDArray[np.float64]) -> dict[str, float]:
    difference = relative_difference(expected, actual)
    return {"max": float(difference.max()), "mean": float(difference.mean())}
