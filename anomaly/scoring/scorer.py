"""The seam through which everything scores images, and its ONNX Runtime side."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from anomaly.errors import ModelError, ProviderError
from anomaly.scoring.artifact import (
    INPUT,
    OUTPUTS,
    Golden,
    Metadata,
    golden_image,
    load_graph,
    read_metadata,
)
from anomaly.scoring.processors import has_cuda_device, num_cpus
from anomaly.scoring.tiles import Tiling, score_tiled

Device = Literal["auto", "cpu", "cuda", "tensorrt"]
GOLDEN_TOLERANCE = 1e-3
"""In calibrated units, `|a - b| / max(1, |a|)`"""
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
_OPTIONS = {"cuda": {"use_tf32": "0"}}
"""TF32 keeps 10 bits of each factor: scores would leave the certificate's tolerance"""
SESSION_ERRORS = (
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
    ort_errors.EPFail,
)


class Scores(NamedTuple):
    """Calibrated scores and maps of a batch: 0 is a typical good part, 1 the limit."""

    score: NDArray[np.float32]
    """(n,)"""
    anomaly_map: NDArray[np.float32]
    """(n, h, w) at the network's resolution"""


class Scorer(Protocol):
    """What evaluation, the command line, the service and the benchmarks score through."""

    def score(self, image: NDArray[np.uint8]) -> Scores:
        """Score images (n, H, W, 3) uint8 RGB of one size."""
        ...


def relative_difference(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    """Difference in calibrated units, `|a - b| / max(1, |a|)`, elementwise."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    return np.asarray(np.abs(a - b) / np.maximum(1.0, np.abs(a)))


class OnnxScorer:
    """An exported model in ONNX Runtime.

    Loading checks that the file is whole and ours, and scores its golden image again.

    Args:
        path: of the `.onnx` file.
        device: `auto` takes CUDA where a session really gets it, else the CPU; a device asked for by name is an error
            where the session does not use it.
        num_threads: of one inference on the CPU; 0 takes all this process may use.

    Raises:
        ModelError: a corrupt or foreign file, another contract, or a golden image that scores differently.
        ProviderError: the device is not to be had.
    """

    def __init__(self, path: Path, *, device: Device, num_threads: int) -> None:
        model = load_graph(path)
        self.metadata: Metadata = read_metadata(model, name=str(path))
        self.path = path
        data = path.read_bytes()
        self.sha256 = hashlib.sha256(data).hexdigest()
        self.session, self.device = open_session(data, name=str(path), device=device, num_threads=num_threads)
        self.held_out = np.asarray(self.metadata.calibration.scores)
        """calibrated scores of the held-out good images, ascending"""
        self._check_golden(self.metadata.golden)

    @property
    def provider(self) -> str:
        """The execution provider that the session uses first."""
        return str(self.session.get_providers()[0])

    def score(self, image: NDArray[np.uint8]) -> Scores:
        """Score images (n, H, W, 3) uint8 RGB of one size, n and size free."""
        if self.metadata.tiling:
            return Scores(*score_tiled(self.score_windows, image, tiling=self.metadata.tiling))
        return self.score_windows(image)

    def score_windows(self, image: NDArray[np.uint8]) -> Scores:
        """Run the graph once: on images, or on windows of an image where the model walks over large ones."""
        score, anomaly_map = self.session.run(list(OUTPUTS), {INPUT: image})
        return Scores(score, anomaly_map)

    def _check_golden(self, golden: Golden) -> None:
        scores = self.score(golden_image(golden)[None])
        for name, stored, value in (
            ("score", golden.score, float(scores.score[0])),
            ("map's maximum", golden.map_maximum, float(scores.anomaly_map.max())),
        ):
            difference = float(relative_difference(np.array(stored), np.array(value)))
            if not difference <= GOLDEN_TOLERANCE:
                raise ModelError(
                    f"{self.path} does not score its golden image as it did at export on {self.provider}: {name} is"
                    f" {value:.6g}, was {stored:.6g}. This runtime computes something else: use another provider or"
                    " version, or calibrate and certify the model for this one"
                )


def score_bytes(model: bytes, image: NDArray[np.uint8], *, tiling: Tiling | None = None) -> Scores:
    """Score images (n, H, W, 3) on the CPU through the bytes of a graph that is not yet a certified file."""
    session, _ = open_session(model, name="the exported graph", device="cpu", num_threads=0)

    def score(windows: NDArray[np.uint8]) -> Scores:
        return Scores(*session.run(list(OUTPUTS), {INPUT: windows}))

    return Scores(*score_tiled(score, image, tiling=tiling)) if tiling else score(image)


def open_session(model: bytes, *, name: str, device: Device, num_threads: int) -> tuple[ort.InferenceSession, str]:
    """Open a session on a graph's bytes, on the device asked for or not at all.

    Args:
        model: the serialised graph.
        name: of its file, for messages.
        device: as `OnnxScorer` has it.
        num_threads: of one inference on the CPU; 0 takes all this process may use.

    Returns:
        The session, and the device that it runs on.

    Raises:
        ModelError: a graph that this runtime cannot load.
        ProviderError: the device is not to be had.
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
    for choice in wanted:
        provider = PROVIDERS[choice]
        if provider not in available:
            raise ProviderError(
                f"{choice} asked for, but this ONNX Runtime has no {provider} (it has {', '.join(available)}):"
                " install anomaly[serve-gpu] or the vendor's wheel, or take --device cpu"
            )
        if choice != "cpu" and hasattr(ort, "preload_dlls"):
            ort.preload_dlls()
        fallback = [] if choice == "cpu" else [PROVIDERS["cpu"]]
        try:
            session = ort.InferenceSession(model, options, providers=[(provider, _OPTIONS.get(choice, {})), *fallback])
        except SESSION_ERRORS as error:
            if choice != wanted[-1]:
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
