"""Check paths, write files whole or not at all, flush them to the disk, and hash them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from anomaly.errors import OutputError, UsageError

CHUNK = 2**20
MAX_PATH_BYTES = 4096
"""Longest path of the systems in use"""


def as_path(path: object, *, name: str) -> Path:
    """Check a path argument. An empty string is not the working directory.

    Args:
        path: value to check.
        name: name of the argument, for the message.

    Raises:
        UsageError: the value is neither a string nor a path, or it is an empty string.
    """
    if not isinstance(path, (str, os.PathLike)):
        value = " ".join(repr(path).split())
        raise UsageError(f"{name} is {type(path).__name__} {value:.60}: give a path as str or pathlib.Path")
    text = os.fspath(path)
    if not isinstance(text, str):
        raise UsageError(f"{name} is a path of bytes, {text!r:.60}: give a path as str or pathlib.Path")
    if text == "":
        raise UsageError(f"{name} is empty; give a path")
    return Path(text)


def usable_path(path: object, *, name: str) -> Path:
    """Check a path argument as `as_path`, and that a system can take it.

    Raises:
        UsageError: as `as_path`; a null character, or more than `MAX_PATH_BYTES` bytes.
    """
    checked = as_path(path, name=name)
    if "\0" in str(checked) or len(os.fsencode(checked)) > MAX_PATH_BYTES:
        shown = f"{str(checked)!r:.60}"
        raise UsageError(f"{name} is {shown}: give a path without null characters, at most {MAX_PATH_BYTES} bytes long")
    return checked


@contextmanager
def atomic_write(path: str | Path, *, durable: bool = False) -> Iterator[Path]:
    """Write a file whole or not at all, through a temporary path beside it.

    The block writes to the yielded path. At the end of the block this file replaces `path`; a failed block removes it.
    Missing folders are created.

    Args:
        path: file to write.
        durable: whether the file and its folder entry are flushed to the disk.

    Raises:
        OutputError: the file cannot be written.
    """
    path = as_path(path, name="path")
    partial = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        if durable:
            sync_file(partial)
        partial.replace(path)
        if durable:
            sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise OutputError(f"{path} cannot be written: {error.strerror or error}; choose another place") from error
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise


class TemporaryFolder:
    """A folder that is removed with the object, or at the end of the process."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="anomaly-"))
        self._remove = weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


def write_json(path: str | Path, value: Any) -> None:
    """Write a JSON file whole or not at all.

    Args:
        path: file to write.
        value: JSON value; objects of other types are written as their text.

    Raises:
        OutputError: the file cannot be written.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n"
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")  # file names may hold invalid text


def sha256_of(path: str | Path) -> str:
    """Hash a file; the SHA-256 in hexadecimal."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def sync_file(path: Path) -> None:
    """Flush a closed file to the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Flush the entries of a folder to the disk; does nothing outside POSIX."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
