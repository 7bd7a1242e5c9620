"""Verdicts on parts with several views: a part gets the verdict of its worst view.

A good part with m views is rejected if any view is rejected. The probability is at most m times that of one view, for
any dependence between the views (union bound; Bonferroni for the p-value). The table holds both values.
"""

from __future__ import annotations

import csv
import sqlite3
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from anomaly.system.files import atomic_write

COLUMNS = ("part", "num_views", "num_errors", "verdict", "score", "threshold", "worst_view", "alpha", "p_value")
SEVERITY = ("good", "review", "incomplete", "defect")
"""Verdicts of a part, ascending; `incomplete`: a view has no score and no other view rejects the part"""


def write_parts(rows: Iterable[Mapping[str, Any]], path: Path, *, alpha_of: Mapping[str, float]) -> int:
    """Write one line per part, in the order of each part's first row.

    Args:
        rows: rows of a run with the column `part`; rows without a part are skipped.
        path: CSV file to write.
        alpha_of: model (16 hex digits, as in the rows) -> expected share of good views above the threshold.

    Returns:
        Number of parts.

    Raises:
        OutputError: the file cannot be written.
    """
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".parts") as folder:
        store = sqlite3.connect(Path(folder) / "parts.sqlite")  # on the disk: constant memory for a million parts
        try:
            store.execute("PRAGMA journal_mode=OFF")
            store.execute(
                "CREATE TABLE parts (number INTEGER PRIMARY KEY, part TEXT UNIQUE, views INT, errors INT, severity INT,"
                " score REAL, bound REAL, worst TEXT, p REAL, alpha REAL)"
            )
            store.executemany(
                "INSERT INTO parts (part, views, errors, severity, score, bound, worst, p, alpha) VALUES (?,1,?,?,?,?,?,?,?)"
                " ON CONFLICT (part) DO UPDATE SET views = views + 1, errors = errors + excluded.errors,"
                " severity = max(severity, excluded.severity), alpha = max(alpha, excluded.alpha),"
                " p = min(coalesce(p, excluded.p), coalesce(excluded.p, p)),"
                " worst = CASE WHEN excluded.score > coalesce(score, -1e999) THEN excluded.worst ELSE worst END,"
                " bound = max(bound, excluded.bound),"
                " score = max(coalesce(score, excluded.score), coalesce(excluded.score, score))",
                (_values(row, alpha_of) for row in rows if row["part"] not in (None, "")),
            )
            num = 0
            with (
                atomic_write(path, durable=True) as partial,
                partial.open("w", encoding="utf-8", newline="") as file,
            ):
                table = csv.writer(file)
                table.writerow(COLUMNS)
                for part, views, errors, severity, score, bound, worst, p, alpha in store.execute(
                    "SELECT part, views, errors, severity, score, bound, worst, p, alpha FROM parts ORDER BY number"
                ):
                    table.writerow(
                        (
                            part,
                            views,
                            errors,
                            SEVERITY[severity],
                            "" if score is None else score,
                            bound,
                            worst or "",
                            min(1.0, views * alpha),
                            "" if p is None else min(1.0, views * p),
                        )
                    )
                    num += 1
        finally:
            store.close()
    return num


def _values(row: Mapping[str, Any], alpha_of: Mapping[str, float]) -> tuple[Any, ...]:
    failed = row["status"] != "ok"
    severity = SEVERITY.index("incomplete" if failed else row["verdict"])
    alpha = alpha_of.get(row["model"], 0.0)
    return (str(row["part"]), int(failed), severity, row["score"], row["threshold"], row["path"], row["p_value"], alpha)
