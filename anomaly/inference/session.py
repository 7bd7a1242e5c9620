"""Opening of ONNX Runtime sessions: the device that was asked for or none, with the options that it runs best with."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from anomaly.errors import ModelError, OutputError, ProviderError
from anomaly.inference.artifact import Precision
from anomaly.system.processors import has_cuda_device, num_cpus

Device = Literal["auto", "cpu", "cuda", "tensorrt"]
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
_WITH_FALLBACKS = {"cpu": ("cpu",), "cuda": ("cuda", "cpu"), "tensorrt": ("tensorrt", "cuda", "cpu")}
"""Device -> whose kernels a session may take, best first"""
ENGINE_CACHE_VARIABLE = "ANOMALY_ENGINE_CACHE"
"""Names the folder of TensorRT's engines"""
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
    """Open a session on a graph's bytes, on the device asked for or not at all.

    Args:
        model: the serialised graph.
        name: of its file, for messages.
        device: `auto` takes CUDA where a session really gets it, else the CPU; a device asked for by name is an error
            where the session does not use it.
        num_threads: of one inference on the CPU; 0 takes all this process may use.
        precision: that the graph computes in.
        is_fixed: whether all its sizes are numbers, so that a GPU may replay it as one CUDA graph.

    Returns:
        The session, and the device that it runs on.

    Raises:
        ModelError: a graph that this runtime cannot load.
        ProviderError: the device is not to be had.
        OutputError: the folder of TensorRT's engines cannot be made.
    """
    if device not in ("auto", *PROVIDERS):
        raise ProviderError(f"no device {device!r}: choose auto, cpu, cuda or tensorrt")
    options = ort.SessionOptions()
    options.intra_op_num_threads = num_threads or num_cpus()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # decode threads want the cores
    options.log_severity_level = 3
    available = ort.get_available_providers()
    ort.set_default_logger_severity(4)  # what goes wrong is raised below, in words
    wanted: list[str] = [device] if device != "auto" else ["cpu"]
    if device == "auto" and PROVIDERS["cuda"] in available and has_cuda_device():
        wanted = ["cuda", "cpu"]
    # a graph of which some node has no kernel on the GPU cannot be captured, but it can be run
    attempts = [
        (choice, captured)
        for choice in wanted
        for captured in ((True, False) if is_fixed and choice != "cpu" else (False,))
    ]
    for choice, captured in attempts:
        provider = PROVIDERS[choice]
        if provider not in available:
            raise ProviderError(
                f"{choice} asked for, but this ONNX Runtime has no {provider} (it has {', '.join(available)}):"
                " install anomaly[serve-gpu] or the vendor's wheel, or take --device cpu"
            )
        if choice != "cpu" and hasattr(ort, "preload_dlls"):
            ort.preload_dlls()
        chosen = provider_options(choice, model=model, precision=precision, captured=captured)
        try:
            session = ort.InferenceSession(model, options, providers=chosen)
        except SESSION_ERRORS as error:
            if (choice, captured) != attempts[-1]:
                continue
            raise ModelError(f"ONNX Runtime {ort.__version__} cannot load {name} on {choice}: {error}") from error
        # a provider that lacks its driver is dropped silently: look at what the session really uses
        if session.get_providers()[0] == provider:
            return session, choice
        if device != "auto":
            raise ProviderError(
                f"{choice} asked for, but the session runs on {session.get_providers()[0]}: no device, driver or"
                f" libraries for {provider} here; repair them or take --device cpu"
            )
    raise ProviderError(f"no usable provider among {', '.join(available)}: install anomaly[serve-cpu]")


def provider_options(
    device: str, *, model: bytes, precision: Precision, captured: bool
) -> Sequence[tuple[str, dict[str, str]]]:
    """Give the execution providers of a device with their options, best first.

    Args:
        device: cpu, cuda or tensorrt.
        model: the serialised graph, whose hash names the folder of its TensorRT engine.
        precision: that the graph computes in; only an fp16 file gets an fp16 engine.
        captured: whether a GPU is to replay it as one CUDA graph, which wants all its sizes to be numbers.

    Raises:
        OutputError: the folder of TensorRT's engines cannot be made.
    """
    options: dict[str, dict[str, str]] = {name: {} for name in _WITH_FALLBACKS[device]}
    if "cuda" in options:
        # TF32 keeps 10 bits of each factor: scores would leave the certificate's tolerance
        options["cuda"] = {"use_tf32": "0"}
        if captured and device == "cuda":
            options["cuda"]["enable_cuda_graph"] = "1"
    if "tensorrt" in options:
        root = engine_cache()
        # TensorRT names an engine after the graph's structure, not its weights: two detectors would share one
        engine = root / hashlib.sha256(model).hexdigest()[:16]
        try:
            engine.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"the folder of TensorRT engines {engine} cannot be made: {error.strerror};"
                f" name another by {ENGINE_CACHE_VARIABLE}"
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
    """Folder of TensorRT's engines: that of `ANOMALY_ENGINE_CACHE`, else `anomaly/tensorrt` in the user's cache folder."""
    named = os.environ.get(ENGINE_CACHE_VARIABLE, "")
    cache = os.environ.get("XDG_CACHE_HOME", "")
    return Path(named) if named else (Path(cache) if cache else Path.home() / ".cache") / "anomaly" / "tensorrt"
