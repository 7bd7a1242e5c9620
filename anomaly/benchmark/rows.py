"""Measured cells, read from their JSON files and put into the rows of a table.

cell      one detector, category and seed; one JSON file
row       the cells of one recipe on one category, which differ in their seed alone
"""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anomaly.benchmark.leaks import Leak
from anomaly.errors import DataError

Json = dict[str, Any]
FIGURES = {
    "image AUROC": ("image", "auroc"),
    "pixel AUROC": ("pixel", "auroc"),
    "AUPRO 30 %": ("pixel", "aupro", "0.3"),
}
_ALWAYS = {
    "benchmark", "set", "category", "name", "role", "detector", "seed", "schedule", "schedule_note", "precision",
    "status", "message", "versions", "hardware", "commit", "date",
}  # fmt: skip
_MEASURED = {"config", "seconds", "counts", "figures", "leaks", "num_checks"}
_WORDS = {"role": ("ours", "baseline"), "schedule": ("full", "reduced"), "status": ("ok", "failed")}
_IDENTITY = ("role", "name", "detector", "schedule", "schedule_note", "precision", "benchmark")


@dataclass(frozen=True)
class Row:
    """The cells of one recipe on one category."""

    cells: tuple[Json, ...]
    """measured ones, by seed"""
    failed: tuple[Json, ...]
    num_seeds: int
    """seeds that some row of the category has"""

    def __getitem__(self, key: str) -> str:
        """What all cells of the row say alike."""
        return str((self.cells + self.failed)[0][key])

    @property
    def recipe(self) -> tuple[str, ...]:
        """What a row must share with those of other categories to be averaged with them, in the order of the table."""
        role = str(_WORDS["role"].index(self["role"]))
        return (role, *(self[key] for key in _IDENTITY[1:]), _config(self.cells[0]) if self.cells else "")

    @property
    def schedule(self) -> str:
        """Schedule and precision for the eye."""
        note = self["schedule_note"]
        return f"{self['schedule']}{f': {note}' if note else ''}; {self['precision']}"

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds that were measured."""
        return tuple(cell["seed"] for cell in self.cells)

    @property
    def leaks(self) -> list[Leak]:
        """Leaks and notes of any cell, each once with its most images."""
        found: dict[tuple[str, str], Leak] = {}
        for raw in (raw for cell in self.cells for raw in cell["leaks"]):
            leak = Leak(raw["name"], raw["what"], (), raw["num"], raw["severity"])
            known = found.setdefault((leak.severity, leak.name), leak)
            found[leak.severity, leak.name] = max(known, leak, key=lambda one: one.num)
        return [found[key] for key in sorted(found)]

    @property
    def leaked(self) -> bool:
        """Whether any cell has a leak."""
        return any(leak.severity == "leak" for leak in self.leaks)

    def peers(self) -> tuple[Hashable, ...]:
        """What rows must share to be compared on one category."""
        counts = {(cell["counts"]["test_good"], cell["counts"]["test_defect"]) for cell in self.cells}
        return self["schedule"], self.seeds, tuple(sorted(counts))

    def estimates(self, figure: str) -> list[Json]:
        """Value and interval by seed, none where any seed lacks the figure."""
        found = [_at(cell["figures"], FIGURES[figure]) for cell in self.cells]
        return found if all(found) else []

    def mean(self, figure: str) -> float | None:
        """Mean over the seeds in %, to the digit that is shown."""
        values = [estimate["value"] for estimate in self.estimates(figure)]
        return round(100 * statistics.mean(values), 1) if values else None

    def times(self, *keys: str) -> list[float]:
        """Seconds by seed, none where any seed lacks them."""
        found = [_at(cell, keys) for cell in self.cells]
        return [] if None in found else found


def read_cells(folder: Path) -> list[Json]:
    """Read the cells in a folder and below it, in an order that does not depend on the names of the files.

    Raises:
        DataError: as `write_results`.
    """
    found: dict[tuple[str, ...], tuple[Path, Json]] = {}
    for path in sorted(folder.rglob("*.json")):
        try:
            cell = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read as JSON ({error}); measure it again or take it away") from error
        if not isinstance(cell, dict) or cell.get("kind") != "benchmark cell":
            continue
        _check(cell, path)
        key = (cell["set"], cell["category"], *(cell[k] for k in _IDENTITY), _config(cell), f"{cell['seed']:09}")
        if key in found:
            raise DataError(f"{found[key][0]} and {path} are one cell measured twice; take one away")
        found[key] = path, cell
    return [found[key][1] for key in sorted(found)]


def _check(cell: Json, path: Path) -> None:
    missing = sorted((_ALWAYS | (_MEASURED if cell.get("status") == "ok" else set())) - set(cell))
    if missing:
        raise DataError(f"{path} is a cell without {', '.join(missing)}; measure it again")
    for key, words in _WORDS.items():
        if cell[key] not in words:
            raise DataError(f"{path} has the {key} {cell[key]!r}; it is one of {', '.join(words)}")
    if cell["schedule"] == "reduced" and not cell["schedule_note"]:
        raise DataError(f"{path} has a reduced schedule and does not say how; give it a schedule_note")


def group_rows(cells: Sequence[Json]) -> dict[tuple[str, str], list[Row]]:
    """Put the cells into rows, by set and category, ours before baselines; a failed cell joins the others of its name."""
    groups: dict[tuple[str, str], dict[tuple[str, ...], dict[str, list[Json]]]] = defaultdict(lambda: defaultdict(dict))
    for cell in sorted(cells, key=lambda cell: (cell["status"] != "ok", cell["seed"])):
        configs = groups[cell["set"], cell["category"]][tuple(cell[key] for key in _IDENTITY)]
        config = _config(cell) if cell["status"] == "ok" else min(configs, default="")
        configs.setdefault(config, []).append(cell)
    rows = {}
    for place, identities in groups.items():
        members = [found for configs in identities.values() for found in configs.values()]
        num_seeds = len({cell["seed"] for found in members for cell in found})
        built = []
        for found in members:
            failed = tuple(cell for cell in found if cell["status"] != "ok")
            built.append(Row(tuple(cell for cell in found if cell["status"] == "ok"), failed, num_seeds))
        rows[place] = sorted(built, key=lambda row: row.recipe)
    return {place: rows[place] for place in sorted(rows)}


def _config(cell: Json) -> str:
    """The recipe as text; cells of one row have the same but for the seed."""
    return json.dumps({k: v for k, v in cell.get("config", {}).items() if k != "seed"}, sort_keys=True, default=str)


def _at(value: Any, keys: Sequence[str]) -> Any:
    """What lies under nested keys, None where there is nothing."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value
