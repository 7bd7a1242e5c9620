"""Check a finished run against its manifest and score its images again."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from anomaly.errors import UsageError
from anomaly.inference.scorer import OnnxScorer, open_for_batches
from anomaly.inference.session import Device
from anomaly.runs.relocated import ImageFinder
from anomaly.runs.run_files import MODELS, check_manifest, read_inputs, read_ledger, run_options
from anomaly.runs.sinks import Values, read_rows
from anomaly.scoring.pipeline import score_images
from anomaly.scoring.rows import row_values
from anomaly.scoring.settings import DEFAULT_PRODUCT, Settings
from anomaly.scoring.sources import Item
from anomaly.system.files import as_path
from anomaly.system.processors import num_cpus
from anomaly.system.progress import progress_bar
from anomaly.system.run_card import hardware, versions

TOLERANCE = 1e-5
"""Largest difference of a score, `|a - b| / max(1, |a|)`, on another machine, device or batch size"""
COMPARED = ("sha256", "status", "verdict", "width", "height")


@dataclass(frozen=True)
class Mismatch:
    """A row that differs."""

    path: str
    text: str
    """column with its recorded and its new value"""


@dataclass(frozen=True)
class ReplayReport:
    """Result of a replay."""

    run: Path
    num_images: int
    """images of the run"""
    num_scored: int
    """images scored again"""
    is_exact: bool
    """whether rows had to be identical: same machine, versions, device and batch size"""
    largest_difference: float
    """largest difference of a score, `|a - b| / max(1, |a|)`"""
    mismatch: Mismatch | None
    """first row that differs; the replay ends there"""


def replay(
    run: str | Path,
    *,
    sample: int | None = None,
    seed: int = 0,
    images: str | None = None,
    device: Device | None = None,
    batch_size: int | None = None,
) -> ReplayReport:
    """Check the files of a finished run and score its images again: identical on this machine, within 1e-5 elsewhere.

    Args:
        run: folder of the run.
        sample: number of windows to score again, drawn at random; all by default.
        seed: random seed of the sample.
        images: folder, glob or list to search for moved images, by their SHA-256.
        device: inference device; the recorded device by default.
        batch_size: images per inference; the recorded batch size by default.

    Raises:
        UsageError: a sample below 1.
        DataError: an unfinished run, a file that does not match the manifest, or a missing image.
    """
    run = as_path(run, name="run")
    if sample is not None and sample < 1:
        raise UsageError(f"sample {sample}: give at least 1 window, or leave it out to score all")
    check_manifest(run)
    ledger = read_ledger(run)
    options = run_options(ledger)
    scorers = _open_models(run, options, device=device)
    recorded = Settings(
        threshold=options["threshold"],
        batch_size=options["batch_size"],
        max_pixels=options["max_pixels"],
        num_threads=num_cpus(),
        frame=options["frame"],
        review_threshold=options["review_threshold"],
        large=any(scorer.metadata.tiling for scorer in scorers.values()),
    )
    settings = recorded if batch_size is None else replace(recorded, batch_size=batch_size)
    here = {"host": hardware(), "versions": versions()}
    is_exact = (
        settings == recorded
        and all(scorers[product].device == options["device"][product] for product in scorers)
        and all(ledger[0][key] == here[key] for key in here)
    )
    finder = ImageFinder(images)
    rows, largest, num_scored, mismatch = read_rows(run), 0.0, 0, None
    num_images = sum(1 for _ in read_inputs(run))
    num_windows = math.ceil(num_images / recorded.window)
    chosen = set(range(num_windows))
    if sample is not None:
        chosen = set(random.Random(seed).sample(range(num_windows), min(sample, num_windows)))
    with progress_bar("replay") as report:
        for number, window in enumerate(_windows(read_inputs(run), recorded.window)):
            before = list(itertools.islice(rows, len(window)))
            if number in chosen:
                items = [finder.find(item, row["sha256"]) for item, row in zip(window, before, strict=True)]
                if not options["by_product"]:
                    items = [replace(item, product=DEFAULT_PRODUCT) for item in items]
                scored = score_images(items, scorers=scorers, settings=settings, seconds={})
                for row, again in zip(before, scored, strict=True):
                    text, difference = _compare(row, row_values(again.row), is_exact=is_exact)
                    largest = max(largest, difference)
                    num_scored += 1
                    if text:
                        mismatch = Mismatch(row["path"], text)
                        break
            if mismatch:
                break
            report(number + 1, num_windows)
    return ReplayReport(
        run=run,
        num_images=num_images,
        num_scored=num_scored,
        is_exact=is_exact,
        largest_difference=largest,
        mismatch=mismatch,
    )


def _open_models(run: Path, options: dict[str, Any], *, device: Device | None) -> dict[str, OnnxScorer]:
    scorers = {}
    for number, product in enumerate(sorted(options["models"])):
        (file,) = (run / MODELS).glob(f"{number:02d}_*")
        scorers[product] = open_for_batches(file, device=device or options["device"][product])
    return scorers


def _windows(items: Iterator[Item], size: int) -> Iterator[list[Item]]:
    while window := list(itertools.islice(items, size)):
        yield window


def _compare(row: Values, again: Values, *, is_exact: bool) -> tuple[str | None, float]:
    """Describe the first difference of a row, None for equal rows; and the difference of its score."""
    for name in COMPARED:
        may_differ = name == "verdict" and not is_exact and _near_threshold(row)
        if row[name] != again[name] and not may_differ:
            return f"{name} was {row[name]!r}, is {again[name]!r}", 0.0
    if row["score"] is None:
        return None, 0.0
    # Parquet stores the single-precision number, text its shortest decimal
    before, after = float(np.float32(row["score"])), float(np.float32(again["score"]))
    difference = abs(before - after) / max(1.0, abs(before))
    if difference > (0.0 if is_exact else TOLERANCE):
        return f"score was {before:.9g}, is {after:.9g}", difference
    if is_exact and not _equal_regions(row["regions"], again["regions"]):
        return f"regions were {row['regions']}, are {again['regions']}", difference
    return None, difference


def _equal_regions(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> bool:
    def rounded(region: dict[str, Any]) -> dict[str, Any]:
        return region | {"peak": float(np.float32(region["peak"]))}

    return list(map(rounded, a)) == list(map(rounded, b))


def _near_threshold(row: Values) -> bool:
    return row["score"] is not None and abs(row["score"] - row["threshold"]) <= TOLERANCE * max(
        1.0, abs(row["threshold"])
    )
