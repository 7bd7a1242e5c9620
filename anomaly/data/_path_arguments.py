"""Folders given by a caller."""

from __future__ import annotations

from pathlib import Path

from anomaly.errors import DataError
from anomaly.system.files import as_path


def folder_argument(value: str | Path, *, name: str, way_out: str) -> Path:
    """Convert a path argument that names an existing folder.

    Args:
        value: path given by the caller.
        name: name of the argument, for messages.
        way_out: end of the message, with the valid arguments.

    Raises:
        UsageError: neither a string nor a path, or an empty string.
        DataError: a missing folder, or a file.
    """
    path = as_path(value, name=name)
    if not path.is_dir():
        raise DataError(f"{path} {'is a file' if path.exists() else 'does not exist'}; {way_out}")
    return path
