"""The verb `profile`: the speed of a model on this machine."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from anomaly.inference.session import Device
from anomaly.scoring.profile import Profile
from anomaly.scoring.profile import profile as profile_model
from anomaly.system.run_card import RunCard

COLUMNS = ("first_ms", "p50_ms", "p99_ms", "images_per_second", "peak_mib")


def profile(
    model: Path,
    *,
    height: int = 900,
    width: int = 900,
    batch_sizes: list[int] = [1, 2, 4, 8, 16],  # noqa: B006 - never written to
    seconds: float = 5.0,
    device: Device = "auto",
    num_threads: int | None = None,
    out: Path | None = None,
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
        out: JSON file for the figures; not written by default.
    """
    card = RunCard("profile", config=dict(locals()))
    result = profile_model(
        model,
        height=height,
        width=width,
        batch_sizes=batch_sizes,
        seconds=seconds,
        device=device,
        num_threads=num_threads,
    )
    if out is not None:
        card.facts["seconds"]["load"] = result.load_seconds
        card.facts["result"] = {
            "model": result.model,
            "provider": result.provider,
            "precision": result.precision,
            "batches": {str(size): dataclasses.asdict(timing) for size, timing in result.batches.items()},
            "best_batch": result.best_batch,
        }
        card.write(out)
    return result


def show(result: Profile) -> None:
    """Print the timings as a table; a star marks the best batch size."""
    if result.failure:
        print(result.failure, file=sys.stderr)
    size = f"{result.width}×{result.height} pixels"
    title = f"{result.path.name} ({result.precision}) on {result.provider}, {size}"
    table = Table("batch", *COLUMNS, title=title)
    for batch, timing in result.batches.items():
        star = " *" if batch == result.best_batch else ""
        table.add_row(f"{batch}{star}", *(f"{getattr(timing, name):g}" for name in COLUMNS))
    Console().print(table)
