"""Review of a finished run: rows filtered, sorted and counted, with their labels.

Two people may label one run: every query checks the file of labels and reads it again after a change.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from anomaly.errors import DataError, UsageError
from anomaly.runs.labels import Label, LabelKind, check_has_score, labels_file, read_labels, remove_label, set_label
from anomaly.runs.row_index import KINDS, RowIndex, sha256_key
from anomaly.runs.run_files import MANIFEST
from anomaly.runs.sinks import Values
from anomaly.scoring.rows import COLUMNS
from anomaly.system.files import as_path

Sort = Literal["order", "score", "-score"]
VerdictFilter = Literal["all", "good", "review", "defect", "error"]
LabelFilter = Literal["all", "none", "any", "good", "defect"]
LABELS: tuple[str, ...] = ("", *get_args(LabelKind))
"""Labels of a row, empty for an unlabelled one; the array of labels holds positions in this tuple"""


@dataclass(frozen=True)
class RowFilter:
    """Conditions on rows; a row must meet all of them.

    Args:
        verdict: verdict of the run; `error` for rows without a score.
        label: label of a reviewer; `any` for labelled rows, `none` for unlabelled rows.
        text: text in the path, ignoring case.

    Raises:
        UsageError: an unknown verdict or label.
    """

    verdict: VerdictFilter = "all"
    label: LabelFilter = "all"
    text: str = ""

    def __post_init__(self) -> None:
        for name, value, known in (("verdict", self.verdict, VerdictFilter), ("label", self.label, LabelFilter)):
            if value not in get_args(known):
                raise UsageError(f"{name} is {value[:100]!r}: give one of {', '.join(get_args(known))}")


class ReviewSession:
    """A finished run and its labels; safe for several threads.

    Args:
        run: folder of the run.
        by: name of the reviewer; None for no name.

    Raises:
        DataError: an unfinished run, rows that cannot be read, or an invalid file of labels.
    """

    def __init__(self, run: str | Path, *, by: str | None = None) -> None:
        run = as_path(run, name="run")
        if not (run / MANIFEST).is_file():
            raise DataError(
                f"{run} holds no finished run ({MANIFEST} is missing): finish it by `anomaly score --resume`, then review it"
            )
        self._open(run, by=by, file=labels_file(run))

    def _open(self, run: Path, *, by: str | None, file: Path) -> None:
        """Read the rows of a folder and the labels in a file."""
        self.run, self.by, self.file = run, by or "", file
        self.index = RowIndex(run)
        self._lock = threading.Lock()
        self._state: tuple[int, int] | None = None
        self._labels: NDArray[np.uint8] = np.zeros(len(self.index), dtype=np.uint8)
        self._text, self._text_found = "", np.ones(len(self.index), dtype=bool)
        self.labels()

    def labels(self) -> NDArray[np.uint8]:
        """Label of every row as its position in `LABELS`; the array never changes later.

        Raises:
            DataError: the file of labels has become invalid.
        """
        with self._lock:
            try:
                status = self.file.stat()
                state = (status.st_mtime_ns, status.st_size)
            except FileNotFoundError:
                state = (0, 0)
            if state != self._state:
                self._labels = self._positions(read_labels(self.file))
                self._state = state
            return self._labels

    def _positions(self, labels: dict[str, Label]) -> NDArray[np.uint8]:
        found: NDArray[np.uint8] = np.zeros(len(self.index), dtype=np.uint8)
        if not labels:
            return found
        kinds = {sha256_key(sha256): LABELS.index(label.label) for sha256, label in labels.items()}
        keys = np.array(sorted(kinds), dtype=np.uint64)
        kind = np.array([kinds[int(key)] for key in keys], dtype=np.uint8)
        position = np.minimum(np.searchsorted(keys, self.index.key), len(keys) - 1)
        is_labelled = (keys[position] == self.index.key) & np.isfinite(self.index.score)
        found[is_labelled] = kind[position[is_labelled]]
        return found

    def select(self, rows: RowFilter) -> NDArray[np.bool_]:
        """Apply a filter; one bool per row."""
        selected: NDArray[np.bool_] = self._with_text(rows.text)
        if rows.verdict != "all":
            selected = selected & (self.index.kind == KINDS.index(rows.verdict))
        labels = self.labels()
        if rows.label == "any":
            selected = selected & (labels > 0)
        elif rows.label != "all":
            selected = selected & (labels == LABELS.index("" if rows.label == "none" else rows.label))
        return selected

    def _with_text(self, text: str) -> NDArray[np.bool_]:
        with self._lock:
            if text != self._text:  # cached: many pages share one text
                self._text, self._text_found = text, self.index.contains_text(text)
            return self._text_found

    def page(self, rows: RowFilter, *, sort: Sort, offset: int, limit: int) -> dict[str, Any]:
        """Return one page of the rows that pass a filter.

        Args:
            rows: filter of the rows.
            sort: ascending or descending score, error rows last, or the order of the run.
            offset: number of rows to skip.
            limit: largest number of rows.

        Returns:
            `total`, the number of rows that pass, and `items`: rows without further columns, with their `number` in the
            run and their `label`.
        """
        selected = self.select(rows)
        numbers = (
            np.flatnonzero(selected) if sort == "order" else self.index.orders[sort][selected[self.index.orders[sort]]]
        )
        shown = [int(number) for number in numbers[offset : offset + limit]]
        labels = self.labels()
        items = [
            {"number": number, "label": LABELS[labels[number]], **{name: row[name] for name in COLUMNS}}
            for number, row in zip(shown, self.index.read(shown), strict=True)
        ]
        return {"total": len(numbers), "items": items}

    def counts(self) -> dict[str, dict[str, int]]:
        """Verdict -> number of images: `all`, unlabelled (`none`), and labelled `good` or `defect`."""
        pairs = np.bincount(self.index.kind * len(LABELS) + self.labels(), minlength=len(KINDS) * len(LABELS))
        table = pairs.reshape(len(KINDS), len(LABELS))
        return {
            kind: {"all": int(line.sum()), **{label or "none": int(n) for label, n in zip(LABELS, line, strict=True)}}
            for kind, line in zip(KINDS, table, strict=True)
        }

    def row(self, number: int) -> Values:
        """Read one row.

        Raises:
            DataError: the run has no row of this number.
        """
        if not 0 <= number < len(self.index):
            raise DataError(f"the run has no image {number}: give a number from 0 to {len(self.index) - 1}")
        return self.index.read([number])[0]

    def set_label(self, number: int, label: str | None) -> None:
        """Label an image, or remove its label; durable when this returns.

        Args:
            number: number of the row.
            label: good or defect; None removes the label.

        Raises:
            UsageError: an unknown label.
            DataError: a row without a score.
            OutputError: the file of labels cannot be written.
        """
        row = self.row(number)
        if label is not None and label not in get_args(LabelKind):
            raise UsageError(f"label is {label[:100]!r}: give good, defect, or none to remove it")
        check_has_score(row)
        if label is None:
            remove_label(self.file, row["sha256"])
        else:
            set_label(self.file, row, label=label, by=self.by)  # type: ignore[arg-type]  # checked above
