"""The verb `benchmark`: detectors × categories × seeds of a plan, and the table of their results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from anomaly.benchmark.run import BenchmarkResult
from anomaly.benchmark.run import benchmark as run_benchmark


def benchmark(
    plan: Path,
    *,
    data: Path,
    out: Path = Path("benchmarks/results"),
    detector: str | None = None,
    model: dict[str, Any] | None = None,
    only: str | None = None,
    jobs: int = 1,
    hours: float = 12.0,
) -> BenchmarkResult:
    """Measure detectors × categories × seeds, and write one JSON file per cell and a table of all cells.

    Cells with an up-to-date file are not measured again. A crash fails one cell only, and the next run tries it again. The
    exit code is 3 if a cell failed.

    Args:
        plan: YAML file of the benchmark, see configs/benchmarks.
        data: folder of the data sets that the plan names.
        out: folder of the results; RESULTS.md is written beside it.
        detector: further detector to measure: registry name or package.module:Class.
        model: arguments of the further detector's constructor.
        only: text that the `category/name-seed` of a measured cell contains; by default all cells are measured.
        jobs: number of simultaneous processes.
        hours: time limit of one cell in hours.

    Raises:
        UsageError: a plan that cannot be read.
    """
    return run_benchmark(plan, data=data, out=out, detector=detector, options=model, only=only, jobs=jobs, hours=hours)


def show(result: BenchmarkResult) -> int:
    """Print the counts; the exit code is 0, or 3 if a cell failed."""
    num_new = result.num_cells - result.num_reused - result.num_failed
    print(
        f"{result.table}: {result.num_cells} cells, {result.num_reused} measured before, {num_new} measured now,"
        f" {result.num_failed} failed"
    )
    return 3 if result.num_failed else 0
