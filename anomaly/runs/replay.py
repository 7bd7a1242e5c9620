"""The verb `replay`: a finished run is checked against its manifest and scored again, wholly or in part."""

from __future__ import annotations

import itertools
import math
import random
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from anomaly.inference.scorer import open_for_batches
from anomaly.inference.session import Device
from anomaly.runs.relocated import Moved
from anomaly.runs.run_directory import MODELS, check_manifest, read_inputs, read_ledger
from anomaly.runs.sinks import Values, read_rows
from anomaly.scoring.pipeline import ONLY, Settings, score_images
from anomaly.scoring.rows import row_values
from anomaly.scoring.sources import Item
from anomaly.system.processors import num_cpus
from anomaly.system.progress import progress_bar
from anomaly.system.run_card import hardware, versions

TOLERANCE = 1e-5
"""Of a score, `|a - b| / max(1, |a|)`, on another machine, device or batch size"""
COMPARED = ("sha256", "status", "verdict", "width", "height")


def replay(
    run: Path,
    *,
    sample: int = 0,
    seed: int = 0,
    images: str = "",
    device: Device | Literal["recorded"] = "recorded",
    batch_size: int = 0,
) -> int:
    """Check a finished run's files and score its images again: identical here, to 1e-5 elsewhere.

    Args:
        run: the run directory.
        sample: windows of the run to score again, drawn by the seed; 0 scores all.
        seed: of the sample.
        images: where images that were moved are found again, by their SHA-256: a folder, glob or list.
        device: the recorded one, or another.
        batch_size: images per inference; 0 takes the recorded one.

    Returns:
        The exit code: 0 where every row came out again, 1 where one did not.

    Raises:
        DataError: a run that is unfinished, or files that are not those of its manifest.
    """
    check_manifest(run)
    begun = read_ledger(run)[0]
    asked = begun["asked"]
    recorded = Settings(
        threshold=asked["threshold"],
        batch_size=asked["batch_size"],
        max_pixels=asked["max_pixels"],
        num_threads=num_cpus(),
        frame=asked["frame"],
        review_threshold=math.inf if asked["review_threshold"] is None else asked["review_threshold"],
    )
    scorers = {}
    for number, product in enumerate(sorted(asked["models"])):
        (file,) = (run / MODELS).glob(f"{number:02d}_*")
        on = asked["device"][product] if device == "recorded" else device
        scorers[product] = open_for_batches(file, device=on)
    recorded = replace(recorded, large=any(scorer.metadata.tiling for scorer in scorers.values()))
    settings = replace(recorded, batch_size=batch_size) if batch_size else recorded
    here = {"host": hardware(), "versions": versions()}
    same = settings == recorded and all(scorers[p].device == asked["device"][p] for p in scorers)
    exact = same and all(begun[key] == here[key] for key in here)
    place = Moved(images)
    rows, worst, num = read_rows(run), 0.0, 0
    total = sum(1 for _ in read_inputs(run))
    num_windows = math.ceil(total / recorded.window)
    chosen = set(range(num_windows))
    if sample:
        chosen = set(random.Random(seed).sample(range(num_windows), min(sample, num_windows)))
    with progress_bar("replay") as report:
        for number, window in enumerate(_windows(read_inputs(run), recorded.window)):
            kept = list(itertools.islice(rows, len(window)))
            if number in chosen:
                items = [place.of(item, row["sha256"]) for item, row in zip(window, kept, strict=True)]
                by_product = (item if asked["by_product"] else replace(item, product=ONLY) for item in items)
                again = score_images(by_product, scorers=scorers, settings=settings, seconds={})
                for row, scored in zip(kept, again, strict=True):
                    told, difference = _differs(row, row_values(scored.row), exact=exact)
                    worst = max(worst, difference)
                    num += 1
                    if told:
                        print(f"{row['path']}: {told}; this is the first of the rows that differ")
                        return 1
            report(number + 1, num_windows)
    how = "identical" if exact else f"within {TOLERANCE:g}, the largest difference is {worst:.2g}"
    print(f"{run}: {num} of {total} images scored again, {how}; every file is that of the manifest", file=sys.stderr)
    return 0


def _windows(items: Iterator[Item], size: int) -> Iterator[list[Item]]:
    while window := list(itertools.islice(items, size)):
        yield window


def _differs(row: Values, again: Values, *, exact: bool) -> tuple[str, float]:
    """In words how a row came out otherwise, empty where it did not, and by how much its score moved."""
    for name in COMPARED:
        near = name == "verdict" and not exact and _near_threshold(row)
        if row[name] != again[name] and not near:
            return f"{name} was {row[name]!r}, is {again[name]!r}", 0.0
    if row["score"] is None:
        return "", 0.0
    # Parquet gives back the single behind the shortest decimal
    before, after = float(np.float32(row["score"])), float(np.float32(again["score"]))
    difference = abs(before - after) / max(1.0, abs(before))
    if difference > (0.0 if exact else TOLERANCE):
        return f"score was {before:.9g}, is {after:.9g}", difference
    if exact and not _equal_regions(row["regions"], again["regions"]):
        return f"regions were {row['regions']}, are {again['regions']}", difference
    return "", difference


def _equal_regions(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> bool:
    def rounded(region: dict[str, Any]) -> dict[str, Any]:
        return region | {"peak": float(np.float32(region["peak"]))}

    return list(map(rounded, a)) == list(map(rounded, b))


def _near_threshold(row: Values) -> bool:
    return row["score"] is not None and abs(row["score"] - row["threshold"]) <= TOLERANCE * max(
        1.0, abs(row["threshold"])
    )
