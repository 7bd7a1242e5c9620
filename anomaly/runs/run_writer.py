"""Write a run: commits that survive a crash, and one writing process.

A run that is killed at any moment resumes from its last commit. Commits follow a fixed number of images, at ends of
windows. An interrupted run therefore has the same rows, byte for byte, as an uninterrupted one.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import pyarrow as pa

from anomaly.conformal.drift import RECORD
from anomaly.errors import OutputError, UsageError
from anomaly.runs.run_files import (
    INPUTS,
    LEDGER,
    LISTED,
    LOCK,
    MANIFEST,
    MODELS,
    RECORDS,
    SUMMARY,
    hash_files,
    listed_images,
    read_inputs,
    read_ledger,
    run_options,
    whole_lines,
)
from anomaly.runs.sinks import Format, Sink, State, Values, open_sink
from anomaly.scoring.rows import Row, row_schema, row_values
from anomaly.scoring.sources import Item, Source
from anomaly.system.files import atomic_write, sync_file, sync_folder, write_json
from anomaly.system.run_card import commit, hardware, now, versions


class RunWriter:
    """A run on the disk, open for writing by one process.

    Args:
        folder: folder of the run, new or unfinished.
        options: all options that determine the rows, JSON values; a resumed run needs equal options.
        resume: whether an unfinished run is continued.

    Raises:
        UsageError: a finished run; an unfinished run without `resume` or with other options; a folder with other files; a
            second writing process.
        OutputError: the folder cannot be written.
    """

    def __init__(self, folder: Path, *, options: Mapping[str, Any], resume: bool) -> None:
        self.folder = folder
        self._options = json.loads(json.dumps(options, default=str))
        with _write_errors(self.folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = (folder / LOCK).open("wb")
        _lock(self._lock, folder)
        self.done = 0
        """Number of images with a committed row"""
        self._state: State = {}
        self._sink: Sink | None = None
        self._growing: BinaryIO | None = None
        self._to_sync: list[Path] = []
        self._rows: list[Values] = []
        self._new_records: list[bytes] = []
        self._records: BinaryIO = io.BytesIO()
        self._ledger: BinaryIO = io.BytesIO()
        try:
            self._begin(resume=resume)
        except BaseException:
            self._ledger.close()
            self._lock.close()
            raise

    def _begin(self, *, resume: bool) -> None:
        if (self.folder / MANIFEST).exists():
            raise UsageError(f"{self.folder} holds a finished run: name another folder, or run `anomaly replay`")
        entries = read_ledger(self.folder)
        if not entries:
            if any(entry.name != LOCK for entry in self.folder.iterdir() if entry.name != LEDGER):
                raise UsageError(f"{self.folder} is not empty and holds no run: name another folder")
            self.is_new = True
        else:
            if not resume:
                raise UsageError(
                    f"{self.folder} holds an unfinished run of {entries[0]['date']}: give --resume, or another folder"
                )
            before, now_given = run_options(entries), self._options
            changed = [name for name in {**before, **now_given} if before.get(name) != now_given.get(name)]
            if changed:
                changes = ", ".join(
                    f"{name} ({before.get(name)!r}, now {now_given.get(name)!r})" for name in sorted(changed)
                )
                raise UsageError(
                    f"the run in {self.folder} began with another {changes}: give the same options to resume"
                )
            self.is_new = not any(entry["event"] == LISTED for entry in entries)
        for stale in (*self.folder.rglob("*.partial"), *self.folder.rglob(".*.part")):  # of a crashed process
            stale.unlink()
        self._ledger = (self.folder / LEDGER).open("ab" if entries else "wb")
        if entries:
            self._ledger.truncate(whole_lines(self.folder / LEDGER))
        for entry in entries:
            if entry["event"] == "commit":
                self.done, self._state = entry["done"], entry["sink"]
        self.note(
            "begin" if not entries else "resume",
            asked=self._options,
            done=self.done,
            versions=versions(),
            commit=commit(),
            host=hardware(),
        )

    def note(self, event: str, **facts: Any) -> None:
        """Append a line to the ledger and flush it to the disk."""
        line = json.dumps({"event": event, "date": now(), **facts}, default=str) + "\n"
        with _write_errors(self.folder):
            self._ledger.write(line.encode())
            self._ledger.flush()
            os.fsync(self._ledger.fileno())

    def keep_models(self, models: Mapping[str, Path]) -> dict[str, Path]:
        """Copy the models into the run, unless a copy exists.

        Args:
            models: product -> model file.

        Returns:
            Product -> its copy.

        Raises:
            OutputError: a copy cannot be written.
        """
        copies = {}
        with _write_errors(self.folder):
            (self.folder / MODELS).mkdir(exist_ok=True)
            for number, (product, model) in enumerate(sorted(models.items())):
                copies[product] = self.folder / MODELS / f"{number:02d}_{model.name}"
                if not copies[product].exists():
                    with atomic_write(copies[product], durable=True) as partial:
                        partial.write_bytes(model.read_bytes())
        return copies

    def keep_inputs(self, source: Source) -> None:
        """Write the list of images; later changes of the source have no effect.

        Raises:
            OutputError: the list cannot be written.
        """
        num = 0
        with (
            _write_errors(self.folder),
            atomic_write(self.folder / INPUTS, durable=True) as partial,
            partial.open("w", encoding="ascii") as file,
        ):
            for item in source.items:
                file.write(json.dumps(vars(item)) + "\n")
                num += 1
        extra = [(column.name, str(column.type)) for column in source.extra]
        self.note(LISTED, num=num, extra=extra, has_parts=source.has_parts)

    def begin_watch(self) -> None:
        """Begin an empty list that grows by `list_input`."""
        with _write_errors(self.folder):
            (self.folder / INPUTS).touch()
            sync_folder(self.folder)
        self.note(LISTED, num=0, extra=[], has_parts=False)

    def list_input(self, item: Item) -> None:
        """Append an image to the list and flush it to the disk; a truncated last line is removed first."""
        path = self.folder / INPUTS
        with _write_errors(self.folder):
            if self._growing is None:
                self._growing = path.open("r+b")
                self._growing.truncate(whole_lines(path))
                self._growing.seek(0, os.SEEK_END)
            self._growing.write((json.dumps(vars(item)) + "\n").encode("ascii"))
            self._growing.flush()
            os.fsync(self._growing.fileno())

    def remaining(self) -> Iterator[Item]:
        """Iterate over the images without a committed row."""
        return islice(read_inputs(self.folder), self.done, None)

    def listed(self) -> dict[str, Any]:
        """Entry of the ledger on the list of images: its length, and the further columns."""
        return listed_images(read_ledger(self.folder))

    def open_rows(self, kind: Format) -> None:
        """Open the rows after the last commit."""
        extra = pa.schema([(name, pa.type_for_alias(alias)) for name, alias in self.listed()["extra"]])
        with _write_errors(self.folder):
            self._sink = open_sink(self.folder, kind=kind, schema=row_schema(extra), state=self._state)
            records = self.folder / RECORDS
            self._records = records.open("r+b" if records.exists() else "wb")
            self._records.truncate(RECORD.size * self.done)
            self._records.seek(0, os.SEEK_END)

    def add(self, row: Row, *, record: bytes, pictures: Sequence[Path]) -> None:
        """Add the row of the next image, its record for the drift monitor, and its map and overlay files."""
        self._rows.append(row_values(row))
        self._new_records.append(record)
        self._to_sync += pictures

    def commit(self, *, seconds: Mapping[str, float]) -> None:
        """Flush all added rows to the disk.

        Args:
            seconds: stage -> seconds so far, for the ledger.

        Raises:
            OutputError: the disk is full or missing; the run can resume from the previous commit.
        """
        assert self._sink is not None
        with _write_errors(self.folder):
            self._sink.append(self._rows)
            for picture in self._to_sync:
                sync_file(picture)
            self._records.writelines(self._new_records)
            self._records.flush()
            os.fsync(self._records.fileno())
            state = self._sink.commit()
        self.done += len(self._rows)
        self._rows, self._new_records, self._to_sync = [], [], []
        self.note("commit", done=self.done, sink=state, seconds={k: round(v, 3) for k, v in seconds.items()})
        self._sink.committed(state)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Close the rows, write the summary and, last, the manifest.

        Raises:
            OutputError: the disk is full or missing; the run can still be resumed.
        """
        assert self._sink is not None
        with _write_errors(self.folder):
            self._sink.close()
            self._records.close()
            write_json(self.folder / SUMMARY, dict(summary))
            self.note("end", num=self.done)
            self._ledger.close()
            write_json(self.folder / MANIFEST, {"files": hash_files(self.folder), "date": now()})
            sync_file(self.folder / MANIFEST)
            sync_folder(self.folder)
            self._sink.clean()

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._sink is not None and error is not None:
            self._sink.abandon()
        if self._growing is not None:
            self._growing.close()
        with suppress(OSError):
            self._records.close()
        self._ledger.close()
        self._lock.close()


@contextmanager
def _write_errors(folder: Path) -> Iterator[None]:
    """Turn every failed write into an `OutputError` that names the run and the way to resume it."""
    try:
        yield
    except (OSError, OutputError) as error:
        reason = error.__cause__ if isinstance(error, OutputError) else error
        if not isinstance(reason, OSError):
            raise
        raise OutputError(
            f"the run in {folder} cannot be written ({reason.strerror}); free or repair the disk, then give --resume"
        ) from reason


def _lock(file: BinaryIO, folder: Path) -> None:
    """Lock the folder; the system releases the lock when the process ends."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise UsageError(f"another process writes to {folder}: wait for it, or name another folder") from error
