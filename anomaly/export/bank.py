"""The record of a detector's bank for the metadata of its file."""

from __future__ import annotations

import dataclasses

import onnx
import torch
from torch import Tensor, nn

from anomaly.detectors.base import Detector
from anomaly.detectors.frozen_features import FrozenFeatures
from anomaly.detectors.memory_bank import Bank, MemoryBank
from anomaly.inference.artifact import calibration_tensors
from anomaly.inference.bank_graph import Rows, find_embedding, is_exchangeable
from anomaly.inference.bank_record import BankRecord, BankRows, short_names
from anomaly.training.fitted_model import Description

LEAST_VALUES = 2**17
"""Smallest number of values in a bank while it is exported; the exporter computes smaller constants beforehand"""


def replace_rows(detector: Detector) -> dict[str, Rows]:
    """Replace the rows of small banks by more rows of noise, so that the exporter computes no tensor from them.

    Args:
        detector: detector for the export alone; it changes.

    Returns:
        Initialiser -> the real rows, for the exported graph.
    """
    real = {}
    for name, module in detector.named_modules():
        if isinstance(module, Bank):
            num, width = module.rows.shape
            real[f"{name}.rows"] = module.rows.numpy()
            module.rows = torch.randn(max(num, LEAST_VALUES // width), width)
    return real


def bank_initializers(detector: Detector) -> list[str]:
    """List the initialisers with the rows of a detector's banks; empty for a detector without a bank."""
    return [part.rows for part in _backbones(detector)]


def bank_record(detector: Detector, description: Description, model: onnx.ModelProto) -> BankRecord | None:
    """Describe the bank of a detector in its exported graph; None for a detector without a bank.

    Args:
        detector: fitted detector.
        description: description of the fitted model.
        model: exported graph.
    """
    found = _backbones(detector)
    exchangeable = all(is_exchangeable(model.graph, part.rows) for part in found)
    if not found or not exchangeable or len(description.train_sizes) != len(description.train):
        return None  # a model fitted by an earlier version does not know its part groups and sizes
    names = {tensor.name for tensor in model.graph.initializer}
    parts = [
        dataclasses.replace(
            part,
            embedding=find_embedding(model.graph, part.rows),
            usual=part.usual if part.usual in names else None,  # a constant scale of 1 is left out of the graph
        )
        for part in found
    ]
    left_out = description.calibration.construction == "leave_one_out"
    scale = calibration_tensors(model)
    return BankRecord(
        images=short_names(description.train),
        part_groups=description.train_part_groups,
        sizes=description.train_sizes,
        backbones=parts,
        grid=list(detector.grid) if isinstance(detector, MemoryBank) else [],
        cells=_cells(detector),
        raw_scores=_raw(description.calibration_scores, scale, "score") if left_out else [],
        raw_peaks=_raw(description.calibration_peaks, scale, "map") if left_out else [],
    )


def _backbones(detector: Detector) -> list[BankRows]:
    """Banks of a detector and of its members; empty if a member has no bank."""
    detectors = {name: module for name, module in detector.named_modules() if isinstance(module, Detector)}
    members = {
        name: module
        for name, module in detectors.items()
        if not any(isinstance(inner, Detector) for inner in module.modules() if inner is not module)
    }
    banks = [_own_banks(f"{name}." if name else "", member) for name, member in members.items()]
    return [part for each in banks for part in each] if all(banks) else []


def _own_banks(prefix: str, detector: Detector) -> list[BankRows]:
    """Banks of a detector without members.

    Args:
        prefix: name of the detector in the graph, with a dot.
        detector: fitted detector.
    """
    if isinstance(detector, MemoryBank):
        return [
            BankRows(
                rows=f"{prefix}{name}.rows",
                image=_integers(module.image),
                cell=_integers(module.cell),
                usual=None if detector.exact else f"{prefix}{name}.usual",
            )
            for name, module in detector.named_modules()
            if isinstance(module, Bank)
        ]
    if isinstance(detector, FrozenFeatures) and detector.supports_leave_one_out:
        image, rows = _integers(detector.image), detector.model.rows
        if isinstance(rows, Tensor) and len(image) == len(rows):
            return [BankRows(rows=f"{prefix}model.rows", image=image)]
    return []


def _cells(detector: nn.Module) -> list[int]:
    """Cells of the grid in the region of interest; empty for all."""
    if not isinstance(detector, MemoryBank) or not detector.preprocess.has_roi:
        return []
    inside: Tensor = detector.inside_cells()
    return _integers(inside.flatten().nonzero().flatten())


def _integers(values: Tensor) -> list[int]:
    return [int(value) for value in values.tolist()]


def _raw(values: list[float], scale: dict[str, float], part: str) -> list[float]:
    return [value * scale[f"scale_{part}"] + scale[f"offset_{part}"] for value in values]
