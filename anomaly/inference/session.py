"""ONNX Runtime sessions on exactly the requested device, with its best options."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from anomaly.errors import ModelError, OutputError, ProviderError, UsageError
from anomaly.inference.artifact import Precision
from anomaly.system.processors import has_cuda_device, num_cpus

Device = Literal["auto", "cpu", "cuda", "tensorrt"]
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
_WITH_FALLBACKS = {"cpu": ("cpu",), "cuda": ("cuda", "cpu"), "tensorrt": ("tensorrt", "cuda", "cpu")}
"""Device -> devices whose kernels a session may use, best first"""
ENGINE_CACHE_VARIABLE = "ANOMALY_ENGINE_CACHE"
"""Environment variable for the folder of TensorRT engines"""
SESSION_ERRORS = (
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
    ort_errors.EPFail,
)


def open_session(
    model: bytes, *, name: str, device: Device, num_threads: int, precision: Precision, is_fixed: bool
) -> tuple[ort.InferenceSession, str]:
    """Open a session on exactly the requested device, or fail.

    Args:
        model: serialised graph.
        name: name of the file, for messages.
        device: inference device; `auto` takes CUDA if a session can use it, else the CPU. Any other unavailable device is an
            error.
        num_threads: threads of one inference on the CPU; 0 takes all processors.
        precision: precision of the graph.
        is_fixed: whether the graph has fixed shapes, so that a GPU may replay it as one CUDA graph.

    Returns:
        The session, and its device.

    Raises:
        ModelError: the runtime cannot load the graph.
        ProviderError: the device is not available.
        OutputError: the folder of TensorRT engines cannot be created.
        UsageError: the device is unknown, or the number of threads is invalid.
    """
    if device not in ("auto", *PROVIDERS):
        raise UsageError(f"device {device!r} is unknown: give auto, cpu, cuda or tensorrt")
    if not isinstance(num_threads, int) or num_threads < 0:
        raise UsageError(f"num_threads is {num_threads!r}: give a whole number of threads, 0 for all")
    options = ort.SessionOptions()
    options.intra_op_num_threads = num_threads or num_cpus()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the decoding threads need the cores
    options.log_severity_level = 3
    available = ort.get_available_providers()
    ort.set_default_logger_severity(4)  # problems are raised below as errors
    wanted: list[str] = [device] if device != "auto" else ["cpu"]
    if device == "auto" and PROVIDERS["cuda"] in available and has_cuda_device():
        wanted = ["cuda", "cpu"]
    # a graph with a node that has no GPU kernel can run, but not as a CUDA graph
    attempts = [
        (choice, captured)
        for choice in wanted
        for captured in ((True, False) if is_fixed and choice != "cpu" else (False,))
    ]
    for choice, captured in attempts:
        provider = PROVIDERS[choice]
        if provider not in available:
            raise ProviderError(
                f"{choice} was requested, but this ONNX Runtime has no {provider} (it has {', '.join(available)}):"
                " install anomaly[serve-gpu] or the vendor's wheel, or use --device cpu"
            )
        if choice != "cpu" and hasattr(ort, "preload_dlls"):
            ort.preload_dlls()
        chosen = provider_options(choice, model=model, precision=precision, captured=captured)
        try:
            session = ort.InferenceSession(model, options, providers=chosen)
        except SESSION_ERRORS as error:
            if (choice, captured) != attempts[-1]:
                continue
            raise ModelError(
                f"ONNX Runtime {ort.__version__} cannot load {name} on {choice}, use another device: {error}"
            ) from error
        # a provider without its driver is dropped silently: check the provider in use
        if session.get_providers()[0] == provider:
            return session, choice
        if device != "auto":
            raise ProviderError(
                f"{choice} was requested, but the session runs on {session.get_providers()[0]}: the device, driver or"
                f" libraries for {provider} are missing; install them or use --device cpu"
            )
    raise ProviderError(f"no usable provider among {', '.join(available)}: install anomaly[serve-cpu]")


def provider_options(
    device: str, *, model: bytes, precision: Precision, captured: bool
) -> Sequence[tuple[str, dict[str, str]]]:
    """List the execution providers of a device with their options, best first.

    Args:
        device: device of the session: cpu, cuda or tensorrt.
        model: serialised graph; its hash names the folder of its TensorRT engine.
        precision: precision of the graph; only an fp16 file gets an fp16 engine.
        captured: whether a GPU replays the graph as one CUDA graph, which needs fixed shapes.

    Raises:
        OutputError: the folder of TensorRT engines cannot be created.
    """
    options: dict[str, dict[str, str]] = {name: {} for name in _WITH_FALLBACKS[device]}
    if "cuda" in options:
        # TF32 keeps 10 bits of each factor: scores would exceed the certificate's tolerance
        options["cuda"] = {"use_tf32": "0"}
        if captured and device == "cuda":
            options["cuda"]["enable_cuda_graph"] = "1"
    if "tensorrt" in options:
        root = engine_cache()
        # TensorRT names an engine by the graph's structure alone: two detectors would share one
        engine = root / hashlib.sha256(model).hexdigest()[:16]
        try:
            engine.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"the folder of TensorRT engines {engine} cannot be created: {error.strerror};"
                f" set another folder in {ENGINE_CACHE_VARIABLE}"
            ) from error
        options["tensorrt"] = {
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": str(engine),
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": str(root),
            "trt_fp16_enable": "1" if precision == "fp16" else "0",
            "trt_int8_enable": "1" if precision == "int8" else "0",
            "trt_cuda_graph_enable": "1" if captured else "0",
        }
    return [(PROVIDERS[name], given) for name, given in options.items()]


def engine_cache() -> Path:
    """Folder of TensorRT engines: `ANOMALY_ENGINE_CACHE`, else `anomaly/tensorrt` in the user's cache folder."""
    named = os.environ.get(ENGINE_CACHE_VARIABLE, "")
    cache = os.environ.get("XDG_CACHE_HOME", "")
    return Path(named) if named else (Path(cache) if cache else Path.home() / ".cache") / "anomaly" / "tensorrt"
