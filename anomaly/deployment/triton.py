"""Triton: a model file as an entry of a Triton model repository.

    FOLDER/NAME/1/model.onnx      a copy of the file
    FOLDER/NAME/config.pbtxt      inputs, outputs, batches and instances, in Triton's `ModelConfig`

Triton runs the same graph in ONNX Runtime, so its scores equal those of `anomaly score`. The caller converts pixels before
the graph and computes verdict and regions after it, as docs/reference/formats.md describes.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal

from anomaly.errors import OutputError, UsageError
from anomaly.inference.artifact import INPUT, OUTPUTS, Metadata, load_graph, read_metadata
from anomaly.service.model_repository import NAME_PATTERN
from anomaly.system.files import atomic_write

MODEL_FILE = "model.onnx"


def deploy(
    target: Literal["triton"],
    model: str | Path,
    folder: str | Path,
    *,
    name: str | None = None,
    version: int = 1,
    max_batch: int = 16,
    max_delay_ms: float = 2.0,
    instances: int = 1,
    device: Literal["gpu", "cpu"] = "gpu",
    tensorrt: bool = False,
) -> Path:
    """Write a model into a Triton model repository.

    Args:
        target: kind of server: triton.
        model: exported .onnx file.
        folder: model repository; its other models stay.
        name: model name in the repository. The default is the file's name, and the folder's name for model.onnx.
        version: model version; Triton serves the highest.
        max_batch: largest number of images that Triton joins into one inference.
        max_delay_ms: longest wait of an image for others, in milliseconds.
        instances: number of sessions on each GPU, or on the CPU.
        device: processor of the sessions.
        tensorrt: run through TensorRT, with engines kept in the container; needs a model exported with --fixed.

    Returns:
        The model's folder in the repository.

    Raises:
        ModelError: a model file that is not valid.
        UsageError: a model, name or number that Triton cannot serve.
        OutputError: the repository holds this version already, or cannot be written.
    """
    if target != "triton":
        raise UsageError(f"target {target!r} is not supported: give triton")
    model, folder = Path(model), Path(folder)
    chosen = name or (model.resolve().parent.name if model.name == MODEL_FILE else model.stem)
    if not NAME_PATTERN.fullmatch(chosen):
        raise UsageError(f"the model name {chosen!r} is not valid: give --name with letters, digits, . _ -")
    if min(version, max_batch, instances) < 1 or not max_delay_ms >= 0:
        raise UsageError(
            f"version {version}, max_batch {max_batch}, instances {instances}, max_delay_ms {max_delay_ms}:"
            " give at least 1, 1, 1 and 0"
        )
    metadata = read_metadata(load_graph(model), name=str(model))
    if metadata.tiling:
        raise UsageError(f"{model} is a model for large images, which Triton cannot serve: use `anomaly serve`")
    if tensorrt and (device == "cpu" or not metadata.fixed):
        raise UsageError("--tensorrt needs a GPU and a graph of fixed size: export the model with --fixed N,H,W")
    config = model_config(
        metadata, name=chosen, max_batch=max_batch, max_delay_ms=max_delay_ms, instances=instances, device=device,
        tensorrt=tensorrt,
    )  # fmt: skip
    entry = folder / chosen
    file = entry / str(version) / MODEL_FILE
    if file.exists():
        raise OutputError(f"{file} exists: give another --version, or remove the file")
    with atomic_write(file) as partial:  # the configuration is there before the model appears
        shutil.copyfile(model, partial)
        with atomic_write(entry / "config.pbtxt") as partial_config:
            partial_config.write_text(config, encoding="utf-8")
    return entry


def model_config(
    metadata: Metadata,
    *,
    name: str,
    max_batch: int,
    max_delay_ms: float,
    instances: int,
    device: Literal["gpu", "cpu"],
    tensorrt: bool,
) -> str:
    """Write the `config.pbtxt` of a model; arguments as in `deploy`."""
    batches = not metadata.fixed  # a fixed graph takes exactly its own number of images
    first = [] if batches else [metadata.fixed[0]]
    sides = metadata.fixed[1:] or [-1, -1]
    lines = [f'name: "{name}"', 'platform: "onnxruntime_onnx"', f"max_batch_size: {max_batch if batches else 0}"]
    lines += [_tensor("input", INPUT, "TYPE_UINT8", [*first, *sides, 3])]
    # one score per image has no axis besides the batch; Triton requires one, so the tensor is reshaped
    score = _tensor("output", OUTPUTS[0], "TYPE_FP32", first or [1], "" if first else "reshape { shape: [ ] }")
    lines += [score, _tensor("output", OUTPUTS[1], "TYPE_FP32", [*first, -1, -1])]
    if batches:
        lines.append(f"dynamic_batching {{ max_queue_delay_microseconds: {round(1000 * max_delay_ms)} }}")
    lines.append(f"instance_group [ {{ count: {instances}, kind: KIND_{device.upper()} }} ]")
    if tensorrt:
        options = {
            "precision_mode": {"fp32": "FP32", "fp16": "FP16", "int8": "INT8"}[metadata.precision],
            "trt_engine_cache_enable": "true",
            "trt_engine_cache_path": f"/tmp/engines/{metadata.sha256[:16]}",
        }
        parameters = " ".join(f'parameters {{ key: "{key}" value: "{value}" }}' for key, value in options.items())
        accelerator = f'gpu_execution_accelerator : [ {{ name: "tensorrt" {parameters} }} ]'
        lines.append(f"optimization {{ execution_accelerators {{ {accelerator} }} }}")
    return "\n".join(lines) + "\n"


def _tensor(kind: str, name: str, data_type: str, dims: list[int], suffix: str = "") -> str:
    shape = ", ".join(map(str, dims))
    return f'{kind} [ {{ name: "{name}", data_type: {data_type}, dims: [ {shape} ] {suffix} }} ]'
