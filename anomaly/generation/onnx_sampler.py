"""`OnnxSampler`: an exported sampler in ONNX Runtime, with one session per function, opened on first use."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from anomaly.errors import ModelError
from anomaly.generation import sampling_loop_class
from anomaly.generation.artifact import function_graph, read_sampler
from anomaly.generation.base import Array, SamplingLoop
from anomaly.inference.difference import relative_difference
from anomaly.inference.golden import GOLDEN_TOLERANCE
from anomaly.inference.session import Device, open_session

PREPARE = "prepare"
"""The function from raw images (n, H, W, 3) uint8 to x (n, 3, h, w) in [0, 1]"""


class OnnxSampler:
    """Functions of an exported sampler.

    Each function runs once on inputs of seed 0 before its first use. A result that differs from export is refused.

    Args:
        path: path of sampler.onnx.
        device: inference device, as in `OnnxScorer`.
        num_threads: CPU threads per inference; 0 for all usable ones.

    Raises:
        ModelError: a corrupt or foreign file, a detector, or a function with another result than at export.
        ProviderError: the device is not available.
    """

    def __init__(self, path: str | Path, *, device: Device = "auto", num_threads: int = 0) -> None:
        self.path = Path(path)
        self._graph, self.metadata = read_sampler(self.path)
        self._device: Device = device
        self._num_threads = num_threads
        self._sessions: dict[str, ort.InferenceSession] = {}

    def run_function(self, function: str, *inputs: NDArray[Any]) -> NDArray[Any]:
        """Run a function on arrays with the images along their first axis."""
        session = self._session(function)
        feed = dict(zip(self.metadata.functions[function], inputs, strict=True))
        return np.asarray(session.run([function], feed)[0])

    def prepare(self, image: NDArray[np.uint8]) -> Array:
        """Turn raw images (n, H, W, 3) uint8 RGB into x (n, 3, h, w) float32 in [0, 1]."""
        return self.run_function(PREPARE, image)

    def sampling_loop(self) -> SamplingLoop:
        """Return the sampling loop over these functions: `sample`, `reconstruct`, `interpolate`, `inpaint`."""
        return sampling_loop_class(self.metadata.loop)(self.run_function, self.metadata.info)

    def _session(self, function: str) -> ort.InferenceSession:
        if function not in self._sessions:
            name = f"{function} of {self.path}"
            data = function_graph(self._graph, self.metadata, function)
            session, _ = open_session(
                data, name=name, device=self._device, num_threads=self._num_threads, precision="fp32", is_fixed=False
            )
            self._check_golden(function, session)
            self._sessions[function] = session
        return self._sessions[function]

    def _check_golden(self, function: str, session: ort.InferenceSession) -> None:
        if function not in self.metadata.golden:
            return
        measured = golden_of(session, function)
        stored = self.metadata.golden[function]
        difference = float(relative_difference(np.array(stored), np.array(measured)).max())
        if not difference <= GOLDEN_TOLERANCE:
            raise ModelError(
                f"{function} of {self.path} differs on {session.get_providers()[0]} from its result at export: mean and"
                f" deviation are {measured} instead of {stored}; use another provider or version, or export it again"
            )


def golden_of(session: ort.InferenceSession, function: str) -> list[float]:
    """Compute mean and deviation of a function's output on random inputs of seed 0 for one image; integers are 0."""
    rng = np.random.default_rng(0)
    inputs = {
        node.name: draw_input(node.name, [1, *node.shape[1:]], largest=0 if "int" in node.type else None, rng=rng)
        for node in session.get_inputs()
    }
    output = session.run([function], inputs)[0]
    return [float(np.mean(output, dtype=np.float64)), float(np.std(output, dtype=np.float64))]


def draw_input(name: str, shape: Sequence[int], *, largest: int | None, rng: np.random.Generator) -> NDArray[Any]:
    """Draw a random input of a function: uniform in [0, 1] for an image x, else standard normal.

    Args:
        name: name of the input.
        shape: shape of the input.
        largest: largest integer; None for real numbers.
        rng: random generator of the draw.
    """
    if largest is not None:
        return rng.integers(0, largest + 1, shape, dtype=np.int64)
    if name.rpartition(".")[2] == "x":
        return rng.random(shape, dtype=np.float32)
    return rng.standard_normal(shape, dtype=np.float32)
