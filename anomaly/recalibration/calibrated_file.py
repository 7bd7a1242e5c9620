"""Write a recalibrated model file, scored again before it replaces the old one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from anomaly.conformal.calibration import CalibrationScores
from anomaly.conformal.guarantee import GuaranteeKind, check_guarantee
from anomaly.conformal.outliers import Outliers, num_outliers
from anomaly.imaging.image_file import read_image
from anomaly.imaging.statistics import summarise
from anomaly.inference.artifact import (
    CalibrationRecord,
    LabelledRecord,
    graph_sha256,
    load_graph,
    write_model,
)
from anomaly.inference.golden import golden_png
from anomaly.inference.scorer import OnnxScorer
from anomaly.inference.session import Device
from anomaly.recalibration.calibration_set import (
    Values,
    earlier_labelled,
    fit_on_images,
    read_from_file,
    rescale,
    score_all,
)
from anomaly.recalibration.label_report import label_report
from anomaly.recalibration.labelled_images import NO_LABELS, LabelledImages
from anomaly.recalibration.new_scale import (
    MAX_DIFFERENCE,
    differences,
    file_scales,
    fit_new_scale,
    labelled_record,
    refuse_difference,
    scale_changes,
    scored_golden,
    set_scales,
)
from anomaly.scoring.sources import Item
from anomaly.system.files import atomic_write
from anomaly.system.run_card import now, versions


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
    file = file_scales(graph)
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
    fit = fit_new_scale(calibration, labelled_good, file, alpha=alpha, guarantee=guarantee)
    expected = {part: rescale(values[part], file[part], fit.scale[part]) for part in fit.scale}
    set_scales(graph, fit.scale)
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
    record_of_labels = labelled_record(sha256, labelled_good, file, fit) if sha256 else None
    labelled_scores = np.array(record_of_labels.scores if record_of_labels else [])
    outliers = None
    if num := num_outliers(ranked.scores) if paths else 0:
        highest = np.argsort(expected["score"][: len(paths)], kind="stable")[::-1][:num]
        positions = range(ranked.num_images - num, ranked.num_images)
        without = record.ranked().threshold_without(positions, alpha=alpha, guarantee=guarantee)
        outliers = Outliers(tuple(Path(paths[n]).name for n in highest), without)
    points = record.ranked().operating_points(guarantee=guarantee, labelled=labelled_scores)
    metadata = dataclasses.replace(
        scorer.metadata,
        alpha=alpha,
        guarantee=guarantee,
        calibration=record,
        image_stats=summarise(statistics) if paths else scorer.metadata.image_stats,
        versions=versions(),
        sha256=graph_sha256(graph),
        golden=scored_golden(graph, golden, scorer.metadata),
        labelled=record_of_labels,
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
            "score": differences(expected["score"], again["score"]),
            "map_maximum": differences(expected["map"], again["map"]),
            "refused_above": MAX_DIFFERENCE,
            "alpha": alpha,
            "guarantee": guarantee,
            "expected_rate": guaranteed.expected_rate,
            "rate_bound": guaranteed.rate_bound,
            "guarantee_text": str(guaranteed),
            "rates": [asdict(point) for point in points],
            "outliers": None if outliers is None else asdict(outliers),
            "source": metadata.calibration.source,
            "moved": scale_changes(file, fit.scale),
            "labels": label_report(
                labelled,
                num_earlier=len(earlier.sha256),
                before=values["score"][len(paths) :],
                after=again["score"][len(paths) :],
            ),
            "date": now(),
            "versions": versions(),
        }
        refuse_difference(certificate)
    return certificate


def _score(
    scorer: OnnxScorer, paths: Sequence[str], labelled: LabelledImages, *, max_pixels: int
) -> tuple[Values, list[dict[str, float]]]:
    """Values of the good images, then of the labelled images; and the statistics of the good images."""
    good, statistics = score_all(list(map(Item, paths)), scorer, kind="good", max_pixels=max_pixels)
    sha256 = [label.sha256 for label in labelled.labels]
    others, _ = score_all(labelled.items, scorer, kind="labelled", sha256=sha256, max_pixels=max_pixels)
    return {part: np.concatenate([good[part], others[part]]) for part in good}, statistics
