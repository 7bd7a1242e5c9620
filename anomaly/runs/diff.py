"""Compare two runs over the same images: the verdicts that differ."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from anomaly.errors import DataError
from anomaly.runs.run_files import check_manifest, read_ledger, run_options
from anomaly.runs.sinks import read_rows
from anomaly.system.files import as_path


@dataclass(frozen=True)
class Change:
    """An image with a changed verdict or status."""

    path: str
    verdict_a: str
    verdict_b: str
    score_a: float | None
    score_b: float | None
    threshold_a: float
    threshold_b: float
    status_a: str
    status_b: str

    @property
    def outcomes(self) -> tuple[str, str]:
        """Verdict of both runs; the status of an error row."""
        return self.verdict_a or self.status_a, self.verdict_b or self.status_b


@dataclass(frozen=True)
class ComparedRun:
    """One of two compared runs."""

    path: Path
    models: list[str]
    """SHA-256 of each model"""
    threshold: float


@dataclass(frozen=True)
class RunDiff:
    """Comparison of two runs."""

    run_a: ComparedRun
    run_b: ComparedRun
    num_images: int
    changes: list[Change]

    @property
    def counts(self) -> dict[str, int]:
        """Kind of change, as `good -> defect` -> number of images."""
        return dict(Counter(" -> ".join(change.outcomes) for change in self.changes))


def diff(run_a: str | Path, run_b: str | Path) -> RunDiff:
    """Compare the verdicts of two finished runs over the same images, e.g. with two models or thresholds.

    Args:
        run_a: folder of the first run.
        run_b: folder of the second run.

    Raises:
        DataError: an unfinished or changed run, or two runs over different images.
    """
    run_a, run_b = as_path(run_a, name="run_a"), as_path(run_b, name="run_b")
    for run in (run_a, run_b):
        check_manifest(run)
    changes = []
    num = 0
    for a, b in itertools.zip_longest(read_rows(run_a), read_rows(run_b)):
        if a is None or b is None or a["path"] != b["path"]:
            paths = " and ".join(row["path"] if row else "no image" for row in (a, b))
            raise DataError(
                f"{run_a} and {run_b} hold different images: after {num} equal ones, {paths};"
                " compare runs over the same images"
            )
        if a["sha256"] != b["sha256"]:
            raise DataError(
                f"{a['path']} has other bytes in {run_a} than in {run_b}: score both runs on the same images"
            )
        num += 1
        if (a["verdict"] or a["status"]) != (b["verdict"] or b["status"]):
            names = ("verdict", "score", "threshold", "status")
            changes.append(Change(a["path"], *(row[name] for name in names for row in (a, b))))
    return RunDiff(_compared(run_a), _compared(run_b), num, changes)


def _compared(run: Path) -> ComparedRun:
    options = run_options(read_ledger(run))
    return ComparedRun(run, list(options["models"].values()), options["threshold"])
