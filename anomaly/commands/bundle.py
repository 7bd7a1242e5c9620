"""The verb `bundle`: a folder that installs, fits and scores on a machine without a network."""

from __future__ import annotations

from pathlib import Path

from anomaly.deployment.bundle import bundle

__all__ = ["bundle", "show"]


def show(folder: Path) -> None:
    """Print the size of the bundle and the next command."""
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder}: {size / 2**20:.0f} MiB; on the other machine: sh install.sh VENV (see README.txt)")
