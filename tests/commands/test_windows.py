"""Serving without the modules and functions that are missing on Windows, removed in a child process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from anomaly.scoring.overlays import overlay_name
from anomaly.scoring.sources import Item

SCRIPT = """
import io
import json
import os
import sys
import types
import warnings

# other packages keep their imports of this system
import cv2, jsonargparse, numpy, onnx, onnxruntime, prometheus_client, pyarrow.fs, pyarrow.parquet, rich.console, rich.progress
import concurrent.futures, multiprocessing, python_multipart, socketserver, starlette.applications, subprocess, uvicorn, yaml

assert not [name for name in sys.modules if name.partition(".")[0] == "anomaly"]
for name in ("fcntl", "grp", "posix", "pwd", "resource", "termios"):
    sys.modules[name] = None
for name in ("sched_getaffinity", "getuid", "geteuid", "fork", "uname", "getloadavg", "mkfifo", "killpg", "statvfs"):
    delattr(os, name)
locks = []


def locking(handle, mode, num):
    locks.append((mode, num, os.fstat(handle).st_size))
    if len(locks) > 2:
        raise OSError(13, "Permission denied")


sys.modules["msvcrt"] = types.SimpleNamespace(locking=locking, LK_NBLCK=2)
sys.platform = "win32"
warnings.filterwarnings("error", category=EncodingWarning, module=r"anomaly\\b")

from anomaly.commands import main as cli
from anomaly.runs import merge
from anomaly.scoring import folder_watch
from anomaly.commands import serve
from anomaly.deployment import triton

model, images, archive, good, out = sys.argv[1:]
scoring = ["score", model, "--device", "cpu"]
codes = [
    cli.run([*scoring, archive, "--run", f"{out}/run", "--maps", "true", "--format", "jsonl"]),
    cli.run([*scoring, images, "--run", f"{out}/second"]),
    cli.run([*scoring, images, "--run", f"{out}/third"]),
    cli.run(["replay", f"{out}/run", "--device", "cpu"]),
    cli.run([*scoring, images, "--out", f"{out}/rows.csv", "--overlays", f"{out}/overlays", "--overlays_of", "all"]),
    cli.run(["calibrate", model, good, "--out", f"{out}/new.onnx"]),
    cli.run(["inspect", good]),
    cli.run(["deploy", "triton", model, f"{out}/repository", "--name", "plate"]),
    cli.run(["serve", f"{out}/none.onnx"]),
]
print(json.dumps({"codes": codes, "locks": locks}))
"""


@pytest.mark.slow
def test_serving_runs_without_the_modules_missing_on_windows(
    model: Path, category: Path, fresh_good: Path, tmp_path: Path
) -> None:
    archive, out = tmp_path / "shift.tar", tmp_path / "out"
    with tarfile.open(archive, "w") as written:
        for name in ("000.png", "001.png"):
            written.add(category / "test" / "scratch" / name, arcname=name)
    # a western European console; opening a text file without an encoding is an error
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252:strict", "PYTHONWARNDEFAULTENCODING": "1"}
    arguments = [str(path) for path in (model, category / "test", archive, fresh_good, out)]
    finished = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments], capture_output=True, check=False, env=environment, cwd=tmp_path
    )
    errors = finished.stderr.decode("cp1252")
    assert finished.returncode == 0, errors
    result = json.loads(finished.stdout.decode("cp1252").splitlines()[-1])
    assert result["codes"] == [0, 0, 2, 0, 0, 0, 0, 0, 1], errors
    assert (
        result["locks"][:2] == [[2, 1, 0]] * 2
    )  # a run locks its folder; a folder locked by another process is refused
    assert f"another process writes to {out}/third" in errors
    names = [path.name for path in (out / "run" / "overlays").iterdir()]
    assert sorted(names) == ["000000_shift.tar__000.png", "000001_shift.tar__001.png"]


def test_overlay_name_is_valid_on_every_system() -> None:
    assert overlay_name(3, Item('day/a:b?c*"<d>|e\\f\n.png')) == "000003_a_b_c___d__e_f_.png"
    assert overlay_name(3, Item("day/größe 1.tar::x.PNG")) == "000003_größe 1.tar__x.png"
