"""Time a model on raw images: one at a time and in batches."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from anomaly.errors import UsageError
from anomaly.inference.golden import golden_image
from anomaly.inference.scorer import OnnxScorer
from anomaly.inference.session import SESSION_ERRORS, Device
from anomaly.system.files import as_path
from anomaly.system.progress import progress_bar

MIN_RUNS = 5
"""Smallest number of timed runs per batch size, after a first run that warms up"""


@dataclass(frozen=True)
class BatchTiming:
    """Timing of one batch size."""

    first_ms: float
    """duration of the first run"""
    p50_ms: float
    p99_ms: float
    images_per_second: float
    """speed at the median duration"""
    peak_mib: float
    """largest resident memory of this process so far; 0 on Windows"""
    num_runs: int


@dataclass(frozen=True)
class Profile:
    """Timings of a model on one device and image size."""

    model: str
    """SHA-256 of the file"""
    path: Path
    provider: str
    precision: str
    height: int
    width: int
    batches: dict[int, BatchTiming]
    """batch size -> timing"""
    failure: str | None
    """message of the first batch size that does not run; None if all run"""
    load_seconds: float

    @property
    def best_batch(self) -> int:
        """Batch size with the most images per second."""
        return max(self.batches, key=lambda size: self.batches[size].images_per_second)


def profile(
    model: str | Path,
    *,
    height: int = 900,
    width: int = 900,
    batch_sizes: Sequence[int] = (1, 2, 4, 8, 16),
    seconds: float = 5.0,
    device: Device = "auto",
    num_threads: int | None = None,
) -> Profile:
    """Time a model on its golden image, enlarged to a size.

    Args:
        model: .onnx file.
        height: height of the raw images in pixels; a fixed model uses its own size.
        width: width of the raw images in pixels.
        batch_sizes: images per inference, each timed; larger batches after a failure are skipped.
        seconds: duration of each timing in seconds; at least five runs.
        device: inference device; `auto` takes a usable GPU, else the CPU.
        num_threads: threads of one inference on the CPU; all processors by default.

    Raises:
        UsageError: a size or number below 1, or images that do not fit into memory.
        ModelError: a file that cannot be loaded.
        ProviderError: the requested device is not available.
    """
    path = as_path(model, name="model")
    if min(height, width, *batch_sizes, 1) < 1 or not batch_sizes or not seconds > 0:
        sizes = list(batch_sizes)
        raise UsageError(f"{width}×{height} pixels in batches of {sizes} for {seconds} s: give numbers above 0")
    begin = time.perf_counter()
    scorer = OnnxScorer(path, device=device, num_threads=num_threads or 0)
    load_seconds = round(time.perf_counter() - begin, 3)
    if scorer.metadata.fixed:
        _, height, width = scorer.metadata.fixed
    golden = golden_image(scorer.metadata.golden)
    image = np.asarray(cv2.resize(golden, (width, height), interpolation=cv2.INTER_LINEAR), dtype=np.uint8)
    batches: dict[int, BatchTiming] = {}
    failure = None
    with progress_bar("profile") as report:
        for number, size in enumerate(batch_sizes):
            try:
                batches[size] = _time(scorer, np.repeat(image[None], size, axis=0), seconds=seconds)
            except SESSION_ERRORS as error:  # too little memory for this batch
                failure = f"batch {size} does not run: {error}"
                break
            report(number + 1, len(batch_sizes))
    if not batches:
        raise UsageError(f"{path} does not run on {width}×{height} pixels here: make --height and --width smaller")
    return Profile(
        model=scorer.sha256,
        path=path,
        provider=scorer.provider,
        precision=scorer.metadata.precision,
        height=height,
        width=width,
        batches=batches,
        failure=failure,
        load_seconds=load_seconds,
    )


def _time(scorer: OnnxScorer, images: NDArray[np.uint8], *, seconds: float) -> BatchTiming:
    durations: list[float] = []
    begin = time.perf_counter()
    while len(durations) <= MIN_RUNS or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        scorer.score(images)
        durations.append(time.perf_counter() - start)
    first, steady = durations[0], np.array(durations[1:])
    return BatchTiming(
        first_ms=round(1e3 * first, 2),
        p50_ms=round(1e3 * float(np.percentile(steady, 50)), 2),
        p99_ms=round(1e3 * float(np.percentile(steady, 99)), 2),
        images_per_second=round(len(images) / float(np.median(steady)), 2),
        peak_mib=round(_peak_mib(), 1),
        num_runs=len(steady),
    )


def _peak_mib() -> float:
    peak = 0.0
    if sys.platform != "win32":
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
    return peak
