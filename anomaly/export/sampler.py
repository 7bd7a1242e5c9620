"""Export of a trained sampler to the file that draws, and the comparison of both."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from anomaly.errors import ParityError
from anomaly.export.torch_to_onnx import to_onnx
from anomaly.generation.artifact import SamplerMetadata, function_graph, merge
from anomaly.generation.onnx_sampler import PREPARE, OnnxSampler, draw_input, golden_of
from anomaly.inference.artifact import CONTRACT, graph_sha256, write_model
from anomaly.inference.difference import relative_difference
from anomaly.inference.session import Device, open_session
from anomaly.samplers.base import Sampler
from anomaly.system.progress import progress_bar
from anomaly.system.run_card import commit, hardware, now, versions
from anomaly.training.fitted_model import Description, config_to_travel

SAMPLER_FILE = "sampler.onnx"
TARGET, REFUSE = 1e-4, 1e-3
"""Difference of a function's output, `|a - b| / max(1, |a|)`: target of fp32, and bound of an accepted file"""
MOST_CODES = 0.01
"""Largest accepted share of different integer outputs"""
NUM_COMPARED = 4
"""Compared inputs of each function"""


class _Function(nn.Module):
    """A method of a sampler as a module."""

    def __init__(self, sampler: Sampler, name: str) -> None:
        super().__init__()
        self.sampler, self.name = sampler, name

    def forward(self, *inputs: Tensor) -> Tensor:
        output: Tensor = getattr(self.sampler, self.name)(*inputs)
        return output


def function_graphs(sampler: Sampler) -> dict[str, onnx.ModelProto]:
    """Export `prepare`, from raw images to x, and every function of a sampler as separate graphs.

    Raises:
        ModelError: a function cannot be exported.
    """
    sampler = copy.deepcopy(sampler).eval().cpu()
    height, width = sampler.preprocess.size
    free = torch.export.Dim.DYNAMIC
    raw = torch.zeros(2, height + 3, width + 5, 3, dtype=torch.uint8)
    examples = sampler.functions()
    with progress_bar("export the functions") as report:
        graphs = {
            PREPARE: to_onnx(
                sampler.preprocess,
                (raw,),
                shapes=({0: free, 1: free, 2: free},),
                inputs=[f"{PREPARE}.image"],
                outputs=[PREPARE],
            )
        }
        for name, example in examples.items():
            report(len(graphs), len(examples) + 1)
            graphs[name] = to_onnx(
                _Function(sampler, name),
                example,
                shapes=(tuple({0: free} for _ in example),),
                inputs=[f"{name}.{part}" for part in sampler.input_names(name)],
                outputs=[name],
            )
        report(len(graphs), len(graphs))
    return graphs


def export_sampler(sampler: Sampler, description: Description, path: Path) -> dict[str, Any]:
    """Write the file of a sampler, see `anomaly.generation.artifact`.

    Returns:
        File name, hash of the graph, and names of the functions.

    Raises:
        ModelError: a function cannot be exported.
        OutputError: the file cannot be written.
    """
    graphs = function_graphs(sampler)
    model = merge(graphs)
    metadata = SamplerMetadata(
        contract=CONTRACT,
        kind="sampler",
        sampler=description.detector,
        loop=sampler.loop,
        density=sampler.density,
        info=sampler.info(),
        functions={name: [node.name for node in graph.graph.input] for name, graph in graphs.items()},
        category=description.category,
        config=config_to_travel(description),
        white=description.white,
        versions=versions(),
        commit=commit(),
        seed=description.seed,
        sha256=graph_sha256(model),
        golden={},
    )
    for name in sampler.functions():
        data = function_graph(model, metadata, name)
        session, _ = open_session(
            data, name=f"the exported {name}", device="cpu", num_threads=0, precision="fp32", is_fixed=False
        )
        metadata.golden[name] = golden_of(session, name)
    write_model(path, model, metadata)
    return {"file": path.name, "graph": metadata.sha256, "functions": list(metadata.functions)}


def compare_sampler(
    sampler: Sampler, path: Path, *, images: Sequence[NDArray[np.uint8]], device: Device, seed: int
) -> dict[str, Any]:
    """Compare the functions of a trained sampler with those of its file, on images and on random inputs.

    Args:
        sampler: trained sampler.
        path: exported file.
        images: calibration images, (H, W, 3) uint8 RGB, at least `NUM_COMPARED`. Functions of images are compared on them:
            far from images a flow amplifies rounding without bound.
        device: device of the exported file.
        seed: seed of the random inputs.

    Returns:
        The certificate as JSON values.

    Raises:
        ModelError: a missing or damaged file.
    """
    exported = OnnxSampler(path, device=device, num_threads=0)
    x = np.concatenate([exported.prepare(image[None]) for image in images[:NUM_COMPARED]])
    rng = np.random.default_rng(seed)
    worst: dict[str, float] = {}
    tolerances: dict[str, float] = {}
    for name, example in sampler.functions().items():
        inputs = [
            x
            if argument == "x" and part.shape[1:] == x.shape[1:]
            else draw_input(argument, (NUM_COMPARED, *part.shape[1:]), largest=_largest(part), rng=rng)
            for argument, part in zip(sampler.input_names(name), example, strict=True)
        ]
        a, b = sampler.run_function(name, *inputs), exported.run_function(name, *inputs)
        if np.issubdtype(a.dtype, np.integer):  # codes: two nearly equal ones may change places
            worst[name] = float((a != b).mean())
            tolerances[name] = MOST_CODES
        else:
            worst[name] = float(np.nan_to_num(relative_difference(a, b), nan=np.inf).max())
            tolerances[name] = REFUSE
    return {
        "kind": "parity of a sampler",
        "sampler": exported.metadata.sampler,
        "graph": exported.metadata.sha256,
        "functions": worst,
        "target": TARGET,
        "refused_above": tolerances,
        "versions": versions(),
        "hardware": hardware(),
        "date": now(),
    }


def worst_function(certificate: dict[str, Any]) -> tuple[str, float, float]:
    """Return name, difference and tolerance of the function with the largest difference relative to its tolerance."""
    worst, tolerances = certificate["functions"], certificate["refused_above"]
    name = max(worst, key=lambda key: worst[key] / tolerances[key])
    return name, worst[name], tolerances[name]


def check_sampler_certificate(certificate: dict[str, Any], *, path: Path) -> None:
    """Refuse a sampler's file whose certificate shows a difference above the tolerance.

    Args:
        certificate: result of `compare_sampler`.
        path: exported file, for the message.

    Raises:
        ParityError: the worst function, its difference and the tolerance.
    """
    name, difference, tolerance = worst_function(certificate)
    if not difference <= tolerance:
        raise ParityError(
            f"{path}: its function {name} differs from the trained sampler by {difference:.3g}, above {tolerance:g}:"
            " do not ship it; export it again, and see the certificate beside it"
        )


def _largest(example: Tensor) -> int | None:
    """Largest value of an integer example; None for real numbers."""
    return None if example.is_floating_point() else int(example.max())
