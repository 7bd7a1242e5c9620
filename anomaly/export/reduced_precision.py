"""From the certified fp32 file to one of fewer bits: converted, calibrated through itself, compared, kept or refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from anomaly.errors import UsageError
from anomaly.export.acceptance import Bounds, compare_verdicts, draw_defects, refuse_beyond
from anomaly.export.passes.half import to_half
from anomaly.export.passes.int8 import quantise
from anomaly.export.passes.int8_selection import choose
from anomaly.export.passes.static_shape import Fixed
from anomaly.imaging.image_file import read_image
from anomaly.inference.artifact import (
    GOLDEN_TOLERANCE,
    Metadata,
    Precision,
    golden_batch,
    graph_sha256,
    load_graph,
    read_metadata,
    write_model,
)
from anomaly.inference.scorer import OnnxScorer, score_bytes
from anomaly.inference.session import PROVIDERS
from anomaly.inference.tiles import Tiling
from anomaly.recalibration.labelled_images import NOTHING_MARKED
from anomaly.recalibration.recalibrate import recalibrate
from anomaly.system.progress import progress_bar
from anomaly.system.run_card import hardware, now, versions
from anomaly.training.fitted_model import Description

NUM_TRAINING_IMAGES = 16
"""Images, spread over the training set, that set ranges and choose convolutions"""
SEED = 0
"""Of the drawn defects"""


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
    """Convert an fp32 model, calibrate it through its own file, compare the verdicts, and write it where it passes.

    Args:
        reference: the fp32 file, fixed or not.
        dynamic: its graph for images of any number and size.
        description: of the run: images, alpha, guarantee.
        precision: fp16 or int8.
        learned: names of the tensors that were learned.
        bounds: what it may lose.
        out: the file to write; what was there stays where the new one is refused.

    Returns:
        The certificate.

    Raises:
        ParityError: it loses more than the bounds allow.
        UsageError: a detector that has nothing to convert.
        DataError, CalibrationError: images that cannot be used.
    """
    graph = load_graph(reference)
    metadata = read_metadata(graph, name=str(reference))
    chosen: dict[str, Any] = {}
    if precision == "fp16":
        converted = to_half(graph, learned=learned)
    else:
        converted, chosen = _to_int8(graph, dynamic, description, learned=learned)
    candidate = out.with_name(out.name + ".converted")
    try:
        _write_uncalibrated(candidate, converted, dataclasses.replace(metadata, precision=precision))
        calibration = recalibrate(
            candidate,
            description.calibration_images,
            labelled=NOTHING_MARKED,
            out=candidate,
            source=description.calibration.source,
            num_part_groups=description.calibration.num_part_groups,
            excluded=description.calibration.excluded,
            alpha=description.alpha,
            guarantee=description.guarantee,
            device="cpu",
            max_pixels=description.max_pixels,
        )
        good = read_images(description.calibration_images, description)
        before = OnnxScorer(reference, device="cpu", num_threads=0)
        with progress_bar(f"compare {precision} with fp32") as report:
            found = compare_verdicts(
                before, OnnxScorer(candidate, device="cpu", num_threads=0), good=good, seed=SEED, report=report
            )
        refuse_beyond(found, bounds=bounds, name=f"{precision} of {out}")
        tolerance = golden_tolerance(found)
        converted = load_graph(candidate)
        metadata = read_metadata(converted, name=str(candidate))
        golden = dataclasses.replace(metadata.golden, tolerance=dict.fromkeys(PROVIDERS.values(), tolerance))
        write_model(candidate, converted, dataclasses.replace(metadata, golden=golden))
        written = OnnxScorer(candidate, device="cpu", num_threads=0)
        candidate.replace(out)
    finally:
        candidate.unlink(missing_ok=True)
    return {
        "kind": "precision",
        "precision": precision,
        "model": written.sha256,
        "reference": before.sha256,
        "provider": written.provider,
        **found,
        "max_auroc_loss": bounds.auroc_loss,
        "max_flips": bounds.flips,
        "golden_tolerance": golden.tolerance,
        **chosen,
        "calibration": calibration,
        "versions": versions(),
        "hardware": hardware(),
        "date": now(),
    }


def golden_tolerance(found: dict[str, Any]) -> float:
    """Give what the golden image's score may differ by on other kernels of the same precision.

    Two ways of rounding lie at most as far apart as both together lie from fp32: twice what this one moved good images.
    """
    return max(GOLDEN_TOLERANCE, 2 * float(found["score"]["max_of_good"]))


def read_images(paths: Collection[str], description: Description) -> list[NDArray[np.uint8]]:
    """Read images of a run's data as its model wants them, (H, W, 3) uint8 RGB."""
    return [read_image(path, white=description.white, max_pixels=description.max_pixels) for path in paths]


def central_window(image: NDArray[np.uint8], tiling: Tiling) -> NDArray[np.uint8]:
    """Cut a window such as the network sees out of the middle of a image (H, W, 3)."""
    (top, height), (left, width) = (
        ((side - window) // 2, window) if side > window else (0, side - side % tiling.stride)
        for side, window in zip(image.shape, tiling.window, strict=False)
    )
    return image[top : top + height, left : left + width]


def check_sizes(images: Collection[NDArray[np.uint8]], fixed: Fixed) -> None:
    """Refuse a fixed size that the calibration images do not have: through it they could not be scored.

    Raises:
        UsageError: one of another size.
    """
    for image in images:
        if image.shape[:2] != fixed[1:]:
            raise UsageError(
                f"--fixed {','.join(map(str, fixed))}: a calibration image has {image.shape[1]}×{image.shape[0]} pixels, not"
                f" {fixed.width}×{fixed.height}: fix the size that all images have, here"
                f" {fixed.num},{image.shape[0]},{image.shape[1]}, or leave --fixed out"
            )


def _to_int8(
    graph: onnx.ModelProto, dynamic: onnx.ModelProto, description: Description, *, learned: Collection[str]
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    step = max(1, len(description.train) // NUM_TRAINING_IMAGES)
    good = read_images(description.train[::step][:NUM_TRAINING_IMAGES], description)
    if description.tiling:
        good = [central_window(image, description.tiling) for image in good]
    defects = list(draw_defects(good, num_each=1, seed=SEED + 1))
    with progress_bar("choose convolutions for int8") as report:
        choice = choose(dynamic, learned=learned, good=good, defects=defects, report=report)
    told = {
        "num_int8": len(choice.convolutions),
        "num_convolutions": choice.num_candidates,
        "int8": choice.convolutions,
    }
    return quantise(graph, choice.convolutions, spans=choice.spans), told


def _write_uncalibrated(path: Path, graph: onnx.ModelProto, metadata: Metadata) -> None:
    """Write a file that loads: its golden image is what it says now, its calibration still that of the other."""
    said = score_bytes(
        graph.SerializeToString(), golden_batch(metadata.golden, fixed=metadata.fixed), tiling=metadata.tiling
    )
    golden = dataclasses.replace(
        metadata.golden, score=float(said.score[0]), map_maximum=float(said.anomaly_map[0].max())
    )
    write_model(path, graph, dataclasses.replace(metadata, golden=golden, sha256=graph_sha256(graph)))
