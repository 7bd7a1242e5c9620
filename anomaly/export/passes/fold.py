"""Work that a trained graph need not do: what follows a convolution channel by channel, and copies that change nothing.

Every rule is exact up to rounding and works on the bare graph, so it serves all detectors alike:

* a frozen batch norm, a constant factor or a constant summand after a convolution goes into its weights and bias;
* a permutation of channels that is cut into parts right afterwards becomes one selection per part, one copy less;
* a permutation of channels whose result is only reduced over the channels is left out.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

Array = NDArray[Any]
Affine = tuple[Array, Array]
"""Factor and summand of each channel, or of all"""

_CONVOLUTIONS = {"Conv": 0, "ConvTranspose": 1}
"""Operator -> axis of the output channels in its weights"""
_POINTWISE = ("Mul", "Add", "Abs", "Exp", "Neg", "Relu", "Sqrt", "Tanh")
_REDUCTIONS = ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin")


def fold(model: onnx.ModelProto) -> onnx.ModelProto:
    """Apply the rules in place until none finds anything; gives the model back."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    num_channels = {
        value.name: value.type.tensor_type.shape.dim[1].dim_value
        for value in (*inferred.value_info, *inferred.input)
        if len(value.type.tensor_type.shape.dim) > 1
    }
    graph = _Graph(model.graph, num_channels)
    while any(rule(graph, node) for rule in _RULES for node in list(model.graph.node)):
        graph = _Graph(model.graph, num_channels)
    used = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return model


class _Graph:
    """A graph with its constants, and who makes and who takes each tensor."""

    def __init__(self, graph: onnx.GraphProto, num_channels: dict[str, int]) -> None:
        self.graph = graph
        self.num_channels = num_channels
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.maker = {name: node for node in graph.node for name in node.output}
        self.takers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self.takers.setdefault(name, []).append(node)
        self.outputs = {value.name for value in graph.output}

    def value(self, name: str) -> Array | None:
        """A constant's value; None where the tensor is computed."""
        found = self.constants.get(name)
        return None if found is None else numpy_helper.to_array(found)

    def only_taker(self, name: str) -> onnx.NodeProto | None:
        takers = self.takers.get(name, [])
        return takers[0] if len(takers) == 1 and name not in self.outputs else None

    def replace(self, old: str, new: str) -> None:
        """Let everybody who takes `old` take `new`."""
        for node in self.takers.get(old, []):
            for at, name in enumerate(node.input):
                if name == old:
                    node.input[at] = new

    def add_constant(self, name: str, value: Array) -> None:
        self.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), name))


def _into_convolution(graph: _Graph, node: onnx.NodeProto) -> bool:
    """Fold a batch norm, factor or summand of each channel into the convolution before it."""
    place = next((at for at, name in enumerate(node.input) if name in graph.maker), -1)
    convolution = graph.maker[node.input[place]] if place >= 0 else None
    if convolution is None or convolution.op_type not in _CONVOLUTIONS or graph.only_taker(node.input[place]) is None:
        return False
    weight = graph.value(convolution.input[1])
    own = [name for name in convolution.input[1:] if name]
    if weight is None or any(len(graph.takers[name]) > 1 or name not in graph.constants for name in own):
        return False
    groups = next((a.i for a in convolution.attribute if a.name == "group"), 1)
    axis = _CONVOLUTIONS[convolution.op_type]
    if axis == 1 and groups != 1:
        return False
    affine = _affine(graph, node, place, num_channels=weight.shape[axis], rank=weight.ndim)
    if affine is None:
        return False
    factor, summand = (np.broadcast_to(part, weight.shape[axis]).astype(np.float64) for part in affine)
    bias = graph.value(own[1]) if len(own) == 2 else np.zeros(weight.shape[axis])
    assert bias is not None
    shape = [1] * weight.ndim
    shape[axis] = -1
    graph.constants[own[0]].CopyFrom(
        numpy_helper.from_array((weight * factor.reshape(shape)).astype(weight.dtype), own[0])
    )
    name = own[1] if len(own) == 2 else f"{own[0]}_bias"
    new = numpy_helper.from_array((bias * factor + summand).astype(weight.dtype), name)
    if len(own) == 2:
        graph.constants[name].CopyFrom(new)
    elif np.any(summand):
        graph.graph.initializer.append(new)
        del convolution.input[2:]
        convolution.input.append(name)
    convolution.output[0] = node.output[0]
    graph.graph.node.remove(node)
    return True


def _affine(graph: _Graph, node: onnx.NodeProto, place: int, *, num_channels: int, rank: int) -> Affine | None:
    """What a node does to each channel of its input at `place`, where that is a factor and a summand."""
    if node.op_type == "BatchNormalization" and len(node.output) == 1:
        scale, shift, mean, variance = (graph.value(name) for name in node.input[1:])
        if scale is None or shift is None or mean is None or variance is None:
            return None
        epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
        factor = scale.astype(np.float64) / np.sqrt(variance.astype(np.float64) + epsilon)
        return factor, shift - mean * factor
    if node.op_type not in ("Mul", "Add") or len(set(node.input)) != 2:
        return None
    constant = graph.value(node.input[1 - place])
    if constant is None or constant.ndim > rank:
        return None
    full = constant.reshape((1,) * (rank - constant.ndim) + constant.shape)
    if full.size not in (1, num_channels) or full.shape[1] != full.size:
        return None
    number = full.reshape(-1)
    return (number, np.zeros(1)) if node.op_type == "Mul" else (np.ones(1), number)


def _selection_of_parts(graph: _Graph, node: onnx.NodeProto) -> bool:
    """Turn a permutation that is then cut into parts into a selection for each part."""
    order = _permutation(graph, node)
    split = graph.only_taker(node.output[0])
    if order is None or split is None or split.op_type != "Split" or _axis(split) != 1 or len(split.input) != 2:
        return False
    lengths = graph.value(split.input[1])
    if lengths is None:
        return False
    at = list(graph.graph.node).index(split)
    for number, part in enumerate(np.split(order, np.cumsum(lengths)[:-1])):
        indices = f"{node.output[0]}_part_{number}"
        graph.add_constant(indices, part)
        selected = helper.make_node(
            "Gather", [node.input[0], indices], [split.output[number]], f"{indices}_node", axis=1
        )
        graph.graph.node.insert(at + number, selected)
    graph.graph.node.remove(split)
    graph.graph.node.remove(node)
    return True


def _irrelevant_permutation(graph: _Graph, node: onnx.NodeProto) -> bool:
    """Leave out a permutation of channels that only ever meets itself, pointwise, and then a reduction over the channels."""
    if _permutation(graph, node) is None:
        return False
    permuted, waiting = {node.output[0]}, [node.output[0]]
    while waiting:
        name = waiting.pop()
        if name in graph.outputs:
            return False
        for taker in graph.takers.get(name, []):
            axes = graph.value(taker.input[1]) if taker.op_type in _REDUCTIONS and len(taker.input) == 2 else None
            if axes is not None and axes.tolist() == [1]:
                continue
            if taker.op_type not in _POINTWISE or any(given not in permuted for given in taker.input):
                return False
            permuted.add(taker.output[0])
            waiting.append(taker.output[0])
    graph.replace(node.output[0], node.input[0])
    graph.graph.node.remove(node)
    return True


def _permutation(graph: _Graph, node: onnx.NodeProto) -> Array | None:
    """The order of channels that a node sets up; None where it does something else."""
    order = graph.value(node.input[1]) if node.op_type == "Gather" and _axis(node) == 1 else None
    if order is None or order.ndim != 1 or not np.array_equal(np.sort(order), np.arange(order.size)):
        return None
    return order if graph.num_channels.get(node.input[0]) == order.size else None


def _axis(node: onnx.NodeProto) -> int:
    return int(next((a.i for a in node.attribute if a.name == "axis"), 0))


_RULES = (_into_convolution, _selection_of_parts, _irrelevant_permutation)
