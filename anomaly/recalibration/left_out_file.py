"""Write a model file that is calibrated by leave-one-out: each image of its bank is scored without its part group."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from anomaly.conformal.calibration import CalibrationScores
from anomaly.conformal.guarantee import GuaranteeKind, check_guarantee
from anomaly.inference.artifact import CalibrationRecord, LabelledRecord, Metadata, graph_sha256, write_model
from anomaly.inference.bank import BankFile
from anomaly.inference.bank_record import BankRecord
from anomaly.inference.scorer import OnnxScorer
from anomaly.inference.session import Device
from anomaly.recalibration.calibration_set import CalibrationFit, Values, fit_on_images, rescale
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
from anomaly.system.files import atomic_write
from anomaly.system.progress import progress_bar
from anomaly.system.run_card import now, versions

Read = Callable[[int], NDArray[np.uint8]]
"""Function that reads an image of the bank, (H, W, 3) uint8 RGB, by its number"""
NUM_CHECKED = 8
"""Largest number of images that the written file scores again"""


def part_group_sizes(bank: BankRecord) -> list[int]:
    """Count the images in the part group of each image; empty where every image is its own group."""
    sizes = Counter(bank.part_groups)
    return [sizes[group] for group in bank.part_groups] if len(sizes) < len(bank.part_groups) else []


def left_out_values(bank: BankFile, images: Collection[int], *, read: Read) -> Values:
    """Score images of a bank without their part groups; calibrated by the file.

    Args:
        bank: opened file.
        images: numbers of the images.
        read: function that reads an image.
    """
    score, peak = [], []
    with progress_bar("leave each image out") as report:
        for number in images:
            found = bank.score(read(number)[None], without=bank.bank.members(number))
            score.append(float(found.score[0]))
            peak.append(float(found.anomaly_map[0].max()))
            report(len(score), len(images))
    return {"score": np.array(score), "map": np.array(peak)}


def write_left_out(
    graph: onnx.ModelProto,
    metadata: Metadata,
    values: Mapping[str, NDArray[np.float64]],
    *,
    out: Path,
    source: str,
    excluded: list[str],
    alpha: float,
    guarantee: GuaranteeKind,
    device: Device,
    checked: Collection[int],
    read: Read,
) -> dict[str, Any]:
    """Fit offset and scale on left-out values, and write the file. Images labelled in earlier calibrations still count.

    Args:
        graph: graph with its bank; its scales are replaced.
        metadata: metadata with the record of that bank.
        values: left-out values of all images of the bank, calibrated by the graph.
        out: file to write; an existing file stays until the new file is verified.
        source: origin of the images.
        excluded: names of excluded images.
        alpha: share of good parts that may be rejected.
        guarantee: kind of guarantee; a 95 % bound is refused.
        device: device for the check of the new file.
        checked: numbers of the images that the new file scores again.
        read: function that reads these images.

    Returns:
        The certificate: the guarantee, and the difference of the new file from the expected values.

    Raises:
        CalibrationError: too few part groups for alpha, or equal scores.
        ParityError: the new file does not give the expected values.
        OutputError: the file cannot be written.
    """
    bank, file = _bank(metadata), file_scales(graph)
    sizes = part_group_sizes(bank)
    num_groups = len(set(bank.part_groups))
    check_guarantee(num_groups, alpha=alpha, guarantee=guarantee, construction="leave_one_out")
    exact = metadata.calibration.exact
    split = fit_on_images(dict(values), file, group_sizes=sizes, alpha=alpha, guarantee=guarantee)
    ranked = {
        part: CalibrationScores(one.scores, one.group_sizes, "leave_one_out", exact)
        for part, one in split.values.items()
    }
    earlier = metadata.labelled or LabelledRecord([], [], [], 1.0)
    labelled_good = {"score": np.array(earlier.scores), "map": np.array(earlier.peaks)}
    fit = fit_new_scale(CalibrationFit(split.scale, ranked), labelled_good, file, alpha=alpha, guarantee=guarantee)
    set_scales(graph, fit.scale)
    scores = CalibrationScores(
        ranked["score"].scores / fit.threshold["score"], ranked["score"].group_sizes, "leave_one_out", exact
    )
    guaranteed = scores.guarantee(alpha=alpha, guarantee=guarantee)
    record = CalibrationRecord(
        num_images=scores.num_images,
        num_part_groups=num_groups,
        scores=scores.scores.tolist(),
        date=now(),
        source=source,
        excluded=excluded,
        construction="leave_one_out",
        exact=exact,
        group_sizes=np.asarray(scores.group_sizes, dtype=np.int64).tolist(),
    )
    raw = {part: (values[part] * file[part].scale + file[part].offset).tolist() for part in file}
    new = dataclasses.replace(
        metadata,
        alpha=alpha,
        guarantee=guarantee,
        calibration=record,
        versions=versions(),
        sha256=graph_sha256(graph),
        golden=scored_golden(graph, metadata.golden, metadata),
        labelled=labelled_record(earlier.sha256, labelled_good, file, fit) if earlier.sha256 else None,
        bank=dataclasses.replace(bank, raw_scores=raw["score"], raw_peaks=raw["map"]),
    )
    expected = {part: rescale(values[part], file[part], fit.scale[part]) for part in file}
    with atomic_write(out) as candidate:  # the old file stays until the new file is verified
        write_model(candidate, graph, new)
        written = OnnxScorer(candidate, device=device, num_threads=0)
        again = left_out_values(BankFile.open(candidate, device=device), checked, read=read)
        at = list(checked)
        certificate: dict[str, Any] = {
            "kind": "calibration",
            "model": written.sha256,
            "provider": written.provider,
            "num_images": scores.num_images,
            "num_part_groups": num_groups,
            "construction": "leave_one_out",
            "exact": exact,
            "score": differences(expected["score"][at], again["score"]),
            "map_maximum": differences(expected["map"][at], again["map"]),
            "num_checked": len(at),
            "refused_above": MAX_DIFFERENCE,
            "alpha": alpha,
            "guarantee": guarantee,
            "expected_rate": guaranteed.expected_rate,
            "rate_bound": guaranteed.rate_bound,
            "guarantee_text": str(guaranteed),
            "rates": [dataclasses.asdict(point) for point in scores.operating_points(guarantee=guarantee)],
            "source": source,
            "moved": scale_changes(file, fit.scale),
            "date": now(),
            "versions": versions(),
        }
        refuse_difference(certificate)
    return certificate


def evenly_spaced(num: int) -> list[int]:
    """Choose at most `NUM_CHECKED` of `num` images."""
    return sorted({int(n) for n in np.linspace(0, num - 1, min(num, NUM_CHECKED))})


def _bank(metadata: Metadata) -> BankRecord:
    assert metadata.bank is not None
    return metadata.bank
