"""The scorer interface of all callers, and the scorer of exported models in ONNX Runtime."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from anomaly.errors import ModelError
from anomaly.inference.artifact import INPUT, OUTPUTS, Metadata, parse_graph, read_metadata, read_model_file
from anomaly.inference.batching import check_batch
from anomaly.inference.difference import relative_difference
from anomaly.inference.golden import GOLDEN_TOLERANCE, Golden, golden_batch
from anomaly.inference.io_binding import BufferPool
from anomaly.inference.session import Device, open_session
from anomaly.inference.tiles import Tiling, score_tiled
from anomaly.system.processors import num_cpus

MAX_LANES = 4
"""Largest number of simultaneous batches on a CPU: the batches in a window of the pipeline"""


class Scores(NamedTuple):
    """Calibrated scores and maps of a batch; 0 is a typical good part, 1 is the threshold."""

    score: NDArray[np.float32]
    """(n,)"""
    anomaly_map: NDArray[np.float32]
    """(n, h, w) at the network's resolution"""


class Scorer(Protocol):
    """Interface through which evaluation, command line, service and benchmarks score images."""

    def score(self, image: NDArray[np.uint8]) -> Scores:
        """Score images (n, H, W, 3) uint8 RGB of one size."""
        ...


class OnnxScorer:
    """An exported model in ONNX Runtime.

    Loading checks the hash of the graph, and scores the golden image of the file again.

    Args:
        path: .onnx file.
        device: inference device; `auto` takes CUDA if a session can use it, else the CPU. Any other unavailable device is an
            error.
        num_threads: threads of one inference on the CPU; 0 takes all processors.

    Raises:
        ModelError: a missing, corrupt or foreign file, another contract, or a golden image with other outputs.
        ProviderError: the device is not available.
        OutputError: the folder of TensorRT engines cannot be created.
        UsageError: an argument has a wrong type or value.
    """

    def __init__(self, path: str | Path, *, device: Device = "auto", num_threads: int = 0) -> None:
        data = read_model_file(path)
        self.path = Path(path)
        self.metadata: Metadata = read_metadata(parse_graph(data, name=str(path)), name=str(path))
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
        """Number of batches scored at a time: one is copied while another is computed. A CUDA graph allows one"""
        # on a GPU outputs of a known size are bound to fixed buffers; a map as large as its image has no known size
        known = all(isinstance(length, int) for output in self.session.get_outputs() for length in output.shape[1:])
        self._run: Callable[[NDArray[np.uint8]], Sequence[NDArray[np.float32]]] = self._run_session
        if known and self.device != "cpu":
            self._run = BufferPool(self.session, device="cuda", num=self.num_in_flight).run
        self.calibration = self.metadata.calibration.ranked()
        """Scores of the calibration images"""
        self._check_golden(self.metadata.golden)

    @property
    def provider(self) -> str:
        """Name of the session's first execution provider."""
        return str(self.session.get_providers()[0])

    def score(self, image: NDArray[np.uint8]) -> Scores:
        """Score images of one size, any number and any size.

        A fixed model accepts only its own size; the last image is repeated up to a multiple of its number of images. A model
        of windows scores the windows of each image.

        Args:
            image: (n, H, W, 3) uint8 RGB.

        Raises:
            ImageError: the images have another size than a fixed model.
            UsageError: the array has another type, dtype or shape, or is empty.
        """
        check_batch(image)
        if self.metadata.tiling:
            return Scores(*score_tiled(self.score_windows, image, tiling=self.metadata.tiling))
        if not self.metadata.fixed:
            return self.score_windows(image)
        num, *_ = self.metadata.fixed
        self.metadata.check_size(image, name=f"{len(image)} images")
        parts = []
        for at in range(0, len(image), num):
            part = image[at : at + num]
            scores = self.score_windows(np.concatenate((part, np.repeat(part[-1:], num - len(part), axis=0))))
            parts.append(Scores(scores.score[: len(part)], scores.anomaly_map[: len(part)]))
        return Scores(*(np.concatenate(both) for both in zip(*parts, strict=True)))

    def score_windows(self, image: NDArray[np.uint8]) -> Scores:
        """Run the graph once: on images (n, H, W, 3) uint8 RGB, or on windows of a large image."""
        return Scores(*self._run(image))

    def _run_session(self, image: NDArray[np.uint8]) -> Sequence[NDArray[np.float32]]:
        outputs: Sequence[NDArray[np.float32]] = self.session.run(list(OUTPUTS), {INPUT: image})
        return outputs

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
                    f"{self.path} does not score its golden image on {self.provider} as it did at export: {name} is"
                    f" {value:.6g}, was {stored:.6g}, more than {tolerance:.2g} apart. This runtime computes other"
                    " values: use another provider or version, or calibrate the model again for this one"
                )


def open_for_batches(path: str | Path, *, device: Device = "auto") -> OnnxScorer:
    """Open a model for many batches: a CPU scores a few batches at a time, each with few threads.

    Arguments and errors: see `OnnxScorer`.
    """
    lanes = min(MAX_LANES, num_cpus())
    scorer = OnnxScorer(path, device=device, num_threads=num_cpus() // lanes)
    if scorer.device == "cpu":
        scorer.num_in_flight = lanes
    return scorer


def score_bytes(model: bytes, image: NDArray[np.uint8], *, tiling: Tiling | None = None) -> Scores:
    """Score images on the CPU with a graph that is not yet a certified file.

    Args:
        model: serialised graph.
        image: (n, H, W, 3) uint8 RGB.
        tiling: windows of the graph; None for a graph of whole images.
    """
    session, _ = open_session(
        model, name="the exported graph", device="cpu", num_threads=0, precision="fp32", is_fixed=False
    )

    def score(windows: NDArray[np.uint8]) -> Scores:
        return Scores(*session.run(list(OUTPUTS), {INPUT: windows}))

    return Scores(*score_tiled(score, image, tiling=tiling)) if tiling else score(image)
