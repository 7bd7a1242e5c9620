"""The verb `diff`: the verdicts that differ between two runs over the same images."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

from anomaly.runs.diff import Change
from anomaly.runs.diff import diff as compare_runs
from anomaly.system.files import atomic_write

NUM_SHOWN = 10


def diff(run_a: Path, run_b: Path, *, out: Path | None = None) -> int:
    """Compare the verdicts of two finished runs over the same images, e.g. with two models or thresholds.

    Args:
        run_a: folder of the first run.
        run_b: folder of the second run.
        out: CSV file of all images with a changed verdict or status; not written by default.
    """
    result = compare_runs(run_a, run_b)
    for name, run in (("a", result.run_a), ("b", result.run_b)):
        models = ", ".join(model[:16] for model in run.models)
        print(f"{name}: {run.path}: model {models}, threshold {run.threshold:g}")
    counts = "".join(f"; {kind}: {num}" for kind, num in result.counts.items())
    print(f"{result.num_images} images, {len(result.changes)} verdicts change{counts}")
    for change in result.changes[:NUM_SHOWN]:
        before, after = change.outcomes
        print(f"  {change.path}: {before} ({change.score_a}) -> {after} ({change.score_b})")
    if len(result.changes) > NUM_SHOWN:
        hint = "" if out else ": --out FILE.csv writes them all"
        print(f"  … and {len(result.changes) - NUM_SHOWN} more{hint}")
    if out is not None:
        _write_csv(result.changes, out)
    return 0


def _write_csv(changes: list[Change], out: Path) -> None:
    with atomic_write(out) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(field.name for field in dataclasses.fields(Change))
        table.writerows(["" if v is None else v for v in dataclasses.astuple(change)] for change in changes)
