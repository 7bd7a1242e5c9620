"""A row of results, and the tables that keep them: CSV, JSON lines or Parquet, same names in the same order."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from anomaly.errors import OutputError, UsageError
from anomaly.imaging.regions import Region

_REGION = pa.struct(
    [
        ("x", pa.int32()),
        ("y", pa.int32()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("area", pa.int64()),
        ("peak", pa.float32()),
        ("weak", pa.bool_()),
    ]
)
SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("sha256", pa.string()),
        ("status", pa.string()),
        ("verdict", pa.string()),
        ("score", pa.float32()),
        ("threshold", pa.float32()),
        ("p_value", pa.float32()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("regions", pa.list_(_REGION)),
        ("model", pa.string()),
        ("message", pa.string()),
    ]
)
COLUMNS: list[str] = SCHEMA.names
NO_COLUMNS: pa.Schema = pa.schema([])


def row_schema(extra: pa.Schema) -> pa.Schema:
    """Columns of a row and those that pass through.

    Raises:
        UsageError: a column that a row has itself.
    """
    for name in extra.names:
        if name in COLUMNS:
            raise UsageError(f"the table of images has a column {name!r}, which results have too: rename it")
    return pa.schema([*SCHEMA, *extra])


@dataclass(frozen=True)
class Row:
    """What a batch run says of one image; score, p-value and size are None where status is not `ok`."""

    path: str
    sha256: str
    status: str
    verdict: str
    score: float | None
    threshold: float
    p_value: float | None
    width: int | None
    height: int | None
    regions: list[Region]
    model: str
    message: str
    extra: dict[str, Any] = field(default_factory=dict)
    """other columns of the table that the images came from; they follow"""


class Table(Protocol):
    """A table of results that grows row by row; what has been written stays when the run is interrupted."""

    def write(self, rows: Sequence[Row]) -> None:
        """Append rows."""
        ...

    def close(self) -> None:
        """Finish the file."""
        ...


def _single(value: float | None) -> float | None:
    """Shortest decimal of a number in single precision."""
    return None if value is None else float(str(np.float32(value)))


def row_values(row: Row) -> dict[str, Any]:
    """Give a row as plain values, in the order of its columns, those passed through last."""
    values: dict[str, Any] = vars(row) | {"regions": [asdict(region) for region in row.regions]}
    extra: dict[str, Any] = values.pop("extra")
    for name in ("path", "message"):  # names of files need not be text
        values[name] = values[name].encode("utf-8", "backslashreplace").decode("utf-8")
    for name in ("score", "threshold", "p_value"):
        values[name] = _single(values[name])
    for region in values["regions"]:
        region["peak"] = _single(region["peak"])
    return values | extra


def csv_line(values: Iterable[Any]) -> str:
    """Write values as one line of CSV: lists as JSON, nothing for None."""
    buffer = io.StringIO()
    plain = ("" if v is None else json.dumps(v) if isinstance(v, (list, dict)) else v for v in values)
    csv.writer(buffer).writerow(plain)
    return buffer.getvalue()


def csv_row(values: dict[str, Any]) -> str:
    """Write a row's values as one line of CSV."""
    return csv_line(values.values())


def json_row(values: dict[str, Any]) -> str:
    """Write a row's values as one JSON object on a line."""
    return json.dumps(values, ensure_ascii=False, default=str) + "\n"


class CsvTable:
    """Rows as CSV, regions as JSON strings, nothing for what an error row lacks."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._file = path.open("w", encoding="utf-8", newline="")
        self._file.write(csv_line(schema.names))

    def write(self, rows: Sequence[Row]) -> None:
        """Append rows."""
        self._file.writelines(csv_row(row_values(row)) for row in rows)
        self._file.flush()

    def close(self) -> None:
        """Finish the file."""
        self._file.close()


class JsonLinesTable:
    """Rows as one JSON object a line."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._file = path.open("w", encoding="utf-8", newline="\n")

    def write(self, rows: Sequence[Row]) -> None:
        """Append rows."""
        self._file.writelines(json_row(row_values(row)) for row in rows)
        self._file.flush()

    def close(self) -> None:
        """Finish the file."""
        self._file.close()


class ParquetTable:
    """Rows as Parquet, a row group for every `GROUP` rows."""

    GROUP = 4096

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._file = path.open("wb")
        self._schema = schema
        self._writer = pq.ParquetWriter(self._file, schema)
        self._waiting: list[dict[str, Any]] = []

    def write(self, rows: Sequence[Row]) -> None:
        """Append rows."""
        self._waiting += [row_values(row) for row in rows]
        if len(self._waiting) >= self.GROUP:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            rows, self._waiting = self._waiting, []
            self._writer.write_table(pa.Table.from_pylist(rows, schema=self._schema))

    def close(self) -> None:
        """Write the last row group and the file's footer."""
        try:
            self._flush()
            self._writer.close()
        finally:
            self._file.close()


TABLES: dict[str, type[CsvTable] | type[JsonLinesTable] | type[ParquetTable]] = {
    ".csv": CsvTable,
    ".jsonl": JsonLinesTable,
    ".parquet": ParquetTable,
}


class Tables:
    """The tables of one run, opened before the first image is read and closed whatever happens.

    Args:
        paths: of the files, whose endings choose the format.
        extra: columns that follow those of a row.

    Raises:
        UsageError: an ending that is none of `TABLES`.
        OutputError: a file that cannot be opened or written.
    """

    def __init__(self, paths: Sequence[Path], *, extra: pa.Schema = NO_COLUMNS) -> None:
        self._tables: list[Table] = []
        self._names = ", ".join(str(path) for path in paths)
        for path in paths:
            if path.suffix.lower() not in TABLES:
                raise UsageError(f"{path} ends in {path.suffix or 'nothing'}: results end in {', '.join(TABLES)}")
        try:
            with ExitStack() as opened:
                for path in paths:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    table = TABLES[path.suffix.lower()](path, row_schema(extra))
                    opened.callback(table.close)
                    self._tables.append(table)
                self._opened = opened.pop_all()
        except OSError as error:
            raise self._failure(error) from error

    def write(self, rows: Sequence[Row]) -> None:
        """Append rows to every table."""
        try:
            for table in self._tables:
                table.write(rows)
        except OSError as error:
            raise self._failure(error) from error

    def __enter__(self) -> Tables:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self._opened.close()
        except OSError as closing:
            raise self._failure(closing) from closing

    def _failure(self, error: OSError) -> OutputError:
        return OutputError(f"the results cannot be written to {self._names}: {error.strerror}; choose another place")
