"""Measured cells, read from their JSON files and arranged in the rows of a table.

A cell is one detector, category and seed, in one JSON file. A row holds the cells of one recipe on one category, which differ
in their seed only.
"""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anomaly.benchmark.roles import Leak
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
    """measured cells, by seed"""
    failed: tuple[Json, ...]
    num_seeds: int
    """number of different seeds in the rows of the category"""

    def __getitem__(self, key: str) -> str:
        """Value that all cells of the row share."""
        return str((self.cells + self.failed)[0][key])

    @property
    def recipe(self) -> tuple[str, ...]:
        """Key of the rows that are averaged over categories, in the order of the table."""
        role = str(_WORDS["role"].index(self["role"]))
        return (role, *(self[key] for key in _IDENTITY[1:]), _config(self.cells[0]) if self.cells else "")

    @property
    def schedule(self) -> str:
        """Schedule and precision as text."""
        note = self["schedule_note"]
        return f"{self['schedule']}{f': {note}' if note else ''}; {self['precision']}"

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds that were measured."""
        return tuple(cell["seed"] for cell in self.cells)

    @property
    def leaks(self) -> list[Leak]:
        """Leaks and notes of all cells, each once with its largest number of images."""
        found: dict[tuple[str, str], Leak] = {}
        for raw in (raw for cell in self.cells for raw in cell["leaks"]):
            leak = Leak(raw["name"], raw["description"], (), raw["num"], raw["severity"])
            known = found.setdefault((leak.severity, leak.name), leak)
            found[leak.severity, leak.name] = max(known, leak, key=lambda one: one.num)
        return [found[key] for key in sorted(found)]

    @property
    def leaked(self) -> bool:
        """Whether any cell has a leak."""
        return any(leak.severity == "leak" for leak in self.leaks)

    def peers(self) -> tuple[Hashable, ...]:
        """Key of the rows that are compared on one category."""
        counts = {(cell["counts"]["test_good"], cell["counts"]["test_defect"]) for cell in self.cells}
        return self["schedule"], self.seeds, tuple(sorted(counts))

    def estimates(self, figure: str) -> list[Json]:
        """Value and interval by seed; empty where a seed has no such figure."""
        found = [_at(cell["figures"], FIGURES[figure]) for cell in self.cells]
        return found if all(found) else []

    def mean(self, figure: str) -> float | None:
        """Mean over the seeds in %, rounded as shown."""
        values = [estimate["value"] for estimate in self.estimates(figure)]
        return round(100 * statistics.mean(values), 1) if values else None

    def times(self, *keys: str) -> list[float]:
        """Seconds by seed; empty where a seed has no such time."""
        found = [_at(cell, keys) for cell in self.cells]
        return [] if None in found else found


def read_cells(folder: Path) -> list[Json]:
    """Read the cells below a folder, in an order that is independent of the file names.

    Raises:
        DataError: an invalid JSON file, an incomplete cell, or two cells of one recipe, category and seed.
    """
    found: dict[tuple[str, ...], tuple[Path, Json]] = {}
    for path in sorted(folder.rglob("*.json")):
        try:
            cell = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read as JSON ({error}); measure it again or remove it") from error
        if not isinstance(cell, dict) or cell.get("kind") != "benchmark cell":
            continue
        _check(cell, path)
        key = (cell["set"], cell["category"], *(cell[k] for k in _IDENTITY), _config(cell), f"{cell['seed']:09}")
        if key in found:
            raise DataError(f"{found[key][0]} and {path} hold the same cell; remove one")
        found[key] = path, cell
    return [found[key][1] for key in sorted(found)]


def _check(cell: Json, path: Path) -> None:
    missing = sorted((_ALWAYS | (_MEASURED if cell.get("status") == "ok" else set())) - set(cell))
    if missing:
        raise DataError(f"{path} has no {', '.join(missing)}; measure the cell again")
    for key, words in _WORDS.items():
        if cell[key] not in words:
            raise DataError(f"{path} has the {key} {cell[key]!r}; it must be one of {', '.join(words)}")
    if cell["schedule"] == "reduced" and not cell["schedule_note"]:
        raise DataError(f"{path} has a reduced schedule without a schedule_note; describe the reduction there")


def group_rows(cells: Sequence[Json]) -> dict[tuple[str, str], list[Row]]:
    """Arrange cells in rows by set and category, ours before baselines; a failed cell joins the cells of its name."""
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
    """The recipe as text without the seed; cells of one row share it."""
    return json.dumps({k: v for k, v in cell.get("config", {}).items() if k != "seed"}, sort_keys=True, default=str)


def _at(value: Any, keys: Sequence[str]) -> Any:
    """Value under nested keys; None if there is none."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value
