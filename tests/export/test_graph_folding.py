"""Folding leaves what a graph says as it was, and takes the work out that it names."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from anomaly.export.passes.fold import fold

RNG = np.random.default_rng(0)
Array = NDArray[Any]


def draw(*shape: int) -> Array:
    return RNG.normal(size=shape).astype(np.float32)


def build(nodes: list[onnx.NodeProto], constants: dict[str, Array], *, num_channels: int) -> onnx.ModelProto:
    """A graph from x (n, num_channels, h, w) to y."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", num_channels, "h", "w"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["a", "b", "c", "d"])
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "g", [x], [y], tensors), opset_imports=[helper.make_opsetid("", 18)]
    )
    model.ir_version = 8
    return model


def run(model: onnx.ModelProto, x: Array) -> Array:
    onnx.checker.check_model(model)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["y"], {"x": x})[0])


def folded(model: onnx.ModelProto, x: Array) -> Counter[str]:
    """Operators after folding, which changes nothing."""
    before = run(model, x)
    fold(model)
    np.testing.assert_allclose(run(model, x), before, rtol=2e-5, atol=2e-5)
    return Counter(node.op_type for node in model.graph.node)


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("operator", ["Conv", "ConvTranspose"])
def test_batch_norm_factor_and_summand_go_into_the_convolution(operator: str, has_bias: bool) -> None:
    shape = (6, 4, 3, 3) if operator == "Conv" else (4, 6, 3, 3)
    constants = {"w": draw(*shape), "b": draw(6), "factor": draw(1, 6, 1, 1), "half": np.float32(0.5).reshape(())}
    constants |= {
        "scale": draw(6),
        "shift": draw(6),
        "mean": draw(6),
        "variance": np.abs(draw(6)),
        "summand": draw(6, 1, 1),
    }
    nodes = [
        helper.make_node(operator, ["x", "w", "b"] if has_bias else ["x", "w"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["a", "scale", "shift", "mean", "variance"], ["c"], epsilon=1e-3),
        helper.make_node("Mul", ["factor", "c"], ["d"]),
        helper.make_node("Add", ["d", "summand"], ["e"]),
        helper.make_node("Mul", ["e", "half"], ["y"]),
    ]
    model = build(nodes, constants, num_channels=4)
    assert folded(model, draw(2, 4, 5, 7)) == {operator: 1}
    assert len(model.graph.initializer) == 2
    assert model.graph.initializer[0].name == "w"  # what was learned keeps its name


def test_what_others_see_or_share_is_left_alone() -> None:
    constants = {"w": draw(4, 4, 1, 1), "factor": draw(1, 4, 1, 1), "by_row": draw(1, 1, 5, 1)}
    seen_twice = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("Mul", ["a", "factor"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    assert folded(build(seen_twice, constants, num_channels=4), draw(1, 4, 5, 5))["Mul"] == 1
    shared = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("Mul", ["a", "factor"], ["b"]),
        helper.make_node("Conv", ["b", "w"], ["y"]),
    ]
    assert folded(build(shared, constants, num_channels=4), draw(1, 4, 5, 5))["Mul"] == 1
    by_row = [helper.make_node("Conv", ["x", "w"], ["a"]), helper.make_node("Mul", ["a", "by_row"], ["y"])]
    assert folded(build(by_row, constants, num_channels=4), draw(1, 4, 5, 5))["Mul"] == 1


def test_grouped_convolution_takes_a_factor() -> None:
    constants = {"w": draw(6, 2, 3, 3), "factor": draw(6, 1, 1)}
    nodes = [helper.make_node("Conv", ["x", "w"], ["a"], group=3), helper.make_node("Mul", ["a", "factor"], ["y"])]
    assert folded(build(nodes, constants, num_channels=6), draw(2, 6, 5, 5)) == {"Conv": 1}


def test_permutation_that_is_cut_becomes_a_selection_of_each_part() -> None:
    constants = {"order": RNG.permutation(6), "lengths": np.array([2, 4])}
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Gather", ["a", "order"], ["b"], axis=1),
        helper.make_node("Split", ["b", "lengths"], ["c", "d"], axis=1),
        helper.make_node("Concat", ["d", "c"], ["y"], axis=1),
    ]
    assert folded(build(nodes, constants, num_channels=6), draw(2, 6, 3, 3)) == {"Relu": 1, "Gather": 2, "Concat": 1}


def test_permutation_before_a_mean_over_the_channels_is_left_out() -> None:
    constants = {"order": RNG.permutation(6), "channels": np.array([1]), "rows": np.array([2])}
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Gather", ["a", "order"], ["b"], axis=1),
        helper.make_node("Mul", ["b", "b"], ["c"]),
        helper.make_node("ReduceMean", ["c", "channels"], ["y"], keepdims=1),
    ]
    assert folded(build(nodes, constants, num_channels=6), draw(2, 6, 3, 3)) == {"Relu": 1, "Mul": 1, "ReduceMean": 1}
    nodes[-1].input[1] = "rows"  # over another axis the order of the channels stays
    assert folded(build(nodes, constants, num_channels=6), draw(2, 6, 3, 3))["Gather"] == 1


def test_selection_of_some_channels_is_no_permutation() -> None:
    constants = {"order": np.array([1, 0, 2]), "channels": np.array([1])}
    nodes = [
        helper.make_node("Gather", ["x", "order"], ["a"], axis=1),
        helper.make_node("ReduceMean", ["a", "channels"], ["y"], keepdims=1),
    ]
    assert folded(build(nodes, constants, num_channels=6), draw(2, 6, 3, 3))["Gather"] == 1
