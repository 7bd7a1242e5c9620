"""The verb `calibrate`: a new threshold for an exported model from good images, labels, or both."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from anomaly.conformal.guarantee import GuaranteeKind
from anomaly.conformal.outliers import Outliers
from anomaly.inference.session import Device
from anomaly.recalibration.recalibrate import Recalibration, recalibrate
from anomaly.system.run_card import RunCard


def calibrate(
    model: Path,
    good: str | None = None,
    *,
    labels: Path | None = None,
    images: str | None = None,
    part_group: str | None = None,
    out: Path | None = None,
    alpha: float | None = None,
    guarantee: GuaranteeKind | None = None,
    device: Device = "cpu",
    max_pixels: int = 100_000_000,
) -> Recalibration:
    """Calibrate an exported model again: new offset, scale, calibration scores, golden image and certificate.

    Good images replace the calibration images. With labels alone, the calibration images stay those of the file. Images
    labelled `good` can only raise the threshold.

    Args:
        model: .onnx file.
        good: good images that were not used in training: a folder, a glob, a .txt list, or - for standard input;
            optional with --labels.
        labels: file of labels beside a run, RUN.labels.csv.
        images: folder, glob or list to search for moved labelled images, by their SHA-256.
        part_group: regular expression on the paths of GOOD, or CSV of path and group, that joins the images of one part.
            Paths are relative to the folder of the images. The guarantee then counts parts.
        out: file to write; the model itself is replaced by default.
        alpha: share of good parts that may be rejected; by default 0.01 or the smallest possible one; with labels
            alone, the alpha of the file.
        guarantee: kind of guarantee: alpha bounds the `expected` rate, or its 95 % upper `bound`; `expected` by default; with
            labels alone, the guarantee of the file.
        device: inference device; `auto` takes a usable GPU, else the CPU.
        max_pixels: largest width × height that is decoded.
    """
    card = RunCard("calibrate", config=dict(locals()))
    result = recalibrate(
        model,
        good=good,
        labels=labels,
        images=images,
        part_group=part_group,
        out=out,
        alpha=alpha,
        guarantee=guarantee,
        device=device,
        max_pixels=max_pixels,
    )
    card.facts["result"] = result.certificate
    card.write(result.path.with_suffix(".calibrate.run.json"))
    return result


def show(result: Recalibration) -> None:
    """Print the guarantee, the effect of the labels, and warnings on standard error."""
    certificate = result.certificate
    print(f"{result.path}: alpha {certificate['alpha']:.4g} ({certificate['guarantee']})")
    print(certificate["guarantee_text"])
    if found := certificate["outliers"]:
        outliers = Outliers(tuple(found["names"]), found["threshold_without"])
        print(f"WARNING: {outliers}", file=sys.stderr)
    if result.has_labels:
        _show_labels(certificate["labels"], certificate["moved"])


def _show_labels(labels: dict[str, Any], moved: dict[str, Any]) -> None:
    earlier = f", and {labels['num_good_earlier']} of earlier calibrations" if labels["num_good_earlier"] else ""
    num_copies = len(labels["copies_left_out"])
    copies = f"; {num_copies} near-duplicates are left out" if num_copies else ""
    print(f"labels of {labels['source']}: {labels['num_good']} good images count{earlier}{copies}")
    for part, values in moved.items():
        changes = (f"{name} {before:.6g} -> {after:.6g}" for name, (before, after) in values.items())
        print(f"  {part}: {', '.join(changes)}")
    rejected_before, rejected = labels["good_rejected"]
    accepted_before, accepted = labels["defects_accepted"]
    print(f"  labelled good images rejected: {rejected_before} before, {rejected} now, of {labels['num_good']}")
    print(f"  labelled defects accepted: {accepted_before} before, {accepted} now, of {labels['num_defect']}")
    if accepted > accepted_before:
        print(
            f"WARNING: the new threshold accepts {accepted - accepted_before} more images labelled defect. Some images"
            " labelled good score higher. Check both labels, or fit the detector on more good images like those",
            file=sys.stderr,
        )
    for good, defect in labels["good_like_defect"]:
        print(
            f"WARNING: {good} is labelled good, {defect} defect, and they are near-duplicates: check both",
            file=sys.stderr,
        )
