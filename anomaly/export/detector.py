"""Export of a calibrated detector: the bare ONNX graph of the contract, and its metadata."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import onnx
import torch

from anomaly.detectors.base import Detector
from anomaly.detectors.tiling_support import Seamless
from anomaly.errors import ModelError
from anomaly.export.bank import bank_record, replace_rows
from anomaly.export.torch_to_onnx import to_onnx
from anomaly.inference.artifact import (
    CONTRACT,
    INPUT,
    OUTPUTS,
    Metadata,
    calibration_tensors,
    graph_sha256,
    set_calibration_tensors,
)
from anomaly.inference.bank_graph import set_rows
from anomaly.inference.golden import Golden
from anomaly.system.run_card import commit, versions
from anomaly.training.fitted_model import Description, config_to_travel


def learned_tensors(detector: Detector) -> frozenset[str]:
    """List the names of learned and pretrained parameters; the constant windows of a measure are not among them."""
    return frozenset(name for name, _ in detector.named_parameters())


def export_graph(detector: Detector) -> onnx.ModelProto:
    """Export `detector.forward` as a graph from raw uint8 images of any number and size.

    Raises:
        ModelError: the graph cannot be exported, or its inputs, outputs or calibration tensors break the contract.
    """
    detector = copy.deepcopy(detector).eval().cpu()
    calibrated = {key: float(value) for key, value in detector.calibration.state_dict().items()}
    # four different values, none 0 or 1: the exporter merges equal tensors and drops neutral operations
    for number, key in enumerate(calibrated):
        getattr(detector.calibration, key).fill_(0.375 + number)
    rows = replace_rows(detector)
    example, shapes = _example(detector)
    model = to_onnx(
        detector,
        (example,),
        shapes=(shapes,),
        inputs=[INPUT],
        outputs=list(OUTPUTS),
        reason=detector.export_reason,
    )
    names = ([i.name for i in model.graph.input], tuple(o.name for o in model.graph.output))
    if names != ([INPUT], OUTPUTS):
        raise ModelError(
            f"the exported graph maps {names[0]} to {names[1]}, the contract demands {[INPUT]} to {OUTPUTS}:"
            " let `anomaly` return an Anomaly(score, anomaly_map)"
        )
    set_calibration_tensors(model, calibrated)
    set_rows(model, rows)
    if calibration_tensors(model) != calibrated:
        raise ModelError(
            f"the exported graph holds the calibration {calibration_tensors(model)} in place of {calibrated}:"
            " do not override `forward`"
        )
    return model


def build_metadata(
    detector: Detector, description: Description, model: onnx.ModelProto, *, golden: Golden, fixed: list[int]
) -> Metadata:
    """Collect the metadata of an fp32 file.

    Args:
        detector: fitted detector.
        description: description of the fitted model.
        model: exported graph.
        golden: golden image with its outputs.
        fixed: images per run, height and width of a graph with fixed shapes; empty for any.
    """
    return Metadata(
        contract=CONTRACT,
        kind="detector",
        detector=description.detector,
        category=description.category,
        config=config_to_travel(description),
        resize=detector.preprocess.resize,
        white=description.white,
        size=list(detector.preprocess.size),
        roi=Path(description.roi).name if description.roi else None,
        alpha=description.alpha,
        guarantee=description.guarantee,
        calibration=description.calibration,
        image_stats=description.image_stats,
        versions=versions(),
        commit=commit(),
        seed=description.seed,
        sha256=graph_sha256(model),
        golden=golden,
        fixed=fixed,
        tiling=description.tiling,
        brightness=description.brightness,
        training_hashes=description.train_hashes,
        bank=bank_record(detector, description, model),
    )


def _example(detector: Detector) -> tuple[torch.Tensor, dict[int, Any]]:
    """Give images for tracing and the axes that stay dynamic; windows of a large image are not resized."""
    height, width = detector.preprocess.size
    free = torch.export.Dim.DYNAMIC
    if detector.preprocess.resize != "native":
        # a size of 0 or 1 would become a constant, equal sizes would become one symbol
        return torch.zeros(2, height + 3, width + 5, 3, dtype=torch.uint8), {0: free, 1: free, 2: free}
    if not isinstance(detector.tiling, Seamless):
        return torch.zeros(2, height, width, 3, dtype=torch.uint8), {0: free}
    stride = detector.tiling.stride
    rows, columns = (stride * torch.export.Dim(name) for name in ("rows", "columns"))
    return torch.zeros(2, 5 * stride, 7 * stride, 3, dtype=torch.uint8), {0: free, 1: rows, 2: columns}
