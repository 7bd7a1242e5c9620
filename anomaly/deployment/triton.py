"""The verb `deploy`: a model file as an entry of a Triton model repository.

    FOLDER/NAME/1/model.onnx      the file as it is
    FOLDER/NAME/config.pbtxt      inputs, outputs, batching and instances, as Triton's `ModelConfig` has them

Triton runs the same graph through ONNX Runtime, so scores are those of `anomaly score`; what surrounds the graph there (pixels
before it, verdict and regions after it) is the caller's, as FORMATS and the metadata in the file say.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal

from anomaly.errors import OutputError, UsageError
from anomaly.inference.artifact import INPUT, OUTPUTS, Metadata, load_graph, read_metadata
from anomaly.service.model_repository import NAME_PATTERN


def deploy(
    target: Literal["triton"],
    model: Path,
    folder: Path,
    *,
    name: str = "",
    version: int = 1,
    max_batch: int = 16,
    max_delay_ms: float = 2.0,
    instances: int = 1,
    device: Literal["gpu", "cpu"] = "gpu",
    tensorrt: bool = False,
) -> Path:
    """Write a model into a Triton model repository.

    Args:
        target: triton.
        model: the .onnx file.
        folder: of the repository; other models in it stay.
        name: of the model there; by default that of the file, or of its folder where it is called model.onnx.
        version: of the model there; Triton serves the highest.
        max_batch: images that Triton may gather into one inference.
        max_delay_ms: milliseconds that an image may wait for others.
        instances: sessions on each GPU, or on the CPU.
        device: that the sessions run on.
        tensorrt: through TensorRT, with the engine kept in the repository; wants a model exported with --fixed.

    Returns:
        The model's folder in the repository.

    Raises:
        ModelError: a file that is not ours.
        UsageError: a model, name or number that Triton cannot serve.
        OutputError: the repository cannot be written, or holds this version already.
    """
    if target != "triton":
        raise UsageError(f"no target {target!r}: there is triton")
    chosen = name or (model.resolve().parent.name if model.name == "model.onnx" else model.stem)
    if not NAME_PATTERN.fullmatch(chosen):
        raise UsageError(f"{chosen!r} is no name for a model: give --name in letters, digits, . _ -")
    if min(version, max_batch, instances) < 1 or not max_delay_ms >= 0:
        raise UsageError(
            f"version {version}, {max_batch} images, {instances} instances, {max_delay_ms} ms: give 1 or more, and a"
            " delay of 0 or more"
        )
    metadata = read_metadata(load_graph(model), name=str(model))
    if metadata.tiling:
        raise UsageError(f"{model} walks over large images, which Triton cannot do: serve it with `anomaly serve`")
    if tensorrt and (device == "cpu" or not metadata.fixed):
        raise UsageError("--tensorrt takes a GPU and a graph of fixed size: export the model with --fixed N,H,W")
    config = model_config(
        metadata, name=chosen, max_batch=max_batch, max_delay_ms=max_delay_ms, instances=instances, device=device,
        tensorrt=tensorrt,
    )  # fmt: skip
    place = folder / chosen
    file = place / str(version) / "model.onnx"
    if file.exists():
        raise OutputError(f"{file} exists: give another --version, or take it out")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        shutil.copyfile(model, partial)
        (place / "config.pbtxt").write_text(config, encoding="utf-8")
        partial.replace(file)
    except OSError as error:
        raise OutputError(
            f"the repository {folder} cannot be written: {error.strerror}; choose another place"
        ) from error
    print(
        f"{place}: serve it with `tritonserver --model-repository={folder}`, NVIDIA_TF32_OVERRIDE=0 in its environment"
    )
    return place


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
    """Write the `config.pbtxt` of a model: arguments as `deploy` has them."""
    gathers = not metadata.fixed  # a fixed graph takes its own number of images, no more and no fewer
    first = [] if gathers else [metadata.fixed[0]]
    sides = metadata.fixed[1:] or [-1, -1]
    lines = [f'name: "{name}"', 'platform: "onnxruntime_onnx"', f"max_batch_size: {max_batch if gathers else 0}"]
    lines += [_tensor("input", INPUT, "TYPE_UINT8", [*first, *sides, 3])]
    # a score a batch has no axis of its own, and Triton knows no tensor without one
    score = _tensor("output", OUTPUTS[0], "TYPE_FP32", first or [1], "" if first else "reshape { shape: [ ] }")
    lines += [score, _tensor("output", OUTPUTS[1], "TYPE_FP32", [*first, -1, -1])]
    if gathers:
        lines.append(f"dynamic_batching {{ max_queue_delay_microseconds: {round(1000 * max_delay_ms)} }}")
    lines.append(f"instance_group [ {{ count: {instances}, kind: KIND_{device.upper()} }} ]")
    if tensorrt:
        options = {
            "precision_mode": {"fp32": "FP32", "fp16": "FP16", "int8": "INT8"}[metadata.precision],
            "trt_engine_cache_enable": "true",
            "trt_engine_cache_path": f"/tmp/engines/{metadata.sha256[:16]}",
        }
        told = " ".join(f'parameters {{ key: "{key}" value: "{value}" }}' for key, value in options.items())
        lines.append(
            f'optimization {{ execution_accelerators {{ gpu_execution_accelerator : [ {{ name: "tensorrt" {told} }} ] }} }}'
        )
    return "\n".join(lines) + "\n"


def _tensor(kind: str, name: str, data_type: str, dims: list[int], more: str = "") -> str:
    shape = ", ".join(map(str, dims))
    return f'{kind} [ {{ name: "{name}", data_type: {data_type}, dims: [ {shape} ] {more} }} ]'
