"""The run card of a command as one JSON file: options, hardware, versions, seconds and results."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from anomaly.system.files import write_json
from anomaly.system.processors import num_cpus
from anomaly.system.version import VERSION

_PACKAGES = (
    "numpy",
    "opencv-python-headless",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxscript",
    "torch",
    "pytorch-lightning",
    "timm",
    "scikit-learn",
)


def versions() -> dict[str, str]:
    """Versions of Python, this package and the installed packages that affect results."""
    installed = {"python": platform.python_version(), "anomaly": VERSION}
    for name in _PACKAGES:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed


def commit() -> str | None:
    """Commit of the checkout that holds this package, with `+changes` for edited files; None outside a checkout."""
    file = Path(__file__).resolve()

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(file.parent), *arguments]
        return subprocess.run(command, capture_output=True, encoding="utf-8", check=True, timeout=10).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", file.name)  # fails for a package installed inside another checkout
        head, changed = git("rev-parse", "HEAD"), git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return head + ("+changes" if changed else "")


def hardware() -> dict[str, Any]:
    """Name and number of the processors, the system, and the GPU where torch is loaded and finds one."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
        lines = [line for line in text.splitlines() if line.startswith("model name")]
        name = lines[0].partition(":")[2].strip() if lines else name
    facts: dict[str, Any] = {"processor": name, "num_cpus": num_cpus(), "system": platform.platform()}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name(0)
    return facts


class RunCard:
    """Collects the facts of one run; `write` saves them beside the results.

    Args:
        verb: name of the command.
        config: resolved options, JSON values.
    """

    def __init__(self, verb: str, *, config: dict[str, Any]) -> None:
        self._begin = time.perf_counter()
        self.facts: dict[str, Any] = {
            "verb": verb,
            "config": config,
            "date": now(),
            "versions": versions(),
            "commit": commit(),
            "hardware": hardware(),
            "seconds": {},
        }

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Measure the seconds of a step."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.facts["seconds"][step] = round(time.perf_counter() - begin, 3)

    def write(self, path: Path) -> None:
        """Write the card; its `total` is the duration of the whole run in seconds."""
        self.facts["seconds"]["total"] = round(time.perf_counter() - self._begin, 3)
        write_json(path, self.facts)


def now() -> str:
    """Date and time in UTC as ISO 8601, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
