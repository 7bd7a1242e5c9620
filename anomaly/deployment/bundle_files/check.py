"""Checks the bundle in its own folder, prints all faults, and exits with 1 if there is one.

python check.py --files       check every file against MANIFEST.json, and the interpreter; needs no installation
VENV/bin/python check.py      check the installed packages against wheels/ too, and each model on its golden image
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
    """Run the checks, print the result and return the exit code."""
    here = Path(__file__).resolve().parent
    if arguments not in ([], ["--files"]):
        print("usage: python check.py [--files]", file=sys.stderr)
        return 2
    try:
        manifest: dict[str, Any] = json.loads((here / "MANIFEST.json").read_text(encoding="utf-8"))
        faults = file_faults(here, manifest["files"]) + interpreter_faults(manifest["python"], manifest["machine"])
    except (OSError, ValueError, KeyError) as error:
        print(f"FAULT: MANIFEST.json cannot be read ({error!r}): copy the bundle again", file=sys.stderr)
        return 1
    for folder in FOLDERS:
        listed = [entry["bytes"] for name, entry in manifest["files"].items() if name.startswith(f"{folder}/")]
        if listed:
            print(f"{folder}: {len(listed)} files, {sum(listed) / 2**20:.1f} MiB")
    if not arguments and not faults:
        faults = package_faults(here / "wheels") or model_faults(here, manifest)
    for message in faults:
        print(f"FAULT: {message}", file=sys.stderr)
    if not faults:
        print("every file matches the manifest" if arguments else "installed and working")
    return 1 if faults else 0


def file_faults(here: Path, listed: dict[str, dict[str, Any]]) -> list[str]:
    """List missing, changed and foreign files."""
    faults = []
    for name, entry in sorted(listed.items()):
        file = here / name
        if not file.is_file():
            faults.append(f"{name} is missing: copy it again")
        elif file.stat().st_size != entry["bytes"] or sha256(file) != entry["sha256"]:
            faults.append(f"{name} was changed: its SHA-256 differs from the manifest; copy it again")
    found = [path for folder in FOLDERS for path in sorted((here / folder).rglob("*")) if path.is_file()]
    names = [path.relative_to(here).as_posix() for path in found]
    return faults + [f"{name} does not belong to this bundle: remove it" for name in names if name not in listed]


def sha256(file: Path) -> str:
    """Return the SHA-256 of a file, hexadecimal."""
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while chunk := opened.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def interpreter_faults(version: str, machine: str) -> list[str]:
    """Compare this interpreter with the target of the wheels."""
    here = ".".join(platform.python_version_tuple()[:2])
    names = {"amd64": "x86_64", "arm64": "aarch64"}
    processor = platform.machine().lower()
    faults = (
        [] if here == version else [f"this is Python {here}, the bundle is for {version}: set PYTHON=python{version}"]
    )
    if names.get(processor, processor) != machine:
        faults.append(f"this processor is {processor}, the bundle is for {machine}: make a bundle for this machine")
    return faults


def package_faults(wheels: Path) -> list[str]:
    """List packages without the version of their wheel, and print the others."""
    faults, installed = [], []
    for wheel in sorted(wheels.glob("*.whl")):
        name, version = wheel.name.split("-")[:2]
        try:
            found = importlib.metadata.version(re.sub(r"_", "-", name))
        except importlib.metadata.PackageNotFoundError:
            faults.append(
                f"{name} {version} is not installed: run install.sh, then check with the Python of its environment"
            )
            continue
        if found == version:
            installed.append(f"{name} {version}")
        else:
            faults.append(f"{name} {found} is installed, the bundle has {version}: install into a new folder")
    print(f"python {platform.python_version()}; " + ", ".join(installed))
    return faults


def model_faults(here: Path, manifest: dict[str, Any]) -> list[str]:
    """Import the package, open the weights, and score each model's golden image."""
    os.environ["ANOMALY_WEIGHTS"] = str(here / "weights")
    faults = []
    names = {"train": ["anomaly.training.fit", "anomaly.export.model_file"]}.get(manifest["extra"], [])
    for name in ["anomaly.commands.score", "anomaly.commands.serve", *names]:
        try:
            importlib.import_module(name)
        except Exception as error:  # a broken package may raise anything
            faults.append(f"{name} cannot be imported: {error}")
    if faults:
        return faults
    from anomaly.errors import AnomalyError
    from anomaly.inference.scorer import OnnxScorer

    for model in manifest["models"]:
        try:
            scorer = OnnxScorer(here / model["file"], device="cpu", num_threads=0)
            print(f"{model['file']}: {scorer.metadata.detector}, golden image scores as at export on {scorer.provider}")
        except AnomalyError as error:
            faults.append(str(error))
    for weights in manifest["weights"]:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(here / weights["file"], framework="numpy") as opened:
                print(f"{weights['file']}: {len(opened.keys())} tensors, {weights['source']}, {weights['licence']}")
        except (SafetensorError, OSError) as error:
            faults.append(f"{weights['file']} cannot be opened: {error}")
    return faults


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
