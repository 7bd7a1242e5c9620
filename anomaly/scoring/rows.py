"""A result row: its columns, and its values as CSV or JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from anomaly.errors import UsageError
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
    """Build the schema of a table: the columns of a row, then the extra columns.

    Args:
        extra: further columns of the image table.

    Raises:
        UsageError: an extra column with the name of a row column.
    """
    for name in extra.names:
        if name in COLUMNS:
            raise UsageError(f"the image table has a column {name!r}, like the result rows: rename it")
    return pa.schema([*SCHEMA, *extra])


@dataclass(frozen=True)
class Row:
    """Result of one image; score, p-value and size are None unless the status is `ok`."""

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
    """further columns of the image table, after all others"""


def _single(value: float | None) -> float | None:
    """Round to the shortest decimal of single precision."""
    return None if value is None else float(str(np.float32(value)))


def row_values(row: Row) -> dict[str, Any]:
    """Convert a row to plain values in the order of the columns, the extra columns last."""
    values: dict[str, Any] = vars(row) | {"regions": [asdict(region) for region in row.regions]}
    extra: dict[str, Any] = values.pop("extra")
    for name in ("path", "message"):  # file names may hold invalid text
        values[name] = values[name].encode("utf-8", "backslashreplace").decode("utf-8")
    for name in ("score", "threshold", "p_value"):
        values[name] = _single(values[name])
    for region in values["regions"]:
        region["peak"] = _single(region["peak"])
    return values | extra


def csv_line(values: Iterable[Any]) -> str:
    """Format values as one CSV line: lists as JSON, None as an empty field."""
    buffer = io.StringIO()
    plain = ("" if v is None else json.dumps(v) if isinstance(v, (list, dict)) else v for v in values)
    csv.writer(buffer).writerow(plain)
    return buffer.getvalue()


def csv_row(values: dict[str, Any]) -> str:
    """Format the values of a row as one CSV line."""
    return csv_line(values.values())


def json_row(values: dict[str, Any]) -> str:
    """Format the values of a row as one line with a JSON object."""
    return json.dumps(values, ensure_ascii=False, default=str) + "\n"
