"""An exported sampler in ONNX Runtime: its functions as sessions, opened when first called, and its process over them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from anomaly.errors import ModelError
from anomaly.generation import process_class
from anomaly.generation.artifact import function_graph, read_sampler
from anomaly.generation.base import Array, Process
from anomaly.inference.artifact import GOLDEN_TOLERANCE
from anomaly.inference.scorer import relative_difference
from anomaly.inference.session import Device, open_session

PREPARE = "prepare"
"""The function from raw images (n, H, W, 3) uint8 to x (n, 3, h, w) in [0, 1]"""


class OnnxSampler:
    """The functions of an exported sampler.

    Opening a function runs it on inputs drawn from seed 0 and refuses a result that is not the one of export.

    Args:
        path: of the `.onnx` file.
        device: as `OnnxScorer` has it.
        num_threads: of one inference on the CPU; 0 takes all this process may use.

    Raises:
        ModelError: a corrupt or foreign file, a detector, or a function that computes something else than at export.
        ProviderError: the device is not to be had.
    """

    def __init__(self, path: Path, *, device: Device, num_threads: int) -> None:
        self.path = path
        self._graph, self.metadata = read_sampler(path)
        self._device: Device = device
        self._num_threads = num_threads
        self._sessions: dict[str, ort.InferenceSession] = {}

    def call(self, function: str, *inputs: NDArray[Any]) -> NDArray[Any]:
        """Run a function on arrays whose first axis counts images."""
        session = self._session(function)
        feed = dict(zip(self.metadata.functions[function], inputs, strict=True))
        return np.asarray(session.run([function], feed)[0])

    def prepare(self, image: NDArray[np.uint8]) -> Array:
        """Turn raw images (n, H, W, 3) uint8 RGB into x (n, 3, h, w) float32 in [0, 1]."""
        return self.call(PREPARE, image)

    def drawing(self) -> Process:
        """Give the process over these functions: `sample`, `reconstruct`, `interpolate`, `inpaint`."""
        return process_class(self.metadata.process)(self.call, self.metadata.facts)

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
        found = golden_of(session, function)
        stored = self.metadata.golden[function]
        difference = float(relative_difference(np.array(stored), np.array(found)).max())
        if not difference <= GOLDEN_TOLERANCE:
            raise ModelError(
                f"{function} of {self.path} does not compute on {session.get_providers()[0]} what it did at export:"
                f" mean and deviation are {found}, were {stored}; use another provider or version, or export it again"
            )


def golden_of(session: ort.InferenceSession, function: str) -> list[float]:
    """Mean and deviation of a function's output on inputs of one image drawn from seed 0, integers being 0."""
    rng = np.random.default_rng(0)
    inputs = {
        wanted.name: draw_input(
            wanted.name, [1, *wanted.shape[1:]], largest=0 if "int" in wanted.type else None, rng=rng
        )
        for wanted in session.get_inputs()
    }
    said = session.run([function], inputs)[0]
    return [float(np.mean(said, dtype=np.float64)), float(np.std(said, dtype=np.float64))]


def draw_input(name: str, shape: Sequence[int], *, largest: int | None, rng: np.random.Generator) -> NDArray[Any]:
    """Draw an input of a function: an image in [0, 1] where it is called x, else normal numbers.

    Args:
        name: of the input.
        shape: of the input.
        largest: of integers from 0 on; None for real numbers.
        rng: of the draw.
    """
    if largest is not None:
        return rng.integers(0, largest + 1, shape, dtype=np.int64)
    if name.rpartition(".")[2] == "x":
        return rng.random(shape, dtype=np.float32)
    return rng.standard_normal(shape, dtype=np.float32)
