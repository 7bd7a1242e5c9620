"""Result tables as CSV, JSON lines or Parquet: the same columns in the same order."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from anomaly.errors import OutputError, UsageError
from anomaly.scoring.rows import NO_COLUMNS, Row, csv_line, csv_row, json_row, row_schema, row_values


class Table(Protocol):
    """A result table that grows row by row; an interruption leaves the rows written so far."""

    def write(self, rows: Sequence[Row]) -> None:
        """Append rows."""
        ...

    def close(self) -> None:
        """Finish the file."""
        ...


class CsvTable:
    """Rows as CSV: regions as JSON, empty fields for missing values."""

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
    """Rows as JSON objects, one per line."""

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
    """Rows as Parquet, in row groups of about `GROUP` rows."""

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
    """The tables of one run, opened before the first image is read and always closed.

    Args:
        paths: table files; the ending of each chooses its format.
        extra: further columns after those of a row.

    Raises:
        UsageError: an unknown ending.
        OutputError: a file cannot be opened or written.
    """

    def __init__(self, paths: Sequence[Path], *, extra: pa.Schema = NO_COLUMNS) -> None:
        self._tables: list[Table] = []
        self._names = ", ".join(str(path) for path in paths)
        for path in paths:
            if path.suffix.lower() not in TABLES:
                raise UsageError(f"{path} has the ending {path.suffix!r}: results end in {', '.join(TABLES)}")
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
