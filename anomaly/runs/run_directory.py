"""The directory of one scoring run: what was asked, a copy of the model, the list of images, the rows, and the proof of both.

    ledger.jsonl     what was asked, versions and host; a line for every commit, with what is safe by then; the end
    models/          a copy of every model, so that a file replaced later changes nothing
    inputs.jsonl     the images, listed once when the run began
    rows.csv | rows.jsonl | rows/part-00000.parquet …
    overlays/, maps/ where asked for
    drift.bin        score and image statistics of every image, from which the drift watch goes on
    parts.csv        a verdict for each part, where the table of images has a column `part`
    summary.json     counts of the finished run
    manifest.json    SHA-256 of every file above, written last: a run with a manifest is finished

A run that is killed at any moment goes on from its last commit. Commits lie at fixed numbers of images, at ends of windows,
so the rows of a run that was interrupted are those, byte for byte, of one that was not.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import pyarrow as pa

from anomaly.conformal.drift import RECORD
from anomaly.errors import DataError, OutputError, UsageError
from anomaly.runs.sinks import Format, Sink, State, Values, open_sink
from anomaly.scoring.rows import Row, row_schema, row_values
from anomaly.scoring.sources import Item, Source
from anomaly.system.files import atomic_write, sha256_of, sync_file, sync_folder, write_json
from anomaly.system.run_card import commit, hardware, now, versions

LEDGER, INPUTS, MANIFEST, SUMMARY, LOCK = "ledger.jsonl", "inputs.jsonl", "manifest.json", "summary.json", ".lock"
RECORDS = "drift.bin"
MODELS, OVERLAYS, MAPS = "models", "overlays", "maps"
LISTED = "listed"
CHUNK = 2**20


class RunDirectory:
    """A scoring run on disk, open for writing by one process.

    Args:
        folder: of the run, new or unfinished.
        asked: everything that decides the rows, JSON values; a run goes on only under what it was begun with.
        resume: go on with an unfinished run.

    Raises:
        UsageError: a finished run, an unfinished one without `resume` or under other options, nothing to resume, or another
            process that writes here.
        OutputError: the folder cannot be written.
    """

    def __init__(self, folder: Path, *, asked: Mapping[str, Any], resume: bool) -> None:
        self.folder = folder
        self._asked = json.loads(json.dumps(asked, default=str))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = (folder / LOCK).open("wb")
        except OSError as error:
            raise self._failure(error) from error
        _lock(self._lock, folder)
        self.done = 0
        """Images whose rows are safe"""
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
            raise UsageError(f"{self.folder} holds a finished run: name another folder, or `anomaly replay` it")
        entries = read_ledger(self.folder)
        if not entries:
            if any(entry.name != LOCK for entry in self.folder.iterdir() if entry.name != LEDGER):
                raise UsageError(f"{self.folder} is not empty and holds no run: name another folder")
            self.is_new = True
        else:
            if not resume:
                raise UsageError(
                    f"{self.folder} holds an unfinished run of {entries[0]['date']}: go on with --resume, or name another"
                )
            begun = entries[0]["asked"]
            moved = [name for name in {**begun, **self._asked} if begun.get(name) != self._asked.get(name)]
            if moved:
                told = ", ".join(
                    f"{name} ({begun.get(name)!r}, now {self._asked.get(name)!r})" for name in sorted(moved)
                )
                raise UsageError(f"the run in {self.folder} was begun with another {told}: ask for the same to go on")
            self.is_new = not any(entry["event"] == LISTED for entry in entries)
        for stale in (*self.folder.rglob("*.partial"), *self.folder.rglob(".*.part")):  # of a process that was lost
            stale.unlink()
        self._ledger = (self.folder / LEDGER).open("ab" if entries else "wb")
        if entries:
            self._ledger.truncate(_whole_lines(self.folder / LEDGER))
        for entry in entries:
            if entry["event"] == "commit":
                self.done, self._state = entry["done"], entry["sink"]
        self.note(
            "begin" if not entries else "resume",
            asked=self._asked,
            done=self.done,
            versions=versions(),
            commit=commit(),
            host=hardware(),
        )

    def note(self, event: str, **facts: Any) -> None:
        """Write a line into the ledger, safe on the disk before this returns."""
        line = json.dumps({"event": event, "date": now(), **facts}, default=str) + "\n"
        try:
            self._ledger.write(line.encode())
            self._ledger.flush()
            os.fsync(self._ledger.fileno())
        except OSError as error:
            raise self._failure(error) from error

    def keep_models(self, models: Mapping[str, Path]) -> dict[str, Path]:
        """Copy models into the run, where that was not done; gives product -> its copy.

        Raises:
            OutputError: a copy cannot be written.
        """
        copies = {}
        try:
            (self.folder / MODELS).mkdir(exist_ok=True)
            for number, (product, model) in enumerate(sorted(models.items())):
                copies[product] = self.folder / MODELS / f"{number:02d}_{model.name}"
                if not copies[product].exists():
                    with atomic_write(copies[product], durable=True) as partial:
                        partial.write_bytes(model.read_bytes())
        except OSError as error:
            raise self._failure(error) from error
        return copies

    def keep_inputs(self, source: Source) -> None:
        """Write down the images of the run; what the source says later counts no more.

        Raises:
            OutputError: the list cannot be written.
        """
        num = 0
        with (
            atomic_write(self.folder / INPUTS, durable=True) as partial,
            partial.open("w", encoding="ascii") as file,
        ):
            for item in source.items:
                file.write(json.dumps(vars(item)) + "\n")
                num += 1
        extra = [(column.name, str(column.type)) for column in source.extra]
        self.note(LISTED, num=num, extra=extra, has_parts=source.has_parts)

    def begin_watch(self) -> None:
        """Begin a list that grows by `list_input`."""
        (self.folder / INPUTS).touch()
        sync_folder(self.folder)
        self.note(LISTED, num=0, extra=[], has_parts=False)

    def list_input(self, item: Item) -> None:
        """Add an image to the list, safe on the disk before its row is; a line cut short by a lost process is taken off."""
        path = self.folder / INPUTS
        try:
            if self._growing is None:
                self._growing = path.open("r+b")
                self._growing.truncate(_whole_lines(path))
                self._growing.seek(0, os.SEEK_END)
            self._growing.write((json.dumps(vars(item)) + "\n").encode("ascii"))
            self._growing.flush()
            os.fsync(self._growing.fileno())
        except OSError as error:
            raise self._failure(error) from error

    def remaining(self) -> Iterator[Item]:
        """Go through the images that have no safe row yet."""
        return islice(read_inputs(self.folder), self.done, None)

    def listed(self) -> dict[str, Any]:
        """Give what was noted of the list: its length, and the columns that pass through."""
        return next(entry for entry in read_ledger(self.folder) if entry["event"] == LISTED)

    def open_rows(self, kind: Format) -> None:
        """Open the rows where they stopped."""
        extra = pa.schema([(name, pa.type_for_alias(alias)) for name, alias in self.listed()["extra"]])
        try:
            self._sink = open_sink(self.folder, kind=kind, schema=row_schema(extra), state=self._state)
            records = self.folder / RECORDS
            self._records = records.open("r+b" if records.exists() else "wb")
            self._records.truncate(RECORD.size * self.done)
            self._records.seek(0, os.SEEK_END)
        except OSError as error:
            raise self._failure(error) from error

    def add(self, row: Row, *, record: bytes, pictures: Sequence[Path]) -> None:
        """Take the row of the next image, its record for the drift watch, and the pictures that were written for it."""
        self._rows.append(row_values(row))
        self._new_records.append(record)
        self._to_sync += pictures

    def commit(self, *, seconds: Mapping[str, float]) -> None:
        """Make the rows taken so far safe.

        Raises:
            OutputError: the disk is full or gone; the run goes on from the commit before.
        """
        assert self._sink is not None
        try:
            self._sink.append(self._rows)
            for picture in self._to_sync:
                sync_file(picture)
            self._records.writelines(self._new_records)
            self._records.flush()
            os.fsync(self._records.fileno())
            state = self._sink.commit()
        except OSError as error:
            raise self._failure(error) from error
        self.done += len(self._rows)
        self._rows, self._new_records, self._to_sync = [], [], []
        self.note("commit", done=self.done, sink=state, seconds={k: round(v, 3) for k, v in seconds.items()})
        self._sink.committed(state)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Close the rows, write the summary and, last, the manifest.

        Raises:
            OutputError: the disk is full or gone; the run can still go on.
        """
        assert self._sink is not None
        try:
            self._sink.close()
            self._records.close()
            write_json(self.folder / SUMMARY, dict(summary))
            self.note("end", num=self.done)
            self._ledger.close()
            write_json(self.folder / MANIFEST, {"files": hash_files(self.folder), "date": now()})
            sync_file(self.folder / MANIFEST)
            sync_folder(self.folder)
            self._sink.clean()
        except OSError as error:
            raise self._failure(error) from error

    def _failure(self, error: OSError) -> OutputError:
        return OutputError(
            f"the run in {self.folder} cannot be written ({error.strerror}); make room or repair it, then go on with --resume"
        )

    def __enter__(self) -> RunDirectory:
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


def read_ledger(folder: Path) -> list[dict[str, Any]]:
    """Read the ledger's whole lines; a last line that was cut short counts as never written."""
    path = folder / LEDGER
    if not path.exists():
        return []
    lines = path.read_bytes()[: _whole_lines(path)].splitlines()
    return [json.loads(line) for line in lines]


def _whole_lines(path: Path) -> int:
    data = path.read_bytes()
    return data.rfind(b"\n") + 1


def read_inputs(folder: Path) -> Iterator[Item]:
    """Go through the images that a run was begun with."""
    with (folder / INPUTS).open(encoding="ascii") as file:
        for line in file:
            if not line.endswith("\n"):  # cut short when a watching process was lost
                return
            values = json.loads(line)
            yield Item(**(values | {"place": tuple(values["place"])}))


def check_manifest(folder: Path) -> None:
    """Refuse a run whose files are not those that its manifest proves.

    Raises:
        DataError: no finished run, or the first file that is missing, changed or added.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise DataError(
            f"{folder} holds no finished run: it has no {MANIFEST}; go on with it by `anomaly score --resume`"
        )
    stated: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))["files"]
    found = hash_files(folder)
    for name in sorted({*stated, *found}):
        if name not in found:
            raise DataError(f"{folder / name} is missing: the run's manifest lists it; bring it back from a copy")
        if name not in stated:
            raise DataError(f"{folder / name} is not in the run's manifest: it was added later; take it out")
        if stated[name] != found[name]:
            raise DataError(f"{folder / name} was changed: its SHA-256 is not the one of the manifest; use a true copy")


def hash_files(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a run by its name within it, without the manifest and what is hidden."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != MANIFEST and not path.name.startswith(".") and not name.endswith(".partial"):
            found[name] = sha256_of(path)
    return found


def _lock(file: BinaryIO, folder: Path) -> None:
    """Hold the folder alone; the system lets go when the process ends, however it ends."""
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
