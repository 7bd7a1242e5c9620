"""A graph with fixed shapes: one number and one size of raw images, and the antialiased resize as two matrix products.

TensorRT does not support an antialiased `Resize`, and CUDA graphs need all shapes beforehand.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from anomaly.errors import ModelError, UsageError
from anomaly.inference.artifact import IR_VERSION, calibration_tensors, set_calibration_tensors
from anomaly.inference.bank_graph import with_rows_as_inputs

_RENAMING = ("ConvAddFusion", "ConvBNFusion", "ConvMulFusion", "MatMulAddFusion")
"""Optimisers that rename weights"""


class Fixed(NamedTuple):
    """Shape of a fixed graph's input: images per run, height and width in pixels."""

    num: int
    height: int
    width: int


def parse_fixed(text: str) -> Fixed:
    """Parse `N,H,W`: images per run, height and width of the raw images in pixels.

    Raises:
        UsageError: another format.
    """
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise UsageError(f"--fixed {text!r}: give images per run, height and width as N,H,W, e.g. 8,900,900")
    return Fixed(*(int(part) for part in parts))


def fix(model: onnx.ModelProto, fixed: Fixed, *, banks: Collection[str] = ()) -> onnx.ModelProto:
    """Copy an exported graph for images (N, H, W, 3) of this number and size only.

    Args:
        model: exported graph with dynamic shapes.
        fixed: shape of the input.
        banks: initialisers that stay exchangeable: no tensor is computed from them beforehand.

    Raises:
        ModelError: an output shape that depends on the image's values.
    """
    static = onnx.ModelProto()
    static.CopyFrom(model)
    for axis, length in zip(static.graph.input[0].type.tensor_type.shape.dim, fixed, strict=False):
        axis.dim_value = length
    for output in static.graph.output:
        output.type.tensor_type.shape.dim[0].dim_value = fixed.num
    _cast_first(static.graph)
    static = _folded_constants(static, banks=banks)
    shapes = _shapes(static)
    for node in [node for node in static.graph.node if node.op_type == "Resize" and _is_antialiased(node)]:
        _as_matrix_products(static.graph, node, shapes)
    static = onnx.shape_inference.infer_shapes(static, strict_mode=True)
    for output in static.graph.output:
        if not all(axis.HasField("dim_value") for axis in output.type.tensor_type.shape.dim):
            raise ModelError(
                f"the size of {output.name} depends on the image, so this detector has no fixed shapes: omit --fixed"
            )
    del static.graph.value_info[:]
    return static


def _folded_constants(model: onnx.ModelProto, *, banks: Collection[str]) -> onnx.ModelProto:
    """Compute everything that depends on sizes only, with the runtime's basic optimisation."""
    values = calibration_tensors(model)
    model = with_rows_as_inputs(model, banks)  # an input is not folded
    # four different values, none 0 or 1: the optimisation merges equal tensors and drops neutral operations
    set_calibration_tensors(model, {key: 0.375 + number for number, key in enumerate(values)})
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "folded.onnx"
        options.optimized_model_filepath = str(path)
        ort.InferenceSession(
            model.SerializeToString(),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=list(_RENAMING),
        )
        folded = onnx.load(path)
    used = {node.domain for node in folded.graph.node}
    kept = [one for one in folded.opset_import if one.domain in used]
    del folded.opset_import[:]
    folded.opset_import.extend(kept)
    folded.ir_version = IR_VERSION
    folded.producer_name, folded.producer_version = model.producer_name, model.producer_version
    del folded.metadata_props[:]
    set_calibration_tensors(folded, values)
    for name in banks:
        folded.graph.input.remove(next(one for one in folded.graph.input if one.name == name))
    return folded


def _cast_first(graph: onnx.GraphProto) -> None:
    """Convert the raw image to float before the transpose: TensorRT does not transpose uint8."""
    for transpose in [
        node for node in graph.node if node.op_type == "Transpose" and node.input[0] == graph.input[0].name
    ]:
        readers = [node for node in graph.node if transpose.output[0] in node.input]
        if len(readers) == 1 and readers[0].op_type == "Cast":
            cast = readers[0]
            image, between, x = transpose.input[0], transpose.output[0], cast.output[0]
            cast.input[0], cast.output[0] = image, between
            transpose.input[0], transpose.output[0] = between, x
            graph.node.remove(cast)
            graph.node.insert(0, cast)


def _as_matrix_products(graph: onnx.GraphProto, resize: onnx.NodeProto, shapes: dict[str, list[int]]) -> None:
    """Replace an antialiased bilinear resize of the last two axes by `rows @ x @ columns`."""
    name = resize.output[0]
    (height, width), (to_height, to_width) = shapes[resize.input[0]][2:], shapes[name][2:]
    rows, columns = f"{name}_rows", f"{name}_columns"
    graph.initializer.append(numpy_helper.from_array(triangle_weights(height, to_height), rows))
    graph.initializer.append(numpy_helper.from_array(triangle_weights(width, to_width).T.copy(), columns))
    at = list(graph.node).index(resize)
    graph.node.remove(resize)
    graph.node.insert(at, helper.make_node("MatMul", [resize.input[0], columns], [f"{name}_narrow"], f"{columns}_node"))
    graph.node.insert(at + 1, helper.make_node("MatMul", [rows, f"{name}_narrow"], [name], f"{rows}_node"))


def triangle_weights(length: int, target: int) -> NDArray[np.float32]:
    """Weights (target, length) of an antialiased bilinear resize: triangles of the scale's width, half-pixel centres."""
    scale = length / target
    centre = (np.arange(target)[:, None] + 0.5) * scale
    distance = np.abs(np.arange(length)[None] + 0.5 - centre)
    weight = np.maximum(0.0, 1.0 - distance / max(1.0, scale))
    return np.asarray(weight / weight.sum(axis=1, keepdims=True), dtype=np.float32)


def _is_antialiased(node: onnx.NodeProto) -> bool:
    return any(a.name == "antialias" and a.i for a in node.attribute)


def _shapes(model: onnx.ModelProto) -> dict[str, list[int]]:
    inferred: Any = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    return {
        value.name: [axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*inferred.value_info, *inferred.input)
    }
