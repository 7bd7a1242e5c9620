"""The command line in a separate process, for measurements of whole commands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_CHILD = """
import resource, subprocess, sys
code = subprocess.run([sys.executable, "-m", "anomaly", *sys.argv[1:]], stderr=subprocess.DEVNULL).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""


def command(verb: str, *arguments: str | Path) -> list[str]:
    """Command line of a verb under this Python."""
    return [sys.executable, "-m", "anomaly", verb, *map(str, arguments)]


def peak_mib(verb: str, *arguments: str | Path, check: bool = True) -> float:
    """Run a verb and return the largest resident memory of its process in MiB.

    Args:
        verb: verb of the command line.
        arguments: its arguments.
        check: whether an exit code other than 0 raises.
    """
    child = [sys.executable, "-c", _CHILD, verb, *map(str, arguments)]
    output = subprocess.run(child, capture_output=True, text=True, check=check).stdout
    per_mib = 1024 if sys.platform != "darwin" else 1024**2
    return int(output.split()[-1]) / per_mib
