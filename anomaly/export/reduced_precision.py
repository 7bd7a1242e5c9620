"""Reduced precision: a file of fewer bits, converted, calibrated through its own graph, compared, accepted or refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from anomaly.errors import UsageError
from anomaly.export.acceptance import Bounds, check_bounds, compare_verdicts, draw_defects
from anomaly.export.passes.half import to_half
from anomaly.export.passes.int8 import quantise
from anomaly.export.passes.int8_selection import choose
from anomaly.export.passes.static_shape import Fixed
from anomaly.imaging.image_file import read_image
from anomaly.inference.artifact import Metadata, Precision, graph_sha256, load_graph, read_metadata, write_model
from anomaly.inference.bank import BankFile, calibration_scorers
from anomaly.inference.bank_graph import bank_rows, bank_without, row_names, with_rows_as_inputs
from anomaly.inference.bank_record import BankRecord
from anomaly.inference.golden import GOLDEN_TOLERANCE, golden_batch
from anomaly.inference.scorer import OnnxScorer, score_bytes
from anomaly.inference.session import PROVIDERS
from anomaly.inference.tiles import Tiling
from anomaly.recalibration.calibrated_file import write_calibrated
from anomaly.recalibration.left_out_file import evenly_spaced, left_out_values, write_left_out
from anomaly.system.progress import progress_bar
from anomaly.system.run_card import hardware, now, versions
from anomaly.training.fitted_model import Description

NUM_TRAINING_IMAGES = 16
"""Number of training images, evenly spaced, that set ranges and choose convolutions"""
SEED = 0
"""Seed of the drawn defects"""


def write_converted(
    reference: Path,
    dynamic: onnx.ModelProto,
    *,
    description: Description,
    precision: Precision,
    learned: Collection[str],
    bounds: Bounds,
    out: Path,
) -> dict[str, Any]:
    """Convert an fp32 model and write it where it keeps its verdicts.

    Args:
        reference: fp32 file, with fixed or dynamic shapes.
        dynamic: its graph with dynamic shapes.
        description: description of the fitted model: images, alpha, guarantee.
        precision: fp16 or int8.
        learned: names of the learned tensors.
        bounds: largest loss.
        out: file to write; an existing file stays where the new one is refused.

    Returns:
        The certificate as JSON values.

    Raises:
        ParityError: the converted file loses more than the bounds allow.
        UsageError: a detector without learned convolutions, or a model with cross calibration.
        DataError: images that cannot be used.
        CalibrationError: scores that cannot be calibrated.
    """
    if description.calibration.construction == "cross":
        raise UsageError(
            f"{precision} is calibrated through its own graph, and a cross calibration needs five trained models: export"
            " fp32, or fit again with --calibration split"
        )
    graph = load_graph(reference)
    bank = read_metadata(graph, name=str(reference)).bank
    selection: dict[str, Any] = {}
    if precision == "fp16":
        converted = to_half(graph, learned=learned)
    else:
        converted, selection = _to_int8(graph, dynamic, description, learned=learned, bank=bank)
    candidate = out.with_name(out.name + ".converted")
    try:
        certificate = write_candidate(reference, converted, description=description, precision=precision, out=candidate)
        check_bounds(certificate, bounds=bounds, name=f"{precision} of {out}")
        candidate.replace(out)
    finally:
        candidate.unlink(missing_ok=True)
    return certificate | {"max_auroc_loss": bounds.auroc_loss, "max_flips": bounds.flips} | selection


def write_candidate(
    reference: Path, converted: onnx.ModelProto, *, description: Description, precision: Precision, out: Path
) -> dict[str, Any]:
    """Write a converted graph, calibrate it through itself, and compare its verdicts with the fp32 file.

    Args:
        reference: fp32 file.
        converted: graph of fewer bits.
        description: description of the fitted model.
        precision: precision for the metadata.
        out: file to write.

    Returns:
        The comparison as JSON values.
    """
    metadata = read_metadata(load_graph(reference), name=str(reference))
    _write_uncalibrated(out, converted, dataclasses.replace(metadata, precision=precision))
    good = read_images(description.calibration_images, description)
    calibration = _calibrate(out, description, good)
    numbers = range(len(good))
    before, after = (OnnxScorer(path, device="cpu", num_threads=0) for path in (reference, out))
    with progress_bar(f"compare {precision} with fp32") as report:
        comparison = compare_verdicts(
            calibration_scorers(before, numbers),
            calibration_scorers(after, numbers),
            good=good,
            seed=SEED,
            report=report,
        )
    calibrated = load_graph(out)
    metadata = read_metadata(calibrated, name=str(out))
    tolerance = dict.fromkeys(PROVIDERS.values(), golden_tolerance(comparison))
    golden = dataclasses.replace(metadata.golden, tolerance=tolerance)
    write_model(out, calibrated, dataclasses.replace(metadata, golden=golden))
    written = OnnxScorer(out, device="cpu", num_threads=0)
    return {
        "kind": "precision",
        "precision": precision,
        "model": written.sha256,
        "reference": before.sha256,
        "provider": written.provider,
        **comparison,
        "golden_tolerance": tolerance,
        "calibration": calibration,
        "versions": versions(),
        "hardware": hardware(),
        "date": now(),
    }


def _calibrate(path: Path, description: Description, good: Sequence[NDArray[np.uint8]]) -> dict[str, Any]:
    """Calibrate a file through its own graph, in place; leave-one-out scores each image without its part group."""
    record = description.calibration
    if record.construction == "leave_one_out":
        graph = load_graph(path)
        metadata = read_metadata(graph, name=str(path))
        bank = BankFile(graph, metadata, name=str(path))
        return write_left_out(
            graph,
            metadata,
            left_out_values(bank, range(len(good)), read=good.__getitem__),
            out=path,
            source=record.source,
            excluded=record.excluded,
            alpha=description.alpha,
            guarantee=description.guarantee,
            device="cpu",
            checked=evenly_spaced(len(good)),
            read=good.__getitem__,
        )
    return write_calibrated(
        path,
        description.calibration_images,
        out=path,
        source=record.source,
        group_sizes=description.calibration_group_sizes,
        excluded=record.excluded,
        alpha=description.alpha,
        guarantee=description.guarantee,
        device="cpu",
        max_pixels=description.max_pixels,
    )


def golden_tolerance(comparison: dict[str, Any]) -> float:
    """Give the tolerance of the golden image's score on other kernels of the same precision.

    Two roundings differ by at most the sum of their distances from fp32: twice the largest change of a good image's score.
    """
    return max(GOLDEN_TOLERANCE, 2 * float(comparison["score"]["max_of_good"]))


def read_images(paths: Collection[str], description: Description) -> list[NDArray[np.uint8]]:
    """Read images as the fitted model takes them, (H, W, 3) uint8 RGB."""
    return [read_image(path, white=description.white, max_pixels=description.max_pixels) for path in paths]


def central_window(image: NDArray[np.uint8], tiling: Tiling) -> NDArray[np.uint8]:
    """Cut a window of the network's size out of the centre of an image (H, W, 3)."""
    (top, height), (left, width) = (
        ((side - window) // 2, window) if side > window else (0, side - side % tiling.stride)
        for side, window in zip(image.shape, tiling.window, strict=False)
    )
    return image[top : top + height, left : left + width]


def check_sizes(images: Collection[NDArray[np.uint8]], fixed: Fixed) -> None:
    """Refuse a fixed size that a calibration image does not have.

    Raises:
        UsageError: an image of another size.
    """
    for image in images:
        if image.shape[:2] != fixed[1:]:
            raise UsageError(
                f"--fixed {','.join(map(str, fixed))}: a calibration image has {image.shape[1]}×{image.shape[0]} pixels, not"
                f" {fixed.width}×{fixed.height}: give the size that all images have, here"
                f" {fixed.num},{image.shape[0]},{image.shape[1]}, or omit --fixed"
            )


def _to_int8(
    graph: onnx.ModelProto,
    dynamic: onnx.ModelProto,
    description: Description,
    *,
    learned: Collection[str],
    bank: BankRecord | None,
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """Choose convolutions on training images and quantise them; gives the graph and the facts of the choice."""
    step = max(1, len(description.train) // NUM_TRAINING_IMAGES)
    numbers = range(0, len(description.train), step)[:NUM_TRAINING_IMAGES]
    good = read_images([description.train[n] for n in numbers], description)
    if description.tiling:
        good = [central_window(image, description.tiling) for image in good]
    drawn = list(draw_defects(good, num_each=1, seed=SEED + 1))
    banks = []
    if bank is not None:
        dynamic = with_rows_as_inputs(dynamic, row_names(bank))
        rows = bank_rows(dynamic, bank)
        without = [bank_without(bank, rows, bank.members(n)) for n in numbers]
        banks = [*without, *(without[at] for at, _ in drawn)]
    with progress_bar("choose convolutions for int8") as report:
        choice = choose(
            dynamic, learned=learned, good=good, defects=[image for _, image in drawn], banks=banks, report=report
        )
    facts = {
        "num_int8": len(choice.convolutions),
        "num_convolutions": choice.num_candidates,
        "int8": choice.convolutions,
    }
    return quantise(graph, choice.convolutions, ranges=choice.ranges), facts


def _write_uncalibrated(path: Path, graph: onnx.ModelProto, metadata: Metadata) -> None:
    """Write a file with its own outputs of the golden image and the calibration of the fp32 file."""
    scores = score_bytes(
        graph.SerializeToString(), golden_batch(metadata.golden, fixed=metadata.fixed), tiling=metadata.tiling
    )
    golden = dataclasses.replace(
        metadata.golden, score=float(scores.score[0]), map_maximum=float(scores.anomaly_map[0].max())
    )
    write_model(path, graph, dataclasses.replace(metadata, golden=golden, sha256=graph_sha256(graph)))
