"""Convolutions in 8-bit integers: pairs of QuantizeLinear and DequantizeLinear around them, with ranges measured beforehand.

B. Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", 2018, arXiv
1712.05877: weights signed and symmetric for each output channel (their section 3), activations unsigned with a zero point
(eq. 1: r = scale · (q - zero)), biases 32-bit at the product of both scales. A ReLU after a convolution is quantised with it.

Only the chosen convolutions see rounded values. ONNX Runtime's own `quantize_static` gives a convolution's rounded input to
all readers, which a normalising flow scores like a defect (benchmarks/graph_passes.py).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from anomaly.inference.artifact import INPUT


class Range(NamedTuple):
    """The range of a tensor's values; it always contains zero."""

    low: float
    high: float


def measure_ranges(
    model: onnx.ModelProto, convolutions: Collection[str], *, images: Iterable[NDArray[np.uint8]]
) -> dict[str, Range]:
    """Measure the ranges of inputs and outputs of convolutions.

    Args:
        model: bare graph.
        convolutions: names of the outputs of `Conv` nodes.
        images: inputs of the graph, (n, H, W, 3) uint8 RGB each.

    Returns:
        Name of a tensor -> its range, for the input and the output of each convolution, after its ReLU if it has one.
    """
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    names = sorted({name for node in model.graph.node if node.output[0] in convolutions
                    for name in (node.input[0], _quantised_output(model.graph, node))})  # fmt: skip
    for name in names:
        for end in ("Min", "Max"):
            watched.graph.node.append(helper.make_node(f"Reduce{end}", [name], [f"{name}_{end}"], keepdims=0))
            watched.graph.output.append(helper.make_tensor_value_info(f"{name}_{end}", TensorProto.FLOAT, []))
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(watched.SerializeToString(), options, providers=["CPUExecutionProvider"])
    ends = [f"{name}_{end}" for name in names for end in ("Min", "Max")]
    found = np.array([session.run(ends, {INPUT: image}) for image in images]).reshape(-1, len(names), 2)
    lows, highs = np.minimum(found[..., 0].min(axis=0), 0), np.maximum(found[..., 1].max(axis=0), 0)
    return {name: Range(float(low), float(high)) for name, low, high in zip(names, lows, highs, strict=True)}


def quantise(model: onnx.ModelProto, convolutions: Collection[str], *, ranges: dict[str, Range]) -> onnx.ModelProto:
    """Copy a graph, with convolutions in 8-bit integers.

    Args:
        model: bare graph in single precision.
        convolutions: names of the outputs of `Conv` nodes with constant weights.
        ranges: ranges of their inputs and outputs.
    """
    integer = onnx.ModelProto()
    integer.CopyFrom(model)
    graph = integer.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    quantised_outputs = {_quantised_output(graph, node) for node in graph.node if node.output[0] in convolutions}
    nodes: list[onnx.NodeProto] = []
    made: set[str] = set()

    def constant(name: str, value: NDArray[np.generic]) -> str:
        if name not in made:
            made.add(name)
            graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def scale_of(name: str) -> np.float32:
        return np.float32(max(ranges[name].high - ranges[name].low, 1e-8) / 255)

    def rounded(name: str, source: str) -> str:
        """Name of the tensor `name` rounded to 8 bits, computed from `source` once."""
        result = f"{name}_dequantised"
        if result not in made:
            made.add(result)
            scale = constant(f"{name}_scale", np.array(scale_of(name)))
            zero = np.clip(np.rint(-ranges[name].low / scale_of(name)), 0, 255).astype(np.uint8)
            ends = [scale, constant(f"{name}_zero", np.array(zero))]
            nodes.append(helper.make_node("QuantizeLinear", [source, *ends], [f"{name}_bits"], f"{name}_quantise"))
            nodes.append(helper.make_node("DequantizeLinear", [f"{name}_bits", *ends], [result], f"{name}_dequantise"))
        return result

    def dequantised_constant(name: str, bits: NDArray[np.generic], scale: NDArray[np.float32]) -> str:
        ends = [constant(f"{name}_bits", bits), constant(f"{name}_scale", scale)]
        ends.append(constant(f"{name}_zero", np.zeros(len(scale), dtype=bits.dtype)))
        nodes.append(helper.make_node("DequantizeLinear", ends, [f"{name}_dequantised"], f"{name}_dequantise", axis=0))
        return f"{name}_dequantised"

    for node in graph.node:
        if node.output[0] in convolutions:
            weight = constants[node.input[1]]
            scale = (np.abs(weight).reshape(len(weight), -1).max(axis=1).clip(1e-8) / 127).astype(np.float32)
            bits = np.rint(weight / scale.reshape(-1, *[1] * (weight.ndim - 1))).clip(-127, 127).astype(np.int8)
            biases = list(node.input[2:])
            source = node.input[0]
            node.input[:] = [rounded(source, source), dequantised_constant(node.input[1], bits, scale)]
            for name in biases:
                bias_scale = scale * scale_of(source)
                whole = np.rint(constants[name].astype(np.float64) / bias_scale).clip(-(2**31), 2**31 - 1)
                node.input.append(dequantised_constant(name, whole.astype(np.int32), bias_scale))
        nodes.append(node)
        for at, name in enumerate(node.output):
            if name in quantised_outputs:
                node.output[at] = f"{name}_exact"
                nodes.append(helper.make_node("Identity", [rounded(name, f"{name}_exact")], [name], f"{name}_back"))
    ordered = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(ordered)
    _remove_identities(graph)
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return integer


def _quantised_output(graph: onnx.GraphProto, convolution: onnx.NodeProto) -> str:
    """The tensor that is rounded after a convolution: its output, or the output of a ReLU that is its only reader."""
    readers = [node for node in graph.node if convolution.output[0] in node.input]
    return str((readers[0] if len(readers) == 1 and readers[0].op_type == "Relu" else convolution).output[0])


def _remove_identities(graph: onnx.GraphProto) -> None:
    """Connect the readers of an identity to its input; no output of the graph is an identity."""
    source = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Identity"}
    kept = [node for node in graph.node if node.op_type != "Identity"]
    for node in kept:
        for at, name in enumerate(node.input):
            node.input[at] = source.get(name, name)
    ordered = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
    del graph.node[:]
    graph.node.extend(ordered)
