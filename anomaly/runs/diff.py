"""The verb `diff`: which verdicts change between two runs over the same images."""

from __future__ import annotations

import csv
import itertools
from collections import Counter
from pathlib import Path

from anomaly.errors import DataError, OutputError
from anomaly.runs.run_directory import check_manifest, read_ledger
from anomaly.runs.sinks import read_rows

COLUMNS = ("path", "verdict_a", "verdict_b", "score_a", "score_b", "threshold_a", "threshold_b", "status_a", "status_b")
NUM_SHOWN = 10


def diff(run_a: Path, run_b: Path, *, out: str = "") -> dict[str, int]:
    """Show which verdicts change between two finished runs over the same images: other models, other limits.

    Args:
        run_a: a run directory.
        run_b: another, of the same list of images.
        out: CSV file for every image whose verdict or status changes.

    Returns:
        How often each change occurs, as `good -> defect`.

    Raises:
        DataError: a run that is unfinished or was changed, or two runs over different images.
        OutputError: the CSV file cannot be written.
    """
    for run in (run_a, run_b):
        check_manifest(run)
    counts: Counter[str] = Counter()
    changed = []
    num = 0
    for a, b in itertools.zip_longest(read_rows(run_a), read_rows(run_b)):
        if a is None or b is None or a["path"] != b["path"]:
            found = " and ".join(row["path"] if row else "nothing" for row in (a, b))
            raise DataError(f"{run_a} and {run_b} hold different images: after {num} equal ones, {found}")
        if a["sha256"] != b["sha256"]:
            raise DataError(f"{a['path']} is not the same file in {run_a} and {run_b}: score both over the same images")
        num += 1
        before, after = (row["verdict"] or row["status"] for row in (a, b))
        if before != after:
            counts[f"{before} -> {after}"] += 1
            names = ("verdict", "score", "threshold", "status")
            changed.append((a["path"], *(row[name] for name in names for row in (a, b))))
    for name, run in (("a", run_a), ("b", run_b)):
        asked = read_ledger(run)[0]["asked"]
        models = ", ".join(model[:16] for model in asked["models"].values())
        print(f"{name}: {run}: model {models}, threshold {asked['threshold']:g}")
    print(f"{num} images, {sum(counts.values())} verdicts change" + "".join(f"; {k}: {v}" for k, v in counts.items()))
    for path, *values in changed[:NUM_SHOWN]:
        print(f"  {path}: {values[0] or values[6]} ({values[2]}) -> {values[1] or values[7]} ({values[3]})")
    if len(changed) > NUM_SHOWN:
        print(f"  … and {len(changed) - NUM_SHOWN} more" + ("" if out else ": --out FILE.csv writes them all"))
    if out:
        try:
            with Path(out).open("w", encoding="utf-8", newline="") as file:
                table = csv.writer(file)
                table.writerow(COLUMNS)
                table.writerows(["" if value is None else value for value in line] for line in changed)
        except OSError as error:
            raise OutputError(f"{out} cannot be written: {error.strerror}; choose another place") from error
    return dict(counts)
