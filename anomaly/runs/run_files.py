"""The files of a run, and how to read and check them.

    ledger.jsonl     options, versions and host; one line per commit with the number of safe rows; the end
    models/          a copy of every model
    inputs.jsonl     the images, listed once when the run began
    rows.csv | rows.jsonl | rows/part-00000.parquet …
    overlays/, maps/ optional images of the results
    evidence/        optional: nearest good patches of rejected images, one picture and one JSON file for each
    drift.bin        score and image statistics of every image, for the drift monitor of a resumed run
    parts.csv        one verdict per part, for an image table with the column `part`
    summary.json     counts of the finished run
    manifest.json    SHA-256 of every file above, written last

A run with a manifest is finished.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from anomaly.errors import DataError
from anomaly.scoring.sources import Item
from anomaly.system.files import sha256_of

LEDGER, INPUTS, MANIFEST, SUMMARY, LOCK = "ledger.jsonl", "inputs.jsonl", "manifest.json", "summary.json", ".lock"
RECORDS, PARTS = "drift.bin", "parts.csv"
MODELS, OVERLAYS, MAPS, EVIDENCE = "models", "overlays", "maps", "evidence"
LISTED = "listed"
"""Event of the ledger: the list of images is complete"""


def read_ledger(folder: Path) -> list[dict[str, Any]]:
    """Read the complete lines of the ledger; a truncated last line is skipped."""
    path = folder / LEDGER
    if not path.exists():
        return []
    lines = path.read_bytes()[: whole_lines(path)].splitlines()
    return [json.loads(line) for line in lines]


def run_options(ledger: list[dict[str, Any]]) -> dict[str, Any]:
    """Options that a run began with, from its ledger."""
    options: dict[str, Any] = ledger[0]["asked"]
    return options


def listed_images(ledger: list[dict[str, Any]]) -> dict[str, Any]:
    """Entry of the ledger on the list of images: its length, and the further columns."""
    return next(entry for entry in ledger if entry["event"] == LISTED)


def whole_lines(path: Path) -> int:
    """Length of a file up to the end of its last complete line, in bytes."""
    data = path.read_bytes()
    return data.rfind(b"\n") + 1


def read_inputs(folder: Path) -> Iterator[Item]:
    """Read the images of a run."""
    with (folder / INPUTS).open(encoding="ascii") as file:
        for line in file:
            if not line.endswith("\n"):  # truncated by the crash of a watching process
                return
            values = json.loads(line)
            yield Item(**(values | {"place": tuple(values["place"])}))


def check_manifest(folder: Path) -> None:
    """Compare the files of a run with its manifest.

    Raises:
        DataError: the run is not finished, or a file is missing, changed or added; the first one is named.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise DataError(
            f"{folder} holds no finished run ({MANIFEST} is missing): finish it by `anomaly score --resume`"
        )
    listed: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))["files"]
    found = hash_files(folder)
    for name in sorted({*listed, *found}):
        if name not in found:
            raise DataError(f"{folder / name} is missing, and the run's manifest lists it: restore it from a copy")
        if name not in listed:
            raise DataError(f"{folder / name} is not in the run's manifest: it was added later; remove it")
        if listed[name] != found[name]:
            raise DataError(f"{folder / name} was changed: its SHA-256 is not in the manifest; use an unchanged copy")


def hash_files(folder: Path) -> dict[str, str]:
    """Name -> SHA-256 of every file of a run, without the manifest, hidden and partial files."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != MANIFEST and not path.name.startswith(".") and not name.endswith(".partial"):
            found[name] = sha256_of(path)
    return found
