"""A finished run as a person goes through it: rows filtered, sorted and counted, with their labels.

The file of labels is looked at before every answer, and read again where it was changed: two people may label one run.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from anomaly.errors import DataError, UsageError
from anomaly.runs.labels import Kind, Label, labels_file, read_labels, set_label, unset_label
from anomaly.runs.row_index import KINDS, RowIndex, sha256_key
from anomaly.runs.run_directory import MANIFEST
from anomaly.runs.sinks import Values
from anomaly.scoring.rows import COLUMNS

Sort = Literal["order", "score", "-score"]
WithVerdict = Literal["all", "good", "review", "defect", "error"]
WithMark = Literal["all", "none", "any", "good", "defect"]
MARKS: tuple[str, ...] = ("", *get_args(Kind))
"""What a row is labelled; the array of labels holds the places in this tuple"""


@dataclass(frozen=True)
class Filter:
    """Which rows are wanted.

    Args:
        verdict: of the run, `error` for what could not be scored.
        label: of a person, `any` for either, `none` for rows without.
        text: that their path holds.

    Raises:
        UsageError: a verdict or a label that there is not.
    """

    verdict: WithVerdict = "all"
    label: WithMark = "all"
    text: str = ""

    def __post_init__(self) -> None:
        for name, value, known in (("verdict", self.verdict, WithVerdict), ("label", self.label, WithMark)):
            if value not in get_args(known):
                raise UsageError(f"{name} is {value[:100]!r}: there are {', '.join(get_args(known))}")


class Reviewed:
    """A finished run and its labels; used from several threads.

    Args:
        run: the run directory.
        by: who labels; may be empty.

    Raises:
        DataError: an unfinished run, rows that cannot be read, or a file of labels that is none.
    """

    def __init__(self, run: Path, *, by: str) -> None:
        if not (run / MANIFEST).is_file():
            raise DataError(
                f"{run} holds no finished run (no {MANIFEST}), and labels name rows that no longer change: finish it by"
                " `anomaly score … --resume`, then review it"
            )
        self.run, self.by, self.file = run, by, labels_file(run)
        self.index = RowIndex(run)
        self._lock = threading.Lock()
        self._state: tuple[int, int] | None = None
        self._labels: NDArray[np.uint8] = np.zeros(len(self.index), dtype=np.uint8)
        self._text, self._holding = "", np.ones(len(self.index), dtype=bool)
        self.labels()

    def labels(self) -> NDArray[np.uint8]:
        """Give the label of every row, as its place in `MARKS`; the array is not changed later.

        Raises:
            DataError: the file of labels was made unreadable.
        """
        with self._lock:
            try:
                status = self.file.stat()
                state = (status.st_mtime_ns, status.st_size)
            except FileNotFoundError:
                state = (0, 0)
            if state != self._state:
                self._labels = self._placed(read_labels(self.file))
                self._state = state
            return self._labels

    def _placed(self, labels: dict[str, Label]) -> NDArray[np.uint8]:
        found: NDArray[np.uint8] = np.zeros(len(self.index), dtype=np.uint8)
        if not labels:
            return found
        kinds = {sha256_key(sha256): MARKS.index(label.label) for sha256, label in labels.items()}
        keys = np.array(sorted(kinds), dtype=np.uint64)
        kind = np.array([kinds[int(key)] for key in keys], dtype=np.uint8)
        place = np.minimum(np.searchsorted(keys, self.index.key), len(keys) - 1)
        is_labelled = (keys[place] == self.index.key) & np.isfinite(self.index.score)
        found[is_labelled] = kind[place[is_labelled]]
        return found

    def chosen(self, wanted: Filter) -> NDArray[np.bool_]:
        """Say of every row whether a filter lets it pass."""
        chosen: NDArray[np.bool_] = self._with_text(wanted.text)
        if wanted.verdict != "all":
            chosen = chosen & (self.index.kind == KINDS.index(wanted.verdict))
        labels = self.labels()
        if wanted.label == "any":
            chosen = chosen & (labels > 0)
        elif wanted.label != "all":
            chosen = chosen & (labels == MARKS.index("" if wanted.label == "none" else wanted.label))
        return chosen

    def _with_text(self, text: str) -> NDArray[np.bool_]:
        with self._lock:
            if text != self._text:  # kept: pages and pages are asked for with one text
                self._text, self._holding = text, self.index.holding(text)
            return self._holding

    def page(self, wanted: Filter, *, sort: Sort, offset: int, limit: int) -> dict[str, Any]:
        """Give rows that pass a filter, some at a time.

        Args:
            wanted: the filter.
            sort: by rising or falling score, errors last, or in the order of the run.
            offset: of those that pass, so many are left out.
            limit: rows at most.

        Returns:
            `total`, how many pass, and `items`: rows, without the columns that passed
            through, with their `number` in the run and their `label`.
        """
        chosen = self.chosen(wanted)
        numbers = (
            np.flatnonzero(chosen) if sort == "order" else self.index.orders[sort][chosen[self.index.orders[sort]]]
        )
        shown = [int(number) for number in numbers[offset : offset + limit]]
        labels = self.labels()
        items = [
            {"number": number, "label": MARKS[labels[number]], **{name: row[name] for name in COLUMNS}}
            for number, row in zip(shown, self.index.read(shown), strict=True)
        ]
        return {"total": len(numbers), "items": items}

    def counts(self) -> dict[str, dict[str, int]]:
        """Count the images of each verdict, all of them and by label: {verdict: {"all", "none", "good", "defect"}}."""
        pairs = np.bincount(self.index.kind * len(MARKS) + self.labels(), minlength=len(KINDS) * len(MARKS))
        table = pairs.reshape(len(KINDS), len(MARKS))
        return {
            kind: {"all": int(line.sum()), **{label or "none": int(n) for label, n in zip(MARKS, line, strict=True)}}
            for kind, line in zip(KINDS, table, strict=True)
        }

    def row(self, number: int) -> Values:
        """Read the row of an image.

        Raises:
            DataError: there is no such row.
        """
        if not 0 <= number < len(self.index):
            raise DataError(f"the run has no image {number}: it has {len(self.index)}, the first is 0")
        return self.index.read([number])[0]

    def set(self, number: int, label: str) -> None:
        """Label an image, or take its label away where the label is empty; on the disk before this returns.

        Raises:
            UsageError: another label.
            DataError: a row without a score.
            OutputError: the file of labels cannot be written.
        """
        row = self.row(number)
        if label not in MARKS:
            raise UsageError(f"label is {label[:100]!r}: give good, defect, or nothing to take it away")
        if label == "" and row["score"] is not None:
            unset_label(self.file, row["sha256"])
        else:
            set_label(self.file, row, label=label, by=self.by)  # type: ignore[arg-type]  # checked above
