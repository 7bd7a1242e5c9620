"""The verb `profile`: how fast a model scores here, one image at a time and at the best batch."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.console import Console
from rich.table import Table

from anomaly.errors import UsageError
from anomaly.inference.artifact import golden_image
from anomaly.inference.scorer import OnnxScorer
from anomaly.inference.session import SESSION_ERRORS, Device
from anomaly.system.progress import progress_bar
from anomaly.system.run_card import RunCard

NUM_LEAST = 5
"""Runs of every batch size at least, after the first one, which warms up"""


def profile(
    model: Path,
    *,
    height: int = 900,
    width: int = 900,
    batch_sizes: list[int] = [1, 2, 4, 8, 16],  # noqa: B006 - never written to
    seconds: float = 5.0,
    device: Device = "auto",
    num_threads: int = 0,
    out: str = "",
) -> dict[str, Any]:
    """Time a model on raw images of a size: the golden image enlarged, so that what is computed is what a line computes.

    Args:
        model: the .onnx file.
        height: of the raw images in pixels; a fixed model is timed at its own size.
        width: of the raw images in pixels.
        batch_sizes: images per inference, each timed.
        seconds: of timing for every batch size; at least five runs are made.
        device: auto, cpu, cuda or tensorrt.
        num_threads: of one inference on the CPU; 0 takes all this process may use.
        out: JSON file for the figures.

    Returns:
        The figures: for every batch size milliseconds of the first run, of the median and of the slowest hundredth, images a
        second, and the largest memory of this process so far in MiB; and the batch size of most images a second.

    Raises:
        UsageError: a size or number that is none.
        ModelError: a file that cannot be loaded.
    """
    card = RunCard("profile", config=dict(locals()))
    if min(height, width, *batch_sizes, 1) < 1 or not batch_sizes or not seconds > 0:
        raise UsageError(f"{width}×{height} pixels in batches of {batch_sizes} for {seconds} s: give numbers above 0")
    with card.timed("load"):
        scorer = OnnxScorer(model, device=device, num_threads=num_threads)
    if scorer.metadata.fixed:
        _, height, width = scorer.metadata.fixed
    golden = golden_image(scorer.metadata.golden)
    image = np.asarray(cv2.resize(golden, (width, height), interpolation=cv2.INTER_LINEAR), dtype=np.uint8)
    lines: dict[int, dict[str, float]] = {}
    with progress_bar("profile") as report:
        for number, batch in enumerate(batch_sizes):
            try:
                lines[batch] = _timed(scorer, np.repeat(image[None], batch, axis=0), seconds=seconds)
            except SESSION_ERRORS as error:  # larger batches need more memory than there is
                print(f"batch {batch} does not run: {error}", file=sys.stderr)
                break
            report(number + 1, len(batch_sizes))
    if not lines:
        raise UsageError(f"{model} does not run on {width}×{height} pixels here: make --height and --width smaller")
    best = max(lines, key=lambda batch: lines[batch]["images_per_second"])
    card.facts["result"] = {
        "model": scorer.sha256,
        "provider": scorer.provider,
        "precision": scorer.metadata.precision,
        "batches": {str(batch): line for batch, line in lines.items()},
        "best_batch": best,
    }
    _print(
        lines,
        best=best,
        title=f"{model.name} ({scorer.metadata.precision}) on {scorer.provider}, {width}×{height} pixels",
    )
    if out:
        card.write(Path(out))
    result: dict[str, Any] = card.facts["result"]
    return result


def _timed(scorer: OnnxScorer, images: Any, *, seconds: float) -> dict[str, float]:
    taken: list[float] = []
    begin = time.perf_counter()
    while len(taken) <= NUM_LEAST or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        scorer.score(images)
        taken.append(time.perf_counter() - start)
    first, steady = taken[0], np.array(taken[1:])
    return {
        "first_ms": round(1e3 * first, 2),
        "p50_ms": round(1e3 * float(np.percentile(steady, 50)), 2),
        "p99_ms": round(1e3 * float(np.percentile(steady, 99)), 2),
        "images_per_second": round(len(images) / float(np.median(steady)), 2),
        "peak_mib": round(_peak_mib(), 1),
        "num_runs": len(steady),
    }


def _peak_mib() -> float:
    """Largest resident memory of this process so far, in MiB; 0 where the system does not tell."""
    peak = 0.0
    if sys.platform != "win32":
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
    return peak


def _print(lines: dict[int, dict[str, float]], *, best: int, title: str) -> None:
    columns: Sequence[str] = ("first_ms", "p50_ms", "p99_ms", "images_per_second", "peak_mib")
    table = Table("batch", *columns, title=title)
    for batch, line in lines.items():
        table.add_row(f"{batch}{' *' if batch == best else ''}", *(f"{line[name]:g}" for name in columns))
    Console().print(table)
