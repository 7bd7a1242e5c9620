"""The file of a sampler: one `.onnx` with all its functions side by side, and the metadata of the sampling loop.

Each function is a separate graph in the file. The inputs of `denoise` are `denoise.x` and `denoise.t`, its output is
`denoise`. Shared weights are stored once. A session runs one function, which `function_graph` cuts out. A foreign program uses
`onnx.utils.extract_model`.
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
from anomaly.generation.base import SamplerInfo
from anomaly.inference.artifact import IR_VERSION, OPSET, check_graph, load_graph, stored_values


@dataclass(frozen=True)
class SamplerMetadata:
    """Metadata of a sampler's file."""

    contract: int
    kind: str
    """`sampler`"""
    sampler: str
    """registry name, or package.module:Class"""
    loop: str
    """name of the sampling loop, a key of `anomaly.generation.SAMPLING_LOOPS`"""
    density: str
    """`exact`, `bound` or `none`"""
    info: SamplerInfo
    functions: dict[str, list[str]]
    """function -> names of its inputs in the graph, in order; the output has the function's name"""
    category: str
    config: dict[str, Any]
    white: int
    """stored value of a 16-bit image that becomes 255"""
    versions: dict[str, str]
    commit: str | None
    seed: int
    sha256: str
    """hash of the graph's bytes without metadata"""
    golden: dict[str, list[float]]
    """function -> mean and deviation of its output on random inputs of seed 0"""


def merge(functions: Mapping[str, onnx.ModelProto]) -> onnx.ModelProto:
    """Merge the graphs of several functions into one model, side by side.

    Args:
        functions: name -> graph with unique names of inputs and outputs.

    Returns:
        One model with all inputs and outputs, and one copy of every weight.
    """
    graph = onnx.GraphProto(name="sampler")
    domains: dict[str, int] = {"": OPSET}
    stored: dict[str, str] = {}
    local: list[onnx.FunctionProto] = []
    for name, model in functions.items():
        own = compose.add_prefix(model, f"{name}/", rename_inputs=False, rename_outputs=False)
        renamed: dict[str, str] = {}
        for tensor in own.graph.initializer:
            bare = onnx.TensorProto()
            bare.CopyFrom(tensor)
            bare.name = ""
            key = hashlib.sha256(bare.SerializeToString(deterministic=True)).hexdigest()
            if key in stored:
                renamed[tensor.name] = stored[key]
            else:
                stored[key] = tensor.name
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
    """Extract one function of a sampler's file as a serialised model.

    Raises:
        ModelError: the function does not exist in the file.
    """
    if function not in metadata.functions:
        raise ModelError(
            f"no function {function!r} in this sampler's file; its functions are {', '.join(metadata.functions)}"
        )
    part = utils.Extractor(model).extract_model(metadata.functions[function], [function])
    return bytes(part.SerializeToString())


def read_sampler(path: Path) -> tuple[onnx.ModelProto, SamplerMetadata]:
    """Read and check the file of a sampler.

    Raises:
        ModelError: a corrupt or foreign file, another contract, a detector, or a graph changed since export.
    """
    model = load_graph(path)
    values = stored_values(model, name=str(path))
    try:
        if values["kind"] != "sampler":
            raise ModelError(
                f"{path} is a {values['kind']}, which scores and does not draw: give the sampler.onnx of a sampler,"
                " or run `anomaly score` on this file"
            )
        values["info"] = SamplerInfo(**values["info"])
        metadata = SamplerMetadata(**{field.name: values[field.name] for field in fields(SamplerMetadata)})
    except (KeyError, TypeError) as error:
        raise ModelError(f"{path} has damaged metadata ({error!r}): export it again") from error
    check_graph(model, metadata.sha256, name=str(path))
    return model, metadata
