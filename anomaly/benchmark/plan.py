"""The plan of a benchmark: detectors × categories × seeds, from one YAML file.

benchmark: reduced                  # name
precision: bf16                     # number format of training: fp32, bf16 or fastest
threads: 1                          # threads of each process
data:
  - categories: [mvtec_ad/bottle]   # folders below --data; patterns such as visa/* are allowed
    seeds: [0, 1, 2]
    part_group: 'lot([0-9]+)'       # joins the images of one part, as in `anomaly fit --part-group`
detectors:
  fastflow:                         # name of the row
    role: ours                      # or baseline
    config: ../detectors/fastflow.yaml
    model: {epochs: 8}              # replaces values of the config file
    fit: {brightness: levelled}     # further options of `anomaly fit`: brightness, calibration, tile or windows
    schedule: reduced               # full for the published schedule
    note: 8 of 500 epochs           # description of the reduction
    seeds: [0]                      # replaces the seeds of the data
    sets: [mvtec_ad]                # subset of the sets or categories
    chosen_on: [mvtec_ad/bottle]    # categories whose test images were seen when the recipe was chosen
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from anomaly.data.folders import find_categories
from anomaly.errors import UsageError
from anomaly.system.suggestions import nearest
from anomaly.training.loop import Precision


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One measurement: a detector, a category, a seed."""

    benchmark: str
    set: str
    category: str
    """folder below the data root; its first part is the set"""
    part_group: str | None
    """as in `anomaly fit --part-group`; None for no part groups"""
    name: str
    """name of the row in the table"""
    role: Literal["ours", "baseline"]
    detector: str
    model: dict[str, Any] = field(default_factory=dict)
    """arguments of the constructor"""
    fit: dict[str, Any] = field(default_factory=dict)
    """further options of `anomaly fit`"""
    schedule: Literal["full", "reduced"]
    note: str
    chosen_on: tuple[str, ...]
    precision: Precision
    threads: int
    seed: int

    def file(self, out: Path) -> Path:
        """Path of the cell's JSON file below the results folder."""
        return out / self.category / f"{self.name}-{self.seed}.json"

    def fingerprint(self) -> str:
        """Hash of the request; a cell whose file has another fingerprint is measured again."""
        request = {key: value for key, value in asdict(self).items() if key != "fit" or value}
        text = json.dumps(request, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


_PLAN = {"benchmark", "precision", "threads", "data", "detectors"}
_DATA = {"categories", "seeds", "part_group"}
_DETECTOR = {"role", "config", "model", "fit", "schedule", "note", "precision", "seeds", "sets", "chosen_on"}
_FIT = {"brightness", "calibration", "tile", "windows"}


def read_plan(
    file: Path, *, data: Path, detector: str | None = None, options: dict[str, Any] | None = None
) -> list[Cell]:
    """Read a plan as its cells, ordered by seed, then category, then detector.

    Args:
        file: YAML file.
        data: folder of the data sets.
        detector: further detector beside those of the file: registry name or package.module:Class.
        options: arguments of its constructor.

    Raises:
        UsageError: an unreadable file, an unknown key, a class path in the file, or a missing category.
    """
    plan = _read(file)
    _check(plan, _PLAN, f"benchmark {file}")
    rows = plan.get("detectors") or {}
    if detector is not None:
        rows = {**rows, detector.rpartition(":")[2]: {"class": detector, "model": options or {}}}
    cells = []
    for part in plan.get("data") or []:
        _check(part, _DATA, f"data of {file}")
        for category in _categories(part["categories"], data=data):
            for name, row in rows.items():
                request = _detector(name, row, file=file)
                if row.get("sets") and not {category, category.partition("/")[0]} & set(row["sets"]):
                    continue
                cells += [
                    Cell(
                        benchmark=str(plan.get("benchmark", file.stem)),
                        set=category.partition("/")[0],
                        category=category,
                        part_group=part.get("part_group"),
                        name=name,
                        precision=row.get("precision", plan.get("precision", "fp32")),
                        threads=int(plan.get("threads", 1)),
                        seed=int(seed),
                        **request,
                    )
                    for seed in row.get("seeds", part.get("seeds", [0]))
                ]
    if not cells:
        raise UsageError(f"benchmark {file} has no cells: give it data with categories, and detectors")
    return sorted(cells, key=lambda cell: cell.seed)  # stable: all cells of one seed before the next seed


def _read(file: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read as YAML: {error}") from error
    if not isinstance(found, dict):
        raise UsageError(f"{file} holds no options: write NAME: VALUE, one per line")
    return found


def _check(found: Any, known: set[str], where: str) -> None:
    """Refuse a value that is not a table, and unknown keys.

    Raises:
        UsageError: the key, with the nearest known one.
    """
    if not isinstance(found, dict):
        raise UsageError(f"{where}: {found!r} is not a table with the keys {', '.join(sorted(known))}")
    for key in found:
        if key not in known:
            raise UsageError(f"{where}: unknown key {key!r}; nearest: {nearest(str(key), sorted(known))!r}")


def _detector(name: str, row: dict[str, Any], *, file: Path) -> dict[str, Any]:
    """Read the fields of a cell that concern its detector."""
    if isinstance(row, dict) and "class" in row:
        return {
            "role": "ours", "detector": row["class"], "model": dict(row["model"]), "schedule": "reduced",
            "note": "from the command line", "chosen_on": (),
        }  # fmt: skip
    _check(row, _DETECTOR, f"detector {name!r} of {file}")
    _check(row.get("fit", {}), _FIT, f"fit of detector {name!r} of {file}")
    config = _read(file.parent / row["config"]) if "config" in row else {}
    detector = str(config.get("detector", name))
    if ":" in detector:
        raise UsageError(f"detector {detector!r} in a YAML file: give a class path with --detector only")
    if row.get("schedule", "reduced") == "reduced" and not row.get("note"):
        raise UsageError(f"detector {name!r} of {file} has a reduced schedule: describe the reduction in `note`")
    return {
        "role": row.get("role", "ours"),
        "detector": detector,
        "model": {**config.get("model", {}), **row.get("model", {})},
        "fit": row.get("fit", {}),
        "schedule": row.get("schedule", "reduced"),
        "note": str(row.get("note", "")),
        "chosen_on": tuple(row.get("chosen_on", ())),
    }


def _categories(names: Any, *, data: Path) -> list[str]:
    """Find the folders below the data root, and expand patterns."""
    found: list[str] = []
    for name in [names] if isinstance(names, str) else names:
        if name.endswith("/*"):
            found += [folder.relative_to(data).as_posix() for folder in find_categories(data / name[:-2])]
        elif (data / name).is_dir():
            found.append(name)
        else:
            raise UsageError(
                f"category {name!r} is not in {data}: correct the YAML file, or give another folder by --data"
            )
    return found
