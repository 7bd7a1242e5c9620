"""Two demos compared: rows, overlays, states and certificates, for a change that must not alter results.

    python -m benchmarks.compare_demos BEFORE AFTER --out FILE

BEFORE and AFTER are output folders of `anomaly demo` with equal options, written by two versions of the package. Renamed
columns and keys count as equal; file hashes, dates and places are left out.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from safetensors.numpy import load_file

from anomaly.system.files import write_json

RENAMED = {"limit": "threshold", "zero": "offset", "unit": "scale"}
"""Word of an earlier version -> its word today, in columns and in state keys"""
LEFT_OUT = {"path", "model", "date", "versions", "hardware", "config"}


def compare(before: Path, after: Path) -> dict[str, Any]:
    """Count the differences between two demos."""
    old, new = read_rows(before), read_rows(after)
    columns = [name for name in old[0] if name not in LEFT_OUT]
    rows = {name: sum(a[name] != b[RENAMED.get(name, name)] for a, b in zip(old, new, strict=True)) for name in columns}
    overlays = [sorted((demo / "overlays").rglob("*.png")) for demo in (before, after)]
    states = [load_file(demo / "run" / "detector.safetensors") for demo in (before, after)]
    names = {key: renamed_key(key) for key in states[0]}
    certificates = [
        json.loads((demo / "model.certificate.json").read_text(encoding="utf-8")) for demo in (before, after)
    ]
    cards = [json.loads((demo / "run.json").read_text(encoding="utf-8")) for demo in (before, after)]
    return {
        "commits": [card["commit"] for card in cards],
        "num_rows": len(old),
        "rows_that_differ": rows,
        "num_overlays": [len(files) for files in overlays],
        "overlays_that_differ": sum(not np.array_equal(pixels(a), pixels(b)) for a, b in zip(*overlays, strict=True)),
        "num_tensors": len(names),
        "tensors_that_differ": sum(not np.array_equal(states[0][a], states[1][b]) for a, b in names.items()),
        "certificate_keys_that_differ": [
            key for key in certificates[0] if key not in LEFT_OUT and certificates[0][key] != certificates[1].get(key)
        ],
        "seconds": [card["seconds"]["total"] for card in cards],
    }


def read_rows(demo: Path) -> list[dict[str, str]]:
    """Read the rows of a demo."""
    with (demo / "scores.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def renamed_key(key: str) -> str:
    """Key of a state tensor with the words of today."""
    if not key.startswith("calibration."):
        return key
    word, _, part = key.removeprefix("calibration.").partition("_")
    return f"calibration.{RENAMED.get(word, word)}_{part}"


def pixels(path: Path) -> Any:
    """Decoded pixels of a PNG file."""
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def main() -> None:
    """Compare and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    figures = compare(arguments.before, arguments.after)
    write_json(arguments.out, figures)
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
