"""Paths given by a caller: type checks, and folders that must exist."""

from __future__ import annotations

from pathlib import Path

from anomaly.errors import DataError, UsageError
from anomaly.system.files import as_path


def path_argument(value: str | Path, *, name: str) -> Path:
    """Convert a path argument; an empty string is not the working directory.

    Args:
        value: path given by the caller.
        name: name of the argument, for messages.

    Raises:
        UsageError: neither a string nor a path, or an empty string.
    """
    if value == "":
        raise UsageError(f"{name} is empty; give a path")
    return as_path(value, name=name)


def folder_argument(value: str | Path, *, name: str, way_out: str) -> Path:
    """Convert a path argument that names an existing folder.

    Args:
        value: path given by the caller.
        name: name of the argument, for messages.
        way_out: end of the message: what to give instead.

    Raises:
        UsageError: neither a string nor a path, or an empty string.
        DataError: a missing folder, or a file.
    """
    path = path_argument(value, name=name)
    if not path.is_dir():
        raise DataError(f"{path} {'is a file' if path.exists() else 'does not exist'}; {way_out}")
    return path
