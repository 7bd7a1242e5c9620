"""The record of a detector's bank for the metadata of its file."""

from __future__ import annotations

import dataclasses

import onnx
from torch import Tensor, nn

from anomaly.detectors.base import Detector
from anomaly.detectors.frozen_features import FrozenFeatures
from anomaly.detectors.memory_bank import Bank, MemoryBank
from anomaly.inference.artifact import calibration_tensors
from anomaly.inference.bank_graph import find_embedding
from anomaly.inference.bank_record import BankRecord, BankRows, short_names
from anomaly.training.fitted_model import Description


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
    names = {tensor.name for tensor in model.graph.initializer}
    found = [part for part in _backbones(detector) if part.rows in names]
    if not found or len(description.train_sizes) != len(description.train):
        return None  # a model fitted by an earlier version does not know its part groups and sizes
    parts = [dataclasses.replace(part, embedding=find_embedding(model.graph, part.rows)) for part in found]
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
    if isinstance(detector, MemoryBank):
        return [
            BankRows(
                rows=f"{name}.rows",
                image=_integers(module.image),
                cell=_integers(module.cell),
                usual=f"{name}.usual" if detector.position_scale else None,
            )
            for name, module in detector.named_modules()
            if isinstance(module, Bank)
        ]
    if isinstance(detector, FrozenFeatures) and detector.supports_leave_one_out:
        image = _integers(detector.image)
        rows = detector.model.rows
        if isinstance(rows, Tensor) and len(image) == len(rows):
            return [BankRows(rows="model.rows", image=image)]
    return []


def _cells(detector: nn.Module) -> list[int]:
    """Cells of the grid in the region of interest; empty for all."""
    if not isinstance(detector, MemoryBank) or not detector.preprocess.has_roi:
        return []
    inside: Tensor = detector._inside()
    return _integers(inside.flatten().nonzero().flatten())


def _integers(values: Tensor) -> list[int]:
    return [int(value) for value in values.tolist()]


def _raw(values: list[float], scale: dict[str, float], part: str) -> list[float]:
    return [value * scale[f"scale_{part}"] + scale[f"offset_{part}"] for value in values]
