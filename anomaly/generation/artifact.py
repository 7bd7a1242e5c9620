"""The file of a sampler: one `.onnx` that holds all its functions side by side, with what the process must know.

Each function is a graph of its own within the file: the inputs of `denoise` are `denoise.x` and `denoise.t`, its output is
`denoise`. Weights that two functions share stand in the file once. A session is made of one function at a time
(`function_graph`); a foreign program cuts it out in the same way, with `onnx.utils.extract_model`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import onnx
from onnx import compose, utils

from anomaly.errors import ModelError
from anomaly.generation.base import Facts
from anomaly.inference.artifact import IR_VERSION, OPSET, check_graph, load_graph, stored_values


@dataclass(frozen=True)
class SamplerMetadata:
    """All that travels in the file beside the functions."""

    contract: int
    kind: str
    """`sampler`"""
    sampler: str
    """its name in the registry"""
    process: str
    """the loop that draws, a key of `anomaly.generation.PROCESSES`"""
    density: str
    """`exact`, `bound` or `none`"""
    facts: Facts
    functions: dict[str, list[str]]
    """function -> names of its inputs in the graph, in order; its output has its own name"""
    category: str
    config: dict[str, Any]
    white: int
    """stored value of a 16-bit image that becomes 255"""
    versions: dict[str, str]
    commit: str
    seed: int
    sha256: str
    """of the graph's bytes without metadata"""
    golden: dict[str, list[float]]
    """function -> mean and deviation of its output on inputs drawn from seed 0"""


def merge(functions: Mapping[str, onnx.ModelProto]) -> onnx.ModelProto:
    """Put the graphs of several functions side by side into one.

    Args:
        functions: name -> its graph, whose inputs and outputs already have names that no other has.

    Returns:
        One model with all inputs and outputs, and every weight once.
    """
    graph = onnx.GraphProto(name="sampler")
    domains: dict[str, int] = {"": OPSET}
    held: dict[str, str] = {}
    local: list[onnx.FunctionProto] = []
    for name, model in functions.items():
        own = compose.add_prefix(model, f"{name}/", rename_inputs=False, rename_outputs=False)
        renamed: dict[str, str] = {}
        for tensor in own.graph.initializer:
            bare = onnx.TensorProto()
            bare.CopyFrom(tensor)
            bare.name = ""
            key = hashlib.sha256(bare.SerializeToString(deterministic=True)).hexdigest()
            if key in held:
                renamed[tensor.name] = held[key]
            else:
                held[key] = tensor.name
                graph.initializer.append(tensor)
        _rename_inputs(own.graph, renamed)
        graph.node.extend(own.graph.node)
        graph.input.extend(own.graph.input)
        graph.output.extend(own.graph.output)
        local.extend(own.functions)
        domains |= {entry.domain: entry.version for entry in own.opset_import}
    merged = onnx.helper.make_model(
        graph,
        functions=local,
        ir_version=IR_VERSION,
        opset_imports=[onnx.helper.make_opsetid(domain, version) for domain, version in domains.items()],
        producer_name="anomaly",
    )
    onnx.checker.check_model(merged)
    return merged


def _rename_inputs(graph: onnx.GraphProto, renamed: Mapping[str, str]) -> None:
    for node in graph.node:
        for position, name in enumerate(node.input):
            if name in renamed:
                node.input[position] = renamed[name]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _rename_inputs(attribute.g, renamed)


def function_graph(model: onnx.ModelProto, metadata: SamplerMetadata, function: str) -> bytes:
    """Cut one function out of a sampler's file, serialised.

    Raises:
        ModelError: the file holds no such function.
    """
    if function not in metadata.functions:
        raise ModelError(f"this sampler's file has no function {function!r}; it has {', '.join(metadata.functions)}")
    part = utils.Extractor(model).extract_model(metadata.functions[function], [function])
    return bytes(part.SerializeToString())


def read_sampler(path: Path) -> tuple[onnx.ModelProto, SamplerMetadata]:
    """Read and check the file of a sampler.

    Raises:
        ModelError: a corrupt or foreign file, another contract, a detector, or a graph that is not the one hashed at export.
    """
    model = load_graph(path)
    values = stored_values(model, name=str(path))
    try:
        if values["kind"] != "sampler":
            raise ModelError(
                f"{path} is a {values['kind']}, which scores and does not draw: give the sampler.onnx that"
                " `anomaly export` writes for a sampler, or `anomaly score` this one"
            )
        values["facts"] = Facts(**values["facts"])
        metadata = SamplerMetadata(**{field.name: values[field.name] for field in fields(SamplerMetadata)})
    except (KeyError, TypeError) as error:
        raise ModelError(f"{path} has damaged metadata ({error!r}): export it again") from error
    check_graph(model, metadata.sha256, name=str(path))
    return model, metadata
