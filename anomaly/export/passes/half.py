"""Half precision for the learned convolutions of an exported graph, and for the nodes between them.

Preprocessing, reductions, similarity measures with constant windows, the score and the calibration stay in single precision:
they need its digits and take little time. onnxconverter-common's float16 is slower and larger (benchmarks/graph_passes.py).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from anomaly.errors import UsageError

_LARGEST_HALF = 65504.0
_IN_HALF = (
    "Conv", "ConvTranspose", "Relu", "LeakyRelu", "Sigmoid", "Tanh", "Exp", "Add", "Sub", "Mul", "MaxPool", "Concat", "Split",
    "Gather", "Slice", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Identity",
)  # fmt: skip
"""Operators in half precision between two convolutions; all their float inputs have one type"""


def learned_convolutions(model: onnx.ModelProto, learned: Collection[str]) -> list[onnx.NodeProto]:
    """Find the convolutions with learned weights.

    Raises:
        UsageError: a graph without learned convolutions.
    """
    found = [n for n in model.graph.node if n.op_type in ("Conv", "ConvTranspose") and n.input[1] in learned]
    if not found:
        raise UsageError(
            "fp16 and int8 change learned convolutions, and this detector has no learned convolution: take fp32"
        )
    return found


def to_half(model: onnx.ModelProto, *, learned: Collection[str]) -> onnx.ModelProto:
    """Copy a graph, with the learned convolutions and the nodes between them in half precision.

    Args:
        model: bare graph in single precision.
        learned: names of the learned tensors.

    Raises:
        UsageError: a graph without learned convolutions.
    """
    half = onnx.ModelProto()
    half.CopyFrom(model)
    graph = half.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    inferred = onnx.shape_inference.infer_shapes(model).graph
    is_float = {
        v.name for v in (*inferred.value_info, *inferred.output) if v.type.tensor_type.elem_type == TensorProto.FLOAT
    }
    is_float |= {name for name, value in constants.items() if value.dtype == np.float32}
    chosen = {
        node.output[0]
        for node in _between(graph, learned_convolutions(half, learned))
        if node.op_type in _IN_HALF
        and node.output[0] in is_float
        and all(
            np.abs(constants[n]).max(initial=0.0) <= _LARGEST_HALF
            for n in node.input
            if n in constants and n in is_float
        )
    }
    inside = {name for node in graph.node if node.output[0] in chosen for name in node.output}
    outputs = {value.name for value in graph.output}
    nodes: list[onnx.NodeProto] = []
    made: set[str] = set()

    def cast(name: str, to: int) -> str:
        other = f"{name}_half" if to == TensorProto.FLOAT16 else name
        if other not in made:
            made.add(other)
            source = name if to == TensorProto.FLOAT16 else f"{name}_half"
            nodes.append(helper.make_node("Cast", [source], [other], f"{other}_cast", to=to))
        return other

    for node in graph.node:
        is_chosen = node.output[0] in chosen
        for at, name in enumerate(node.input):
            if is_chosen and name in is_float:
                if name in inside:
                    node.input[at] = f"{name}_half"
                elif name in constants:
                    node.input[at] = f"{name}_half"
                    if f"{name}_half" not in made:
                        made.add(f"{name}_half")
                        value = constants[name].astype(np.float16)
                        graph.initializer.append(numpy_helper.from_array(value, f"{name}_half"))
                else:
                    node.input[at] = cast(name, TensorProto.FLOAT16)
            elif not is_chosen and name in inside:
                cast(name, TensorProto.FLOAT)
        nodes.append(node)
        if is_chosen:
            names = list(node.output)
            node.output[:] = [f"{name}_half" for name in names]
            for name in outputs.intersection(names):
                cast(name, TensorProto.FLOAT)
    ordered = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(ordered)
    return _without_unused(half)


def _between(graph: onnx.GraphProto, convolutions: list[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Give the convolutions, and every node that lies after one of them and before another."""
    marked = {node.output[0] for node in convolutions}
    after: set[str] = set()
    for node in graph.node:
        if node.output[0] in marked or after.intersection(node.input):
            after.update(node.output)
    before: set[str] = set()
    for node in reversed(graph.node):
        if node.output[0] in marked or before.intersection(node.output):
            before.update(node.input)
            if node.output[0] in marked or after.intersection(node.output):
                yield node


def _without_unused(model: onnx.ModelProto) -> onnx.ModelProto:
    used = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return model
