"""What a benchmark is to measure: detectors × categories × seeds, from one YAML file.

benchmark: reduced                  # its name
precision: bf16                     # of training: fp32, bf16 or fastest
threads: 1                          # of each process
data:
  - categories: [mvtec_ad/bottle]   # folders below --data; a pattern such as visa/* is spelled out
    seeds: [0, 1, 2]
    group: ''                       # images of one part, as of `anomaly fit --part-group`
detectors:
  fastflow:                         # the row's name
    role: ours                      # or baseline
    config: ../detectors/fastflow.yaml
    model: {epochs: 8}              # over those of the file
    fit: {brightness: levelled}     # what else `anomaly fit` is asked: brightness, tile or windows
    schedule: reduced               # full where it is the published one
    note: 8 of 500 epochs           # how it is reduced
    seeds: [0]                      # only these
    chosen_on: [mvtec_ad/bottle]    # categories whose test images were looked at when the recipe was settled
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
    """folder below the data root, its first part being the set"""
    group: str
    name: str
    """of the row in the table"""
    role: Literal["ours", "baseline"]
    detector: str
    model: dict[str, Any] = field(default_factory=dict)
    fit: dict[str, Any] = field(default_factory=dict)
    """options of `anomaly fit` beside these"""
    schedule: Literal["full", "reduced"]
    note: str
    chosen_on: tuple[str, ...]
    precision: Precision
    threads: int
    seed: int

    def file(self, out: Path) -> Path:
        """Where the cell's JSON is written below the results folder."""
        return out / self.category / f"{self.name}-{self.seed}.json"

    def fingerprint(self) -> str:
        """Hash of all that was asked: a cell whose file has another one is measured again."""
        asked = {key: value for key, value in asdict(self).items() if key != "fit" or value}
        text = json.dumps(asked, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


_PLAN = {"benchmark", "precision", "threads", "data", "detectors"}
_DATA = {"categories", "seeds", "group"}
_DETECTOR = {"role", "config", "model", "fit", "schedule", "note", "precision", "seeds", "sets", "chosen_on"}
_FIT = {"brightness", "tile", "windows"}


def read_plan(file: Path, *, data: Path, own: str, own_model: dict[str, Any]) -> list[Cell]:
    """Read a benchmark's YAML as its cells: first seeds first, then categories, then detectors, in the file's order.

    Args:
        file: the YAML file.
        data: folder of the data sets.
        own: a detector beside those of the file, package.module:Class or a registry name; empty for none.
        own_model: its options.

    Raises:
        UsageError: a file that cannot be read, a key that is not known, a class path in the file, no such category.
    """
    plan = _read(file)
    _check(plan, _PLAN, f"benchmark {file}")
    rows = plan.get("detectors") or {}
    if own:
        rows = {**rows, own.rpartition(":")[2]: {"role": "ours", "own": own, "model": own_model}}
    cells = []
    for part in plan.get("data") or []:
        _check(part, _DATA, f"data of {file}")
        for category in _categories(part["categories"], data=data):
            for name, row in rows.items():
                asked = _detector(name, row, file=file)
                if row.get("sets") and not {category, category.partition("/")[0]} & set(row["sets"]):
                    continue
                cells += [
                    Cell(
                        benchmark=str(plan.get("benchmark", file.stem)),
                        set=category.partition("/")[0],
                        category=category,
                        group=str(part.get("group", "")),
                        name=name,
                        precision=row.get("precision", plan.get("precision", "fp32")),
                        threads=int(plan.get("threads", 1)),
                        seed=int(seed),
                        **asked,
                    )
                    for seed in part.get("seeds", [0])
                    if seed in row.get("seeds", part.get("seeds", [0]))
                ]
    if not cells:
        raise UsageError(f"benchmark {file} has nothing to measure: give it data with categories, and detectors")
    return sorted(cells, key=lambda cell: cell.seed)  # stable: one seed of everything before the next


def _read(file: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read as YAML: {error}") from error
    if not isinstance(found, dict):
        raise UsageError(f"{file} holds no options: write NAME: VALUE, one a line")
    return found


def _check(found: Any, known: set[str], where: str) -> None:
    if not isinstance(found, dict):
        raise UsageError(f"{where}: {found!r} is no table of {', '.join(sorted(known))}")
    for key in found:
        if key not in known:
            raise UsageError(f"{where} has no key {key!r}; nearest: {nearest(str(key), sorted(known))!r}")


def _detector(name: str, row: dict[str, Any], *, file: Path) -> dict[str, Any]:
    """What a cell says of its detector."""
    if "own" in row:
        return {
            "role": "ours", "detector": row["own"], "model": dict(row["model"]), "schedule": "reduced",
            "note": "from the command line", "chosen_on": (),
        }  # fmt: skip
    _check(row, _DETECTOR, f"detector {name!r} of {file}")
    _check(row.get("fit", {}), _FIT, f"fit of detector {name!r} of {file}")
    config = _read(file.parent / row["config"]) if "config" in row else {}
    detector = str(config.get("detector", name))
    if ":" in detector:
        raise UsageError(f"detector {detector!r} in a YAML file: a class to import is named by --detector only")
    if row.get("schedule", "reduced") == "reduced" and not row.get("note"):
        raise UsageError(f"detector {name!r} of {file} has a reduced schedule: say in `note` how it is reduced")
    return {
        "role": row.get("role", "ours"),
        "detector": detector,
        "model": {**config.get("model", {}), **row.get("model", {})},
        "fit": row.get("fit", {}),
        "schedule": row.get("schedule", "reduced"),
        "note": str(row.get("note", "")),
        "chosen_on": tuple(row.get("chosen_on", ())),
    }


def _categories(asked: Any, *, data: Path) -> list[str]:
    """Folders below the data root, patterns spelled out."""
    found: list[str] = []
    for one in [asked] if isinstance(asked, str) else asked:
        if one.endswith("/*"):
            found += [folder.relative_to(data).as_posix() for folder in find_categories(data / one[:-2])]
        elif (data / one).is_dir():
            found.append(one)
        else:
            raise UsageError(f"category {one!r} is not in {data}: mend the YAML file or name another folder by --data")
    return found
