"""Row files that survive a crash: rows are appended and committed; a resumed run truncates to the last commit.

A commit is durable: the bytes are flushed to the disk (fsync) before the ledger records the commit. Equal rows give equal
bytes, with any number of interruptions.
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
"""Values of a row, see `row_values`"""
State = dict[str, int]
"""Committed state of a sink, for the ledger"""
PART_ROWS = 65536
"""Rows per file of a Parquet data set"""
GROUP_ROWS = 4096
"""Rows per row group"""


class Sink(Protocol):
    """The row file or files of a run."""

    def append(self, rows: Sequence[Values]) -> None:
        """Append rows; they are durable after `commit`."""
        ...

    def commit(self) -> State:
        """Flush all rows to the disk."""
        ...

    def committed(self, state: State) -> None:
        """Delete files that the ledger's new state makes unnecessary."""
        ...

    def close(self) -> None:
        """Finish the files; until `clean`, the run can resume from its last commit."""
        ...

    def clean(self) -> None:
        """Delete files that only a resumed run needs."""
        ...

    def abandon(self) -> None:
        """Close the files without a commit; the run can resume from its last commit."""
        ...


class TextSink:
    """Rows as lines of one text file.

    Args:
        path: file of the rows.
        encode: function that formats a row as a line.
        head: first line; None for no such line.
        state: last committed state, empty for a new file; later bytes are cut off.
    """

    def __init__(self, path: Path, *, encode: Callable[[Values], str], head: str | None, state: State) -> None:
        self._encode = encode
        self._file: BinaryIO = path.open("r+b" if state else "wb")
        if state:
            self._file.truncate(state["bytes"])
            self._file.seek(state["bytes"])
        elif head is not None:
            self._file.write(head.encode())

    def append(self, rows: Sequence[Values]) -> None:
        """Append rows; they are durable after `commit`."""
        self._file.writelines(self._encode(row).encode() for row in rows)

    def commit(self) -> State:
        """Flush all rows to the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return {"bytes": self._file.tell()}

    def committed(self, state: State) -> None:
        """Do nothing: no other file exists."""

    def close(self) -> None:
        """Finish the file."""
        self._file.close()

    def clean(self) -> None:
        """Do nothing: no other file exists."""

    def abandon(self) -> None:
        """Close the file without a commit."""
        with suppress(OSError):  # a full disk, reported before
            self._file.close()


class ParquetSink:
    """Rows as a Parquet data set: files `part-00000.parquet` … of `PART_ROWS` rows, each written atomically.

    The rows of an incomplete part are kept in a file of JSON lines until the run is finished.

    Args:
        folder: folder of the data set.
        schema: columns of the rows.
        state: last committed state, empty for a new data set.
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
        self._waiting = TextSink(self._waiting_file, encode=json_row, head=None, state=before)

    def _part(self, number: int) -> Path:
        return self._folder / f"part-{number:05d}.parquet"

    def append(self, rows: Sequence[Values]) -> None:
        """Append rows; they are durable after `commit`."""
        self._waiting.append(rows)
        self._num_waiting += len(rows)

    def commit(self) -> State:
        """Flush all rows to the disk; a full part becomes a file."""
        state = self._waiting.commit()
        if self._num_waiting >= PART_ROWS:
            self._write_part()
            return {"parts": self._num_parts, "rows": 0, "bytes": 0}
        return {"parts": self._num_parts, "rows": self._num_waiting, **state}

    def committed(self, state: State) -> None:
        """Empty the file of waiting rows after the ledger has recorded their part."""
        if not state["rows"]:
            self._waiting.close()
            self._waiting = TextSink(self._waiting_file, encode=json_row, head=None, state={"bytes": 0})

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
        """Write the waiting rows as the last part."""
        self._waiting.commit()
        self._waiting.close()
        if self._num_waiting or not self._num_parts:
            self._write_part()

    def clean(self) -> None:
        """Delete the file of waiting rows: the last part holds them."""
        self._waiting_file.unlink(missing_ok=True)

    def abandon(self) -> None:
        """Close the file without a commit."""
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
    """Open the rows of a run: `rows.csv`, `rows.jsonl` or the data set `rows/`.

    Args:
        folder: folder of the run.
        kind: row format.
        schema: columns of the rows.
        state: last committed state, empty for a new run.
    """
    if kind == "parquet":
        return ParquetSink(folder / "rows", schema=schema, state=state)
    head = csv_line(schema.names) if kind == "csv" else None
    return TextSink(folder / f"rows.{kind}", encode=csv_row if kind == "csv" else json_row, head=head, state=state)


def read_rows(folder: Path) -> Iterator[Values]:
    """Iterate over the rows of a run in their order. All formats give the value types of Parquet, regions as lists."""
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
    """Convert the texts of a CSV row to the value types of Parquet; an empty number becomes None."""
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
