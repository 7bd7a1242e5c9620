"""Random access to the rows of a run: a small index in memory, the rows on the disk.

A run may hold a million rows. The index takes about 35 bytes per row in every format: score, verdict and first digits of
the SHA-256 as arrays, offsets into a text file, and both orders by score. The lower-case paths are compressed
for text search.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import zlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from anomaly.errors import DataError
from anomaly.runs.sinks import GROUP_ROWS, Values, csv_values

KINDS = ("good", "review", "defect", "error")
"""Verdicts of a row; the index holds positions in this tuple"""
_INDEXED = ["path", "sha256", "verdict", "score"]


class _Head(NamedTuple):
    """The indexed columns of a row."""

    path: str
    sha256: str
    verdict: str
    """verdict of the row; empty for an error row"""
    score: float | None


class _Rows(Protocol):
    """Rows of one format."""

    def heads(self) -> Iterator[_Head]:
        """Iterate over all rows once, before the first `read`."""
        ...

    def read(self, numbers: Sequence[int]) -> list[Values]:
        """Read rows by their numbers."""
        ...


class _TextRows:
    """Rows in a text file, addressed by byte offsets; a path in CSV may contain a line break.

    Args:
        path: file of the rows.
        has_head: whether the first line names the columns (CSV); otherwise each line is a JSON object.
    """

    def __init__(self, path: Path, *, has_head: bool) -> None:
        self._path = path
        self._names: list[str] = []
        self._offsets = array("q", [0])
        self._read_heads = self._csv_heads if has_head else self._json_heads
        self._parse: Callable[[str], Values] = self._csv_row if has_head else json.loads

    def heads(self) -> Iterator[_Head]:
        """Iterate over all rows once and record their offsets."""
        return self._read_heads()

    def _json_heads(self) -> Iterator[_Head]:
        with self._path.open("rb") as file:
            for line in file:
                self._offsets.append(self._offsets[-1] + len(line))
                row = json.loads(line)
                yield _Head(*(row[name] for name in _INDEXED))

    def _csv_heads(self) -> Iterator[_Head]:
        num_bytes = 0

        def lines() -> Iterator[str]:
            nonlocal num_bytes
            for line in file:
                num_bytes += len(line)
                yield line.decode("utf-8")

        with self._path.open("rb") as file:
            reader = csv.reader(lines())
            self._names = next(reader)
            self._offsets[0] = num_bytes
            path, sha256, verdict, score = (self._names.index(name) for name in _INDEXED)
            for row in reader:
                self._offsets.append(num_bytes)
                yield _Head(row[path], row[sha256], row[verdict], float(row[score]) if row[score] else None)

    def _csv_row(self, text: str) -> Values:
        values = next(csv.reader(io.StringIO(text, newline="")))
        return csv_values(dict(zip(self._names, values, strict=True)))

    def read(self, numbers: Sequence[int]) -> list[Values]:
        """Read rows by their numbers."""
        found = []
        with self._path.open("rb") as file:
            for number in numbers:
                begin, end = self._offsets[number : number + 2]
                file.seek(begin)
                found.append(self._parse(file.read(end - begin).decode("utf-8")))
        return found


class _ParquetRows:
    """Rows in the row groups of a Parquet data set."""

    def __init__(self, folder: Path) -> None:
        self._groups: list[tuple[Path, int]] = []
        starts = [0]
        for part in sorted(folder.glob("part-*.parquet")):
            with pq.ParquetFile(part) as file:
                for group in range(file.num_row_groups):
                    self._groups.append((part, group))
                    starts.append(starts[-1] + file.metadata.row_group(group).num_rows)
        self._starts = np.array(starts)

    def heads(self) -> Iterator[_Head]:
        """Iterate over all rows once."""
        for part in dict.fromkeys(part for part, _ in self._groups):
            with pq.ParquetFile(part) as file:
                for batch in file.iter_batches(batch_size=GROUP_ROWS, columns=_INDEXED):
                    columns = [batch.column(name).to_pylist() for name in _INDEXED]
                    yield from itertools.starmap(_Head, zip(*columns, strict=True))

    def read(self, numbers: Sequence[int]) -> list[Values]:
        """Read rows by their numbers, each row group once."""
        groups = np.searchsorted(self._starts, numbers, side="right") - 1
        found: dict[int, Values] = {}
        for group in np.unique(groups):
            part, position = self._groups[group]
            members = [number for number, its in zip(numbers, groups, strict=True) if its == group]
            with pq.ParquetFile(part) as file:
                table = file.read_row_group(position)
            rows = table.take([number - int(self._starts[group]) for number in members]).to_pylist()
            found |= dict(zip(members, rows, strict=True))
        return [found[number] for number in numbers]


def _open_rows(folder: Path) -> _Rows:
    if (folder / "rows.jsonl").is_file():
        return _TextRows(folder / "rows.jsonl", has_head=False)
    if (folder / "rows.csv").is_file():
        return _TextRows(folder / "rows.csv", has_head=True)
    if (folder / "rows").is_dir():
        return _ParquetRows(folder / "rows")
    raise DataError(f"{folder} holds no rows.csv, rows.jsonl or rows/: use an unchanged copy of the run")


def sha256_key(sha256: str) -> int:
    """First 64 bits of a SHA-256 in hexadecimal, 0 for an empty text; collisions among a million images are unlikely."""
    return int(sha256[:16] or "0", 16)


class RowIndex:
    """Index of the rows of a finished run.

    Args:
        folder: folder of the run.

    Raises:
        DataError: missing or damaged rows.
    """

    def __init__(self, folder: Path) -> None:
        self._rows = _open_rows(folder)
        score, kind, key = array("f"), array("B"), array("Q")
        self._names: list[bytes] = []
        waiting: list[str] = []
        try:
            for head in self._rows.heads():
                score.append(float("nan") if head.score is None else head.score)
                kind.append(KINDS.index(head.verdict or "error"))
                key.append(sha256_key(head.sha256))
                waiting.append(head.path)
                if len(waiting) == GROUP_ROWS:
                    self._names.append(_packed(waiting))
                    waiting = []
        except (
            ValueError,
            KeyError,
            IndexError,
            OSError,
        ) as error:  # pyarrow's errors of damaged files are ValueErrors
            raise DataError(
                f"{folder}: row {len(score)} cannot be read ({error}); `anomaly replay` names the changed file"
            ) from error
        self._names.append(_packed(waiting))
        self.score: NDArray[np.float32] = np.array(score, dtype=np.float32)
        """calibrated score; NaN for an error row"""
        self.kind: NDArray[np.uint8] = np.array(kind, dtype=np.uint8)
        """position in `KINDS`"""
        self.key: NDArray[np.uint64] = np.array(key, dtype=np.uint64)
        """key of the SHA-256, by `sha256_key`"""
        self.orders: dict[str, NDArray[np.int32]] = {
            "score": np.argsort(self.score, kind="stable").astype(np.int32),
            "-score": np.argsort(-self.score, kind="stable").astype(np.int32),
        }
        """row numbers by score; ties in the order of the run, error rows last"""

    def __len__(self) -> int:
        return len(self.kind)

    def read(self, numbers: Sequence[int]) -> list[Values]:
        """Read rows by their numbers, with the values of `read_rows`.

        Raises:
            DataError: a file that was deleted or changed since.
        """
        try:
            return self._rows.read(numbers)
        except (ValueError, OSError) as error:
            raise DataError(f"the run's rows are no longer readable ({error}): restart the review") from error

    def contains_text(self, text: str) -> NDArray[np.bool_]:
        """Find the rows whose path contains a text, ignoring case; one bool per row."""
        needle = text.lower().encode("utf-8")
        found = np.zeros(len(self), dtype=bool)
        for block, packed in enumerate(self._names):
            names = zlib.decompress(packed)
            if needle in names:
                hits = [needle in name for name in names.split(b"\n")]
                found[block * GROUP_ROWS : block * GROUP_ROWS + len(hits)] = hits[: len(self) - block * GROUP_ROWS]
        return found


def _packed(paths: Sequence[str]) -> bytes:
    """Compress paths, one per line."""
    return zlib.compress("\n".join(path.lower().replace("\n", " ") for path in paths).encode("utf-8"), 1)
