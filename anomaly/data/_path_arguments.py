"""Paths given by a caller: type checks, and folders that must exist."""

from __future__ import annotations

import os
from pathlib import Path

from anomaly.errors import DataError, UsageError


def path_argument(value: object, *, name: str) -> Path:
    """Convert a path argument.

    Args:
        value: path given by the caller.
        name: name of the argument, for messages.

    Raises:
        UsageError: neither a string nor a path, or an empty string.
    """
    if isinstance(value, bytes) or not isinstance(value, (str, os.PathLike)):
        raise UsageError(f"{name} is {value!r:.60} of type {type(value).__name__}; give a path as str or Path")
    if not os.fspath(value):
        raise UsageError(f"{name} is empty; give a path")
    return Path(value)


def folder_argument(value: object, *, name: str, way_out: str) -> Path:
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
