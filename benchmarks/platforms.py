"""Platforms of the serving packages: their verbs under other Pythons and processors, and the availability of wheels.

    python -m benchmarks.platforms MODEL.onnx... --category FOLDER --out benchmarks/results/platforms.json
        --python 'x86-64 3.10=/venv310/bin/python' --python 'aarch64 3.11=qemu-aarch64 … python3.11' [--uv uv]

Each command is a Python with the serving packages. It scores the test images of a category (MVTec layout) through every
model and replays the run. It also calibrates, inspects, evaluates, deploys and serves. Its rows are compared with those of
this Python.
`resolved` is true if every package has a wheel for the platform in the exact version of constraints.txt. `uv pip compile`
finds it without an installation. Each result is written at once, and the results in the file are not measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from anomaly.inference.difference import relative_difference
from anomaly.system.run_card import RunCard
from benchmarks.command_line import command

ROOT = Path(__file__).resolve().parent.parent
PLATFORMS = {
    "Linux x86-64": "x86_64-manylinux_2_28",
    "Linux aarch64": "aarch64-manylinux_2_28",
    "Windows x86-64": "x86_64-pc-windows-msvc",
    "macOS arm64": "aarch64-apple-darwin",
}
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
EXTRAS = ("serve-cpu", "serve-gpu")
PROBE = """
import importlib.metadata
import json
import os
import platform
import runpy
import signal
import socket
import sys
import threading
import time
import urllib.request
from pathlib import Path

model, category, out = sys.argv[1:]
device, verdict = ["--device", "cpu"], {}
free = socket.create_server(("127.0.0.1", 0))
port = free.getsockname()[1]
free.close()


def run(arguments):
    sys.argv = ["anomaly", *arguments]
    try:
        runpy.run_module("anomaly", run_name="__main__")
    except SystemExit as end:
        return end.code
    return 0


def request():
    image = next(iter(sorted(Path(category, "test").rglob("*.png")))).read_bytes()
    for _ in range(600):
        time.sleep(0.1)
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/score", data=image, timeout=60) as response:
                verdict.update(json.load(response))
                break
        except OSError:
            pass
    os.kill(os.getpid(), signal.SIGTERM)


codes = {
    "score": run(["score", model, f"{category}/test", "--run", f"{out}/run", "--format", "jsonl", *device]),
    "replay": run(["replay", f"{out}/run", *device]),
    "overlays": run(["score", model, f"{category}/test", "--out", f"{out}/a.parquet", "--overlays", f"{out}/drawn", *device]),
    "calibrate": run(["calibrate", model, f"{category}/train/good", "--out", f"{out}/new.onnx"]),
    "inspect": run(["inspect", category]),
    "evaluate": run(["evaluate", model, category, "--out", f"{out}/figures.json", *device]),
    "deploy": run(["deploy", "triton", model, f"{out}/repository", "--name", "part"]),
}
threading.Thread(target=request, daemon=True).start()
codes["serve"] = run(["serve", model, "--port", str(port), *device])
assert verdict["status"] == "ok"
versions = {name: importlib.metadata.version(name) for name in ("numpy", "onnxruntime", "opencv-python-headless", "pyarrow")}
print(json.dumps({
    "codes": codes, "machine": platform.machine(), "python": platform.python_version(), "versions": versions,
}))
"""


def score_here(model: Path, category: Path, out: Path) -> list[dict[str, Any]]:
    """Score under this Python, and return the rows."""
    score = command("score", model, f"{category}/test", "--out", out, "--device", "cpu")
    subprocess.run(score, check=True, cwd=ROOT, stderr=subprocess.DEVNULL)
    return read_rows(out)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read a table of JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def compare(here: list[dict[str, Any]], there: list[dict[str, Any]]) -> dict[str, Any]:
    """Measure the largest difference of scores, and count changed verdicts and images with changed regions."""
    score = [np.array([row["score"] for row in rows]) for rows in (here, there)]
    both = list(zip(here, there, strict=True))
    placed = [[{**region, "peak": 0} for region in row["regions"]] for rows in both for row in rows]
    return {
        "num_images": len(here),
        "score_difference": float(relative_difference(*score).max()),
        "verdicts_flipped": sum(a["verdict"] != b["verdict"] for a, b in both),
        "regions_moved": sum(a != b for a, b in zip(placed[::2], placed[1::2], strict=True)),
    }


def probe(python: list[str], model: Path, category: Path, here: list[dict[str, Any]]) -> dict[str, Any]:
    """Run the verbs under another Python and compare its rows."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        done = subprocess.run(
            [*python, "-c", PROBE, str(model), str(category), folder],
            capture_output=True, encoding="utf-8", check=False, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(f"{shlex.join(python)} failed:\n{done.stderr}")
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        failed = {verb: code for verb, code in result.pop("codes").items() if code}
        result |= {"verbs_failed": failed, "seconds": round(time.perf_counter() - start, 1)}
        return result | compare(here, read_rows(Path(folder) / "run" / "rows.jsonl"))


def resolve(uv: str, *, platform: str, python: str, extra: str) -> dict[str, Any]:
    """Find out whether every package of an extra has a wheel for a platform."""
    target = [
        "--python-version",
        python,
        "--python-platform",
        PLATFORMS[platform],
        "--only-binary",
        ":all:",
        "--no-annotate",
    ]
    done = subprocess.run(
        [uv, "pip", "compile", "--quiet", "--no-header", *target, "--extra", extra, "-c", "constraints.txt", "pyproject.toml"],
        capture_output=True, encoding="utf-8", check=False, cwd=ROOT,
    )  # fmt: skip
    packages = done.stdout.split()
    runtime = next((name for name in packages if name.startswith("onnxruntime")), "")
    found = {"platform": platform, "python": python, "extra": extra, "num_packages": len(packages), "runtime": runtime}
    return found | ({"missing": " ".join(done.stderr.split())} if done.returncode else {})


def main() -> None:
    """Probe the Pythons, resolve the wheels, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--category", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--python", action="append", default=[], help="another Python, as NAME=COMMAND")
    parser.add_argument("--uv", default="uv")
    arguments = parser.parse_args()
    card = RunCard(
        "benchmarks/platforms.py", config={"category": arguments.category.name, "num_models": len(arguments.models)}
    )
    kept = json.loads(arguments.out.read_text(encoding="utf-8"))["result"] if arguments.out.exists() else {}
    ran: dict[str, dict[str, Any]] = kept.get("run", {})
    for model in arguments.models:
        missing = [named for named in arguments.python if f"{named.partition('=')[0]}, {model.stem}" not in ran]
        if not missing:
            continue
        with tempfile.TemporaryDirectory() as folder:
            here = score_here(model.resolve(), arguments.category.resolve(), Path(folder) / "rows.jsonl")
        for named in missing:
            name, _, python = named.partition("=")
            ran[f"{name}, {model.stem}"] = probe(
                shlex.split(python), model.resolve(), arguments.category.resolve(), here
            )
            card.facts["result"] = kept | {"run": ran}
            card.write(arguments.out)
    resolved = [
        resolve(arguments.uv, platform=platform, python=python, extra=extra)
        for platform in PLATFORMS
        for python in PYTHONS
        for extra in EXTRAS
    ]
    card.facts["result"] = {"run": ran, "resolved": resolved}
    card.write(arguments.out)


if __name__ == "__main__":
    main()
