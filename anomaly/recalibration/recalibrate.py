"""Calibrate an exported model again, from new good images, labels, or both."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from anomaly.conformal.calibration import CalibrationScores
from anomaly.conformal.guarantee import GuaranteeKind, resolve_alpha
from anomaly.data.folders import Sample, list_images
from anomaly.data.splits import find_part_groups
from anomaly.errors import DataError, UsageError
from anomaly.inference.artifact import load_graph, read_metadata
from anomaly.inference.session import Device
from anomaly.recalibration.calibrated_file import write_calibrated
from anomaly.recalibration.labelled_images import NO_LABELS, find_labelled_images
from anomaly.recalibration.new_images import training_images_among
from anomaly.system.files import as_path, write_json


@dataclass(frozen=True)
class Recalibration:
    """A recalibrated model file."""

    path: Path
    certificate: dict[str, Any]
    """guarantee, old and new threshold, effect of the labels, as JSON values; also in the file beside the model"""

    @property
    def has_labels(self) -> bool:
        """Whether labelled images were used."""
        labels = self.certificate["labels"]
        return bool(labels["num_good"] + labels["num_defect"])


def recalibrate(
    model: str | Path,
    *,
    good: str | Path | None = None,
    labels: str | Path | None = None,
    images: str | None = None,
    part_group: str | None = None,
    out: str | Path | None = None,
    alpha: float | None = None,
    guarantee: GuaranteeKind | None = None,
    device: Device = "cpu",
    max_pixels: int = 100_000_000,
) -> Recalibration:
    """Calibrate an exported model again: new offset, scale, calibration scores, golden image and certificate.

    Good images replace the calibration images. With labels alone, the calibration images stay those of the file. The
    guarantee rests on the calibration images in both cases: images labelled `good` can raise the threshold and never
    lower it (see `CalibrationScores.raised_threshold`). The offset stays the median of the calibration
    images. With labels alone, images labelled in earlier calibrations still count unless the new file relabels them.

    Args:
        model: .onnx file.
        good: good images that were not used in training: a folder, a glob, a .txt list, or - for standard input;
            optional with labels.
        labels: file of labels beside a run, RUN.labels.csv.
        images: folder, glob or list to search for moved labelled images, by their SHA-256.
        part_group: regular expression on the paths, or CSV of path and group, that joins the images of one part. Paths
            are relative to the folder of the images. The guarantee then counts parts.
        out: file to write; the model itself is replaced by default.
        alpha: share of good parts that may be rejected; by default 0.01 or the smallest possible one; with labels
            alone, the alpha of the file.
        guarantee: kind of guarantee: alpha bounds the `expected` rate, or its 95 % upper `bound`; `expected` by default; with
            labels alone, the guarantee of the file.
        device: inference device; `auto` takes a usable GPU, else the CPU.
        max_pixels: largest width × height that is decoded.

    Returns:
        The new file and its certificate, which is also written beside the file.

    Raises:
        UsageError: missing images and labels, or labels alone with another guarantee than the file.
        DataError: an image that cannot be used, a training image of the model, images without a part group, or labels that
            contradict each other.
        CalibrationError: too few parts for alpha, a single part, or images with equal scores.
        ParityError: the new file does not give the expected values.
        OutputError: the file cannot be written.
    """
    model = as_path(model, name="model")
    path = model if out is None else as_path(out, name="out")
    if good is None and labels is None:
        raise UsageError("a calibration needs images: give GOOD images, or --labels RUN.labels.csv, or both")
    if good is None and part_group is not None:
        raise UsageError(f"part_group {part_group!r} groups new images: give GOOD images, or leave it out")
    paths = [] if good is None else list_images(str(good))
    sizes = _group_sizes(paths, source=str(good), part_group=part_group)
    if good is not None:
        _refuse_training_images(paths, model)
        guarantee = guarantee or "expected"
        num_groups = CalibrationScores(np.zeros(len(paths)), sizes).num_groups
        alpha = resolve_alpha(alpha, num_groups=num_groups, guarantee=guarantee)
    else:
        stored = read_metadata(load_graph(model), name=str(model))
        if alpha not in (None, stored.alpha) or guarantee not in (None, stored.guarantee):
            raise UsageError(
                f"{model} guarantees alpha {stored.alpha:.4g} ({stored.guarantee}) and keeps no maps of its calibration"
                " images: for another guarantee give GOOD images beside the labels"
            )
        alpha, guarantee = stored.alpha, "bound" if stored.guarantee == "bound" else "expected"
    labelled = NO_LABELS
    if labels is not None:
        file = as_path(labels, name="labels")
        labelled = find_labelled_images(file, images=images, good=paths, max_pixels=max_pixels)
    certificate = write_calibrated(
        model,
        paths,
        out=path,
        source="" if good is None else Path(good).name or str(good),  # no path of this machine in the file
        group_sizes=sizes,
        excluded=[],
        alpha=alpha,
        guarantee=guarantee,
        device=device,
        max_pixels=max_pixels,
        labelled=labelled,
    )
    write_json(path.with_suffix(".certificate.json"), certificate)
    return Recalibration(path, certificate)


def _group_sizes(paths: Sequence[str], *, source: str, part_group: str | None) -> list[int]:
    """Count the images in the part group of each image; empty without part groups."""
    if part_group is None:
        return []
    samples = [Sample(Path(path), "good", False, None) for path in paths]
    parents = {sample.path.parent.absolute().as_posix() for sample in samples}
    root = Path(source) if Path(source).is_dir() else Path(os.path.commonpath(parents))
    groups = find_part_groups(samples, root=root, part_group=part_group)
    sizes = Counter(groups.values())
    return [sizes[groups[sample.path]] for sample in samples]


def _refuse_training_images(paths: Sequence[str], model: Path) -> None:
    """Refuse images that the model was trained on, found by the SHA-256 of their files."""
    found = training_images_among(paths, read_metadata(load_graph(model), name=str(model)))
    if found:
        raise DataError(
            f"{len(found)} of {len(paths)} images trained {model}, first {found[0]}: they score too low for a calibration;"
            " give other good images"
        )
