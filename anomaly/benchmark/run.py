"""The verb `benchmark`: the cells of a plan, one process each, resumable, and the table of their results."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from anomaly.benchmark.plan import Cell, read_plan
from anomaly.benchmark.table import write_results
from anomaly.errors import UsageError
from anomaly.system.files import write_json
from anomaly.system.progress import progress_bar
from anomaly.system.run_card import commit, hardware, now, versions

RESULTS_FILE = "RESULTS.md"


def benchmark(
    plan: Path,
    *,
    data: Path,
    out: Path = Path("benchmarks/results"),
    detector: str = "",
    model: dict[str, Any] | None = None,
    only: str = "",
    jobs: int = 1,
    hours: float = 12.0,
) -> int:
    """Measure detectors × categories × seeds and write one JSON per cell and a table of all.

    Cells that were measured before, as they are asked for now, are passed over; one that crashes costs itself alone and
    is tried again by the next run.

    Args:
        plan: the benchmark's YAML file, see configs/benchmarks.
        data: folder of the data sets that the plan names.
        out: folder of the results; RESULTS.md is written beside it.
        detector: one more detector to measure, package.module:Class or a name of the registry.
        model: its options.
        only: measure only cells whose `category/name-seed` contains this.
        jobs: cells measured at a time.
        hours: time after which a cell is given up.

    Returns:
        The exit code: 0 all cells are measured, 3 some failed.

    Raises:
        UsageError: a plan that cannot be read.
    """
    if jobs < 1:
        raise UsageError(f"jobs {jobs}: give 1 or more")
    cells = read_plan(plan, data=data, own=detector, own_model=dict(model or {}))
    asked = [cell for cell in cells if only in f"{cell.category}/{cell.name}-{cell.seed}"]
    if not asked:
        raise UsageError(
            f"--only {only!r} fits none of the {len(cells)} cells, e.g. {cells[0].category}/{cells[0].name}"
        )
    folder = out / cells[0].benchmark
    pending = [cell for cell in asked if not _is_measured(cell, folder)]
    print(f"{len(asked) - len(pending)} of {len(asked)} cells are measured; {len(pending)} to go")
    num_failed = _measure_all(pending, data=data, folder=folder, jobs=jobs, hours=hours)
    write_results(out, out.parent / RESULTS_FILE)
    print(f"{out.parent / RESULTS_FILE}: {len(asked) - num_failed} cells measured, {num_failed} failed")
    return 3 if num_failed else 0


def _is_measured(cell: Cell, folder: Path) -> bool:
    file = cell.file(folder)
    if not file.is_file():
        return False
    found = json.loads(file.read_text(encoding="utf-8"))
    return bool(found.get("status") == "ok" and found.get("asked") == cell.fingerprint())


def _measure_all(pending: list[Cell], *, data: Path, folder: Path, jobs: int, hours: float) -> int:
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
    """Processes that are ended when this one is."""
    running: list[_Process] = []
    try:
        yield running
    finally:
        for process in running:
            process.end()


class _Process:
    """A cell that is being measured."""

    def __init__(self, cell: Cell, *, data: Path, scratch: Path) -> None:
        self.cell = cell
        stem = scratch / f"{cell.category}-{cell.name}-{cell.seed}".replace("/", "-")
        asked, self._result, self._log = (stem.with_suffix(f".{kind}") for kind in ("asked.json", "json", "log"))
        write_json(asked, asdict(cell))
        self._begin = time.monotonic()
        self._gave_up = False
        threads = {name: str(cell.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "anomaly.benchmark.cell", str(asked), str(data), str(self._result)],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **threads},
            )

    def has_ended(self, *, hours: float) -> bool:
        """Whether the process has ended; one that took too long is ended."""
        if self._process.poll() is None and time.monotonic() - self._begin > hours * 3600:
            self._gave_up = True
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
        """Write the cell's JSON, measured or failed; gives whether it was measured."""
        succeeded = self._process.returncode == 0 and self._result.is_file()
        if succeeded:
            found = json.loads(self._result.read_text(encoding="utf-8"))
        else:
            found = {
                "status": "failed", "message": self._reason(), "versions": versions(), "hardware": hardware(),
                "commit": commit(), "date": now(),
            }  # fmt: skip
        cell = self.cell
        told = {
            "kind": "benchmark cell",
            "asked": cell.fingerprint(),
            **asdict(cell),
            "category": cell.category.partition("/")[2] or cell.category,
            "schedule_note": cell.note,
            **found,
        }
        write_json(cell.file(folder), told)
        return succeeded

    def _reason(self) -> str:
        if self._gave_up:
            return "given up: it took longer than --hours"
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        last = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
        words = [Path(word).name if word.startswith("/") else word for word in last[:500].split(" ")]
        return f"exit code {self._process.returncode}: {' '.join(words)}"  # the table holds no paths of this machine
