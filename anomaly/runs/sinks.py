"""Result files that survive a lost process: appended to, committed, and cut back to the last commit when a run goes on.

A commit is durable: the bytes are on the disk (fsync) before the journal of the run says so. Equal rows give equal bytes,
however often a run was interrupted.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from anomaly.scoring.rows import csv_line, csv_row, json_row
from anomaly.system.files import atomic_write

Format = Literal["csv", "jsonl", "parquet"]
Values = dict[str, Any]
"""A row as plain values, see `row_values`"""
State = dict[str, int]
"""What a sink has committed; goes into the journal"""
PART_ROWS = 65536
"""Rows of a file of a Parquet data set"""
GROUP_ROWS = 4096
"""Rows of a row group"""


class Sink(Protocol):
    """Where a run's rows go."""

    def append(self, rows: Sequence[Values]) -> None:
        """Take rows; they are not safe before `commit`."""
        ...

    def commit(self) -> State:
        """Bring all rows to the disk."""
        ...

    def committed(self, state: State) -> None:
        """Clear what the journal's new state makes needless."""
        ...

    def close(self) -> None:
        """Finish the files; until `clean`, a run that is lost can still go on from its last commit."""
        ...

    def clean(self) -> None:
        """Take away what only a run that goes on would need."""
        ...

    def abandon(self) -> None:
        """Let go of the files as they are; the run goes on from its last commit."""
        ...


class TextSink:
    """Rows as text, one line each, in one file.

    Args:
        path: of the file.
        encode: a row's values as a line.
        head: the first line, empty for none.
        state: what was committed before; empty for a new file. What lies beyond it is cut off.
    """

    def __init__(self, path: Path, *, encode: Callable[[Values], str], head: str, state: State) -> None:
        self._encode = encode
        self._file: BinaryIO = path.open("r+b" if state else "wb")
        if state:
            self._file.truncate(state["bytes"])
            self._file.seek(state["bytes"])
        else:
            self._file.write(head.encode())

    def append(self, rows: Sequence[Values]) -> None:
        """Take rows; they are not safe before `commit`."""
        self._file.writelines(self._encode(row).encode() for row in rows)

    def commit(self) -> State:
        """Bring all rows to the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return {"bytes": self._file.tell()}

    def committed(self, state: State) -> None:
        """Nothing is needless."""

    def close(self) -> None:
        """Finish the file."""
        self._file.close()

    def clean(self) -> None:
        """Nothing but the file itself was written."""

    def abandon(self) -> None:
        """Let go of the file as it is."""
        with suppress(OSError):  # a full disk, which was told before
            self._file.close()


class ParquetSink:
    """Rows as a Parquet data set: `part-00000.parquet` … of `PART_ROWS` rows, each appearing whole.

    Rows that do not fill a part yet stand in a file of JSON lines beside it, which is gone when the run is closed.

    Args:
        folder: of the data set.
        schema: of the rows.
        state: what was committed before; empty for a new data set.
    """

    def __init__(self, folder: Path, *, schema: pa.Schema, state: State) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._schema = folder, schema
        self._waiting_file = folder / ".waiting.jsonl"
        self._num_parts = state.get("parts", 0)
        self._num_waiting = state.get("rows", 0)
        for stale in folder.glob("part-*"):
            if stale.name >= self._part(self._num_parts).name:
                stale.unlink()
        before = {"bytes": state["bytes"]} if state else {}
        self._waiting = TextSink(self._waiting_file, encode=json_row, head="", state=before)

    def _part(self, number: int) -> Path:
        return self._folder / f"part-{number:05d}.parquet"

    def append(self, rows: Sequence[Values]) -> None:
        """Take rows; they are not safe before `commit`."""
        self._waiting.append(rows)
        self._num_waiting += len(rows)

    def commit(self) -> State:
        """Bring all rows to the disk; where they fill a part, as that part."""
        state = self._waiting.commit()
        if self._num_waiting >= PART_ROWS:
            self._write_part()
            return {"parts": self._num_parts, "rows": 0, "bytes": 0}
        return {"parts": self._num_parts, "rows": self._num_waiting, **state}

    def committed(self, state: State) -> None:
        """Empty the waiting rows once the journal knows of their part."""
        if not state["rows"]:
            self._waiting.close()
            self._waiting = TextSink(self._waiting_file, encode=json_row, head="", state={"bytes": 0})

    def _write_part(self) -> None:
        part = self._part(self._num_parts)
        with (
            atomic_write(part, durable=True) as partial,
            partial.open("wb") as file,
            pq.ParquetWriter(file, self._schema) as writer,
        ):
            for rows in _chunks(self._waiting_file):
                writer.write_table(pa.Table.from_pylist(rows, schema=self._schema))
        self._num_parts += 1
        self._num_waiting = 0

    def close(self) -> None:
        """Write the rows that wait as the last part."""
        self._waiting.commit()
        self._waiting.close()
        if self._num_waiting or not self._num_parts:
            self._write_part()

    def clean(self) -> None:
        """Take away the rows that waited: they are in the last part."""
        self._waiting_file.unlink(missing_ok=True)

    def abandon(self) -> None:
        """Let go of the file as it is."""
        self._waiting.abandon()


def _chunks(path: Path) -> Iterator[list[Values]]:
    with path.open(encoding="utf-8") as file:
        rows: list[Values] = []
        for line in file:
            rows.append(json.loads(line))
            if len(rows) == GROUP_ROWS:
                yield rows
                rows = []
        if rows:
            yield rows


def open_sink(folder: Path, *, kind: Format, schema: pa.Schema, state: State) -> Sink:
    """Open the rows of a run: `rows.csv`, `rows.jsonl` or the data set `rows/`, new or where they stopped."""
    if kind == "parquet":
        return ParquetSink(folder / "rows", schema=schema, state=state)
    head = csv_line(schema.names) if kind == "csv" else ""
    return TextSink(folder / f"rows.{kind}", encode=csv_row if kind == "csv" else json_row, head=head, state=state)


def read_rows(folder: Path) -> Iterator[Values]:
    """Go through the rows of a run, in order, whatever their format; values as Parquet has them, regions as lists."""
    for name, read in (("rows.jsonl", _read_json), ("rows.csv", _read_csv), ("rows", _read_parquet)):
        if (folder / name).exists():
            yield from read(folder / name)
            return


def _read_json(path: Path) -> Iterator[Values]:
    for rows in _chunks(path):
        yield from rows


def _read_csv(path: Path) -> Iterator[Values]:
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            yield csv_values(row)


def csv_values(row: Mapping[str, str]) -> Values:
    """Give the values of a row of CSV as Parquet has them: numbers, nothing for None, regions as lists."""
    numbers: dict[str, Callable[[str], Any]] = {
        "score": float, "threshold": float, "p_value": float, "width": int, "height": int, "regions": json.loads,
    }  # fmt: skip
    values: Values = dict(row)
    for name, read in numbers.items():
        values[name] = read(values[name]) if values[name] else None
    return values


def _read_parquet(folder: Path) -> Iterator[Values]:
    for part in sorted(folder.glob("part-*.parquet")):
        with pq.ParquetFile(part) as file:
            for batch in file.iter_batches(batch_size=GROUP_ROWS):
                yield from batch.to_pylist()
    waiting = folder / ".waiting.jsonl"
    if waiting.exists():
        yield from _read_json(waiting)
