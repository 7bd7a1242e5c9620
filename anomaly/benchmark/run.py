"""A whole benchmark: the cells of a plan, one process each, resumable, and the table of their results."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from anomaly.benchmark.plan import Cell, read_plan
from anomaly.benchmark.table import write_results
from anomaly.errors import UsageError
from anomaly.system.files import as_path, write_json
from anomaly.system.progress import progress_bar
from anomaly.system.run_card import commit, hardware, now, versions

RESULTS_FILE = "RESULTS.md"


@dataclass(frozen=True)
class BenchmarkResult:
    """Counts of one benchmark run, and its table."""

    table: Path
    """Markdown file with the results of all cells"""
    num_cells: int
    num_reused: int
    """cells that an earlier run measured"""
    num_failed: int


def benchmark(
    plan: str | Path,
    *,
    data: str | Path,
    out: str | Path = "benchmarks/results",
    detector: str | None = None,
    options: Mapping[str, Any] | None = None,
    only: str | None = None,
    jobs: int = 1,
    hours: float = 12.0,
) -> BenchmarkResult:
    """Measure detectors × categories × seeds, and write one JSON file per cell and a table of all cells.

    Cells with an up-to-date file are not measured again. A crash fails one cell only, and the next run tries it again.

    Args:
        plan: YAML file of the benchmark, see `anomaly.benchmark.plan`.
        data: folder of the data sets that the plan names.
        out: folder of the results; RESULTS.md is written beside it.
        detector: further detector: registry name or package.module:Class.
        options: arguments of its constructor.
        only: text that the `category/name-seed` of a measured cell contains; None for all cells.
        jobs: number of processes at a time, at least 1.
        hours: time limit of one cell.

    Raises:
        UsageError: a plan that cannot be read, or an argument out of range.
        OutputError: a result cannot be written.
    """
    if jobs < 1:
        raise UsageError(f"jobs {jobs}: give 1 or more")
    plan, data, out = as_path(plan, name="plan"), as_path(data, name="data"), as_path(out, name="out")
    cells = read_plan(plan, data=data, detector=detector, options=dict(options or {}))
    requested = [cell for cell in cells if only is None or only in f"{cell.category}/{cell.name}-{cell.seed}"]
    if not requested:
        raise UsageError(
            f"--only {only!r} matches none of the {len(cells)} cells, such as {cells[0].category}/{cells[0].name}"
        )
    folder = out / cells[0].benchmark
    pending = [cell for cell in requested if not is_measured(cell, folder)]
    num_failed = _measure_all(pending, data=data, folder=folder, jobs=jobs, hours=hours)
    table = out.parent / RESULTS_FILE
    write_results(out, table)
    return BenchmarkResult(table, len(requested), len(requested) - len(pending), num_failed)


def is_measured(cell: Cell, folder: Path) -> bool:
    """Check whether the results folder holds an up-to-date file of a cell."""
    file = cell.file(folder)
    if not file.is_file():
        return False
    found = json.loads(file.read_text(encoding="utf-8"))
    return bool(found.get("status") == "ok" and found.get("fingerprint") == cell.fingerprint())


def _measure_all(pending: list[Cell], *, data: Path, folder: Path, jobs: int, hours: float) -> int:
    """Measure cells in parallel; gives the number of failed ones."""
    waiting, num_failed = list(pending), 0
    with progress_bar("benchmark") as report, tempfile.TemporaryDirectory() as scratch, _processes() as running:
        while waiting or running:
            while waiting and len(running) < jobs:
                cell = waiting.pop(0)
                running.append(_Process(cell, data=data, scratch=Path(scratch)))
            for process in [p for p in running if p.has_ended(hours=hours)]:
                running.remove(process)
                num_failed += not process.write(folder)
                report(len(pending) - len(waiting) - len(running), len(pending))
            time.sleep(0.1)
    return num_failed


@contextmanager
def _processes() -> Iterator[list[_Process]]:
    """Keep a list of processes, and end those that still run at the end of the block."""
    running: list[_Process] = []
    try:
        yield running
    finally:
        for process in running:
            process.end()


class _Process:
    """The process that measures a cell."""

    def __init__(self, cell: Cell, *, data: Path, scratch: Path) -> None:
        self.cell = cell
        stem = scratch / f"{cell.category}-{cell.name}-{cell.seed}".replace("/", "-")
        request, self._result, self._log = (stem.with_suffix(f".{kind}") for kind in ("request.json", "json", "log"))
        write_json(request, asdict(cell))
        self._begin = time.monotonic()
        self._timed_out = False
        threads = {name: str(cell.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "anomaly.benchmark.cell", str(request), str(data), str(self._result)],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **threads},
            )

    def has_ended(self, *, hours: float) -> bool:
        """Check whether the process has ended; a process beyond its time limit is ended."""
        if self._process.poll() is None and time.monotonic() - self._begin > hours * 3600:
            self._timed_out = True
            self.end()
        return self._process.poll() is not None

    def end(self) -> None:
        """End the process."""
        self._process.terminate()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def write(self, folder: Path) -> bool:
        """Write the cell's JSON file; gives whether the cell was measured."""
        succeeded = self._process.returncode == 0 and self._result.is_file()
        if succeeded:
            found = json.loads(self._result.read_text(encoding="utf-8"))
        else:
            found = {
                "status": "failed", "message": self._reason(), "versions": versions(), "hardware": hardware(),
                "commit": commit(), "date": now(),
            }  # fmt: skip
        cell = self.cell
        values = {
            "kind": "benchmark cell",
            "fingerprint": cell.fingerprint(),
            **asdict(cell),
            "category": cell.category.partition("/")[2] or cell.category,
            "schedule_note": cell.note,
            **found,
        }
        write_json(cell.file(folder), values)
        return succeeded

    def _reason(self) -> str:
        if self._timed_out:
            return "stopped: it took longer than --hours; raise --hours"
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        last = next((line.strip() for line in reversed(lines) if line.strip()), "no output")
        words = [Path(word).name if word.startswith("/") else word for word in last[:500].split(" ")]
        return f"exit code {self._process.returncode}: {' '.join(words)}"  # the table holds no paths of this machine
