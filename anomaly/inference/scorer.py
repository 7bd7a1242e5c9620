"""The seam through which everything scores images, and its ONNX Runtime side."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from anomaly.errors import ModelError
from anomaly.inference.artifact import (
    GOLDEN_TOLERANCE,
    INPUT,
    OUTPUTS,
    Golden,
    Metadata,
    golden_batch,
    load_graph,
    read_metadata,
)
from anomaly.inference.io_binding import BufferPool
from anomaly.inference.session import Device, open_session
from anomaly.inference.tiles import Tiling, score_tiled
from anomaly.system.processors import num_cpus

MAX_LANES = 4
"""Batches that a CPU scores at a time at most: so many a window of the pipeline has"""


class Scores(NamedTuple):
    """Calibrated scores and maps of a batch: 0 is a typical good part, 1 the threshold."""

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
        OutputError: the folder of TensorRT's engines cannot be made.
    """

    def __init__(self, path: Path, *, device: Device, num_threads: int) -> None:
        model = load_graph(path)
        self.metadata: Metadata = read_metadata(model, name=str(path))
        self.path = path
        data = path.read_bytes()
        self.sha256 = hashlib.sha256(data).hexdigest()
        fixed = self.metadata.fixed
        self.session, self.device = open_session(
            data,
            name=str(path),
            device=device,
            num_threads=num_threads,
            precision=self.metadata.precision,
            is_fixed=bool(fixed),
        )
        self.num_in_flight = 2 if self.device == "cuda" and not fixed else 1
        """Batches that may be scored at a time: while one is computed the next is copied. A CUDA graph allows one"""
        # on a GPU whatever can be is bound beforehand; where the map's size follows from the image's nothing can
        known = all(isinstance(length, int) for output in self.session.get_outputs() for length in output.shape[1:])
        self._run: Callable[[NDArray[np.uint8]], Sequence[NDArray[np.float32]]] = self._plainly
        if known and self.device != "cpu":
            self._run = BufferPool(self.session, device="cuda", num=self.num_in_flight).run
        self.calibration_images = np.asarray(self.metadata.calibration.scores)
        """calibrated scores of the calibration images, ascending"""
        self._check_golden(self.metadata.golden)

    @property
    def provider(self) -> str:
        """The execution provider that the session uses first."""
        return str(self.session.get_providers()[0])

    def score(self, image: NDArray[np.uint8]) -> Scores:
        """Score images (n, H, W, 3) uint8 RGB of one size, n and size free.

        A fixed model takes its own size only; what is not a multiple of its number of images is filled up. A model of
        windows walks over each image.

        Raises:
            ImageError: a fixed model and images of another size.
        """
        if self.metadata.tiling:
            return Scores(*score_tiled(self.score_windows, image, tiling=self.metadata.tiling))
        if not self.metadata.fixed:
            return self.score_windows(image)
        num, *_ = self.metadata.fixed
        self.metadata.check_size(image, name=f"{len(image)} images")
        parts = []
        for at in range(0, len(image), num):
            part = image[at : at + num]
            said = self.score_windows(np.concatenate((part, np.repeat(part[-1:], num - len(part), axis=0))))
            parts.append(Scores(said.score[: len(part)], said.anomaly_map[: len(part)]))
        return Scores(*(np.concatenate(both) for both in zip(*parts, strict=True)))

    def score_windows(self, image: NDArray[np.uint8]) -> Scores:
        """Run the graph once: on images, or on windows of an image where the model walks over large ones."""
        return Scores(*self._run(image))

    def _plainly(self, image: NDArray[np.uint8]) -> Sequence[NDArray[np.float32]]:
        said: Sequence[NDArray[np.float32]] = self.session.run(list(OUTPUTS), {INPUT: image})
        return said

    def _check_golden(self, golden: Golden) -> None:
        scores = self.score(golden_batch(golden, fixed=self.metadata.fixed))
        tolerance = golden.tolerance.get(self.provider, GOLDEN_TOLERANCE)
        for name, stored, value in (
            ("score", golden.score, float(scores.score[0])),
            ("map's maximum", golden.map_maximum, float(scores.anomaly_map[0].max())),
        ):
            difference = float(relative_difference(np.array(stored), np.array(value)))
            if not difference <= tolerance:
                raise ModelError(
                    f"{self.path} does not score its golden image as it did at export on {self.provider}: {name} is"
                    f" {value:.6g}, was {stored:.6g}, more than {tolerance:.2g} apart. This runtime computes something"
                    " else: use another provider or version, or calibrate and certify the model for this one"
                )


def open_for_batches(path: Path, *, device: Device) -> OnnxScorer:
    """Open a model to score many batches: on a CPU a few at a time, with few threads each, waste less than one with all.

    The arguments and errors are those of `OnnxScorer`.
    """
    lanes = min(MAX_LANES, num_cpus())
    scorer = OnnxScorer(path, device=device, num_threads=num_cpus() // lanes)
    if scorer.device == "cpu":
        scorer.num_in_flight = lanes
    return scorer


def score_bytes(model: bytes, image: NDArray[np.uint8], *, tiling: Tiling | None = None) -> Scores:
    """Score images (n, H, W, 3) on the CPU through the bytes of a graph that is not yet a certified file."""
    session, _ = open_session(
        model, name="the exported graph", device="cpu", num_threads=0, precision="fp32", is_fixed=False
    )

    def score(windows: NDArray[np.uint8]) -> Scores:
        return Scores(*session.run(list(OUTPUTS), {INPUT: windows}))

    return Scores(*score_tiled(score, image, tiling=tiling)) if tiling else score(image)
