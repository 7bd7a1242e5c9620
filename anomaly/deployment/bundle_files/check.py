"""Checks the bundle that it lies in; says what is wrong, and exits with 1 where something is.

python check.py --files       every file against MANIFEST.json, and the interpreter; needs nothing installed
VENV/bin/python check.py      the same, what is installed against wheels/, and each model on its golden image
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import json
import os
import platform
import re
import sys
from pathlib import Path
from typing import Any

FOLDERS = ("wheels", "weights", "models")


def main(arguments: list[str]) -> int:
    """Check, and tell; gives the exit code."""
    here = Path(__file__).resolve().parent
    if arguments not in ([], ["--files"]):
        print("usage: python check.py [--files]", file=sys.stderr)
        return 2
    try:
        manifest: dict[str, Any] = json.loads((here / "MANIFEST.json").read_text(encoding="utf-8"))
        wrong = wrong_files(here, manifest["files"]) + wrong_python(manifest["python"], manifest["machine"])
    except (OSError, ValueError, KeyError) as error:
        print(f"WRONG: MANIFEST.json cannot be read ({error!r}): copy the bundle again", file=sys.stderr)
        return 1
    for folder in FOLDERS:
        listed = [entry["bytes"] for name, entry in manifest["files"].items() if name.startswith(f"{folder}/")]
        if listed:
            print(f"{folder}: {len(listed)} files, {sum(listed) / 2**20:.1f} MiB")
    if not arguments and not wrong:
        wrong = wrong_packages(here / "wheels") or wrong_models(here, manifest)
    for message in wrong:
        print(f"WRONG: {message}", file=sys.stderr)
    if not wrong:
        print("all files are those of the manifest" if arguments else "installed and working")
    return 1 if wrong else 0


def wrong_files(here: Path, listed: dict[str, dict[str, Any]]) -> list[str]:
    """Say which files are missing, changed, or not of the bundle."""
    wrong = []
    for name, entry in sorted(listed.items()):
        file = here / name
        if not file.is_file():
            wrong.append(f"{name} is missing: copy it again")
        elif file.stat().st_size != entry["bytes"] or sha256(file) != entry["sha256"]:
            wrong.append(f"{name} was changed: its SHA-256 is not that of the manifest; copy it again")
    found = [path for folder in FOLDERS for path in sorted((here / folder).rglob("*")) if path.is_file()]
    names = [path.relative_to(here).as_posix() for path in found]
    return wrong + [f"{name} is not of this bundle: take it out" for name in names if name not in listed]


def sha256(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while chunk := opened.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def wrong_python(version: str, machine: str) -> list[str]:
    """Say where this interpreter is not the one that the wheels are for."""
    here = ".".join(platform.python_version_tuple()[:2])
    names = {"amd64": "x86_64", "arm64": "aarch64"}
    processor = platform.machine().lower()
    wrong = [] if here == version else [f"this is Python {here}, the bundle is for {version}: name it by PYTHON=…"]
    if names.get(processor, processor) != machine:
        wrong.append(f"this is a {processor}, the bundle is for {machine}: make one for this machine")
    return wrong


def wrong_packages(wheels: Path) -> list[str]:
    """Say which packages are not installed in the version of their wheel; print those that are."""
    wrong, told = [], []
    for wheel in sorted(wheels.glob("*.whl")):
        name, version = wheel.name.split("-")[:2]
        try:
            found = importlib.metadata.version(re.sub(r"_", "-", name))
        except importlib.metadata.PackageNotFoundError:
            wrong.append(
                f"{name} {version} is not installed here: run install.sh, and check with the python in its folder"
            )
            continue
        if found == version:
            told.append(f"{name} {version}")
        else:
            wrong.append(f"{name} {found} is installed, the bundle has {version}: install into a new folder")
    print(f"python {platform.python_version()}; " + ", ".join(told))
    return wrong


def wrong_models(here: Path, manifest: dict[str, Any]) -> list[str]:
    """Import what was installed, open the weights, and score each model's golden image."""
    os.environ["ANOMALY_WEIGHTS"] = str(here / "weights")
    wrong = []
    names = {"train": ["anomaly.training.fit", "anomaly.export.detector"]}.get(manifest["extra"], [])
    for name in ["anomaly.commands.score", "anomaly.commands.serve", *names]:
        try:
            importlib.import_module(name)
        except Exception as error:  # whatever a broken package raises is what has to be told
            wrong.append(f"{name} cannot be imported: {error}")
    if wrong:
        return wrong
    from anomaly.errors import AnomalyError
    from anomaly.inference.scorer import OnnxScorer

    for model in manifest["models"]:
        try:
            scorer = OnnxScorer(here / model["file"], device="cpu", num_threads=0)
            print(f"{model['file']}: {scorer.metadata.detector}, golden image as at export on {scorer.provider}")
        except AnomalyError as error:
            wrong.append(str(error))
    for weights in manifest["weights"]:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(here / weights["file"], framework="numpy") as opened:
                print(f"{weights['file']}: {len(opened.keys())} tensors, {weights['source']}, {weights['licence']}")
        except (SafetensorError, OSError) as error:
            wrong.append(f"{weights['file']} cannot be opened: {error}")
    return wrong


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
