"""Banks of patches in a graph: the initialisers of their rows, the patch embeddings, and rows as an input."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from anomaly.errors import ModelError, UsageError
from anomaly.inference.bank_record import BankRecord

Rows = NDArray[np.float32]
"""Rows of a bank, (M, d)"""


def find_embedding(graph: onnx.GraphProto, rows: str) -> str | None:
    """Find the tensor with the patch embeddings (n, h, w, d) that are compared with the rows of a bank.

    The nearest row is gathered from the rows and subtracted from the flattened embeddings.

    Args:
        graph: graph of the model.
        rows: name of the initialiser with the rows.

    Returns:
        Name of the tensor; None where the graph has no such tensor.
    """
    producers = {output: node for node in graph.node for output in node.output}
    gathered = {
        node.output[0] for node in graph.node if node.op_type in ("Gather", "GatherND") and node.input[0] == rows
    }
    for node in graph.node:
        if node.op_type != "Sub" or not gathered & set(node.input):
            continue
        flat = producers.get(next(name for name in node.input if name not in gathered))
        if flat is not None and flat.op_type == "Reshape":
            return str(flat.input[0])
    return None


def is_exchangeable(graph: onnx.GraphProto, rows: str) -> bool:
    """Whether all of a bank is computed from the initialiser with its rows; False where a pass folded a part of it."""
    readers = {node.op_type for node in graph.node if rows in node.input}
    return bool(readers - {"Gather", "GatherND"})


def initializer(model: onnx.ModelProto, name: str) -> Rows:
    """Read an initialiser as float32.

    Raises:
        ModelError: the graph has no such initialiser.
    """
    for tensor in model.graph.initializer:
        if tensor.name == name:
            return np.asarray(numpy_helper.to_array(tensor), dtype=np.float32)
    raise ModelError(f"the graph has no tensor {name!r}, which its metadata name as a bank: export it again")


def with_rows_as_inputs(
    model: onnx.ModelProto, names: Collection[str], *, outputs: Collection[str] = ()
) -> onnx.ModelProto:
    """Copy a graph whose banks may be replaced by an input in each run; a run without that input has its own banks.

    Args:
        model: graph of the model.
        names: initialisers with the rows of banks.
        outputs: float tensors of the graph that become outputs.
    """
    opened = onnx.ModelProto()
    opened.CopyFrom(model)
    del opened.graph.value_info[:]
    for tensor in opened.graph.initializer:
        if tensor.name in names:
            shape = ["rows of " + tensor.name, *tensor.dims[1:]]
            opened.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, shape))
    for name in outputs:
        opened.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    return opened


def set_rows(model: onnx.ModelProto, rows: Mapping[str, Rows]) -> None:
    """Write other rows into the banks of a graph, in place.

    Args:
        model: graph of the model.
        rows: name of the initialiser -> its new rows.
    """
    del model.graph.value_info[:]
    for tensor in model.graph.initializer:
        if tensor.name in rows:
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(rows[tensor.name]), tensor.name))


def bank_rows(model: onnx.ModelProto, record: BankRecord) -> list[Rows]:
    """Read the rows of each bank of a graph."""
    return [initializer(model, part.rows) for part in record.backbones]


def bank_without(record: BankRecord, rows: Sequence[Rows], left_out: Collection[int]) -> dict[str, Rows]:
    """Replace the rows of left-out images by copies of one remaining row, so that their number stays.

    Args:
        record: record of the banks.
        rows: rows of each bank, (M, d).
        left_out: numbers of the left-out images.

    Returns:
        Initialiser -> its rows.

    Raises:
        UsageError: all rows of a bank belong to the left-out images.
    """
    banks: dict[str, Rows] = {}
    for part, stored in zip(record.backbones, rows, strict=True):
        gone = np.isin(part.image, sorted(left_out))
        if gone.all():
            raise UsageError(
                f"all rows of the bank belong to the {len(left_out)} left-out images: give images of more parts"
            )
        banks[part.rows] = np.where(gone[:, None], stored[~gone][:1], stored)
    return banks


def row_names(record: BankRecord) -> list[str]:
    """List the initialisers with the rows of the banks."""
    return [part.rows for part in record.backbones]
