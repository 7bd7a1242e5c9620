"""What a person says of the images of a finished run: the labels `good` and `defect`, in a CSV file beside the run.

    runs/night                 the run; its manifest holds the SHA-256 of every file in it, and `anomaly replay` checks them
    runs/night.labels.csv       its labels

The file lies beside the run, not in it: labels come and go after the run is finished, so the manifest can neither hold them
nor may it be broken by them. They are no proof of anything either; `anomaly calibrate --labels` checks each image's bytes.

    path        as in the row
    sha256      of the image file's bytes, as in the row: this names the label, and equal bytes have one label
    label        good or defect: really
    verdict     of the run: good, defect or review
    score       of the run, calibrated
    labelled_at   date and time in UTC, ISO 8601
    by          who labelled it, free text, may be empty

A change writes a new file, brings it to the disk and puts it in the place of the old one, which a crash therefore leaves
whole. Changes wait for one another, threads and processes alike, by a lock on `.NAME.lock` beside the file; Windows has no
such lock, and there only the threads of one process wait.
"""

from __future__ import annotations

import csv
import math
import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal, cast, get_args

from anomaly.errors import DataError, OutputError
from anomaly.runs.sinks import Values
from anomaly.scoring.rows import csv_line
from anomaly.system.files import sync_folder
from anomaly.system.run_card import now

Kind = Literal["good", "defect"]
Verdict = Literal["good", "defect", "review"]
_SHA256 = re.compile(r"[0-9a-f]{64}")
_THREADS = threading.Lock()


@dataclass(frozen=True)
class Label:
    """One label; the fields are the columns of the file, in their order."""

    path: str
    sha256: str
    label: Kind
    verdict: Verdict
    score: float
    labelled_at: str
    by: str


COLUMNS = [one.name for one in fields(Label)]


def labels_file(run: Path) -> Path:
    """Give the place of a run's labels: beside the run directory, under its name."""
    whole = run.resolve()
    return whole.with_name(f"{whole.name}.labels.csv")


def read_labels(file: Path) -> dict[str, Label]:
    """Read labels, by the SHA-256 of their image, in the order of the file; no file, no labels.

    Files of several runs may be put together into one, without the later heads: of equal labels of equal bytes the last counts.

    Raises:
        DataError: a line that holds no label, or the same bytes labelled both good and defect; the line is named.
    """
    found: dict[str, Label] = {}
    lines: dict[str, int] = {}
    for line, label in _read_lines(file):
        before = found.get(label.sha256)
        if before is not None and before.label != label.label:
            raise DataError(
                f"{file}, line {line}: {label.path} is labelled {label.label}, and line {lines[label.sha256]} labels the same bytes"
                f" {before.label}: one of the two is wrong, take it out"
            )
        found[label.sha256] = label
        lines[label.sha256] = line
    return found


def set_label(file: Path, row: Values, *, label: Kind, by: str) -> Label:
    """Label the image of a row, in place of the label that its bytes had; on the disk before this returns.

    Args:
        file: see `labels_file`.
        row: of the run, as `read_rows` gives it.
        label: what the image really shows.
        by: who says so; may be empty.

    Raises:
        DataError: a row without a score, or a file of labels that cannot be read; it stays as it is.
        OutputError: the file cannot be written; the labels before stay.
    """
    if row["score"] is None:
        raise DataError(f"{row['path']} has no verdict to label: its row is an error ({row['status']})")
    made = Label(row["path"], row["sha256"], label, row["verdict"], row["score"], now(), by)
    made = _checked([str(value) for value in astuple(made)], place=str(row["path"]))
    with _locked(file):
        _write(file, read_labels(file) | {made.sha256: made})
    return made


def unset_label(file: Path, sha256: str) -> None:
    """Take the label from an image; one that has none stays so.

    Raises:
        DataError, OutputError: as `set_label`.
    """
    with _locked(file):
        labels = read_labels(file)
        if labels.pop(sha256, None) is not None:
            _write(file, labels)


def _read_lines(file: Path) -> Iterator[tuple[int, Label]]:
    """Go through the labels with the number of the line that each begins on."""
    try:
        with file.open(encoding="utf-8", newline="") as opened:
            reader = csv.reader(opened, strict=True)
            head = next(reader, [])
            if head != COLUMNS:
                raise DataError(f"{file}, line 1: the columns are {','.join(head)!r}; labels have {','.join(COLUMNS)}")
            line = reader.line_num + 1
            for values in reader:
                yield line, _checked(values, place=f"{file}, line {line}")
                line = reader.line_num + 1
    except FileNotFoundError:
        return
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is no text in UTF-8 ({error.reason}): take the copy that the review wrote") from error
    except csv.Error as error:
        raise DataError(f"{file}, line {reader.line_num}: is no CSV ({error}); mend or take out the line") from error
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}; check its permissions") from error


def _checked(values: list[str], *, place: str) -> Label:
    """Make a label of a line's values, refusing nonsense."""
    if len(values) != len(COLUMNS):
        raise DataError(f"{place}: has {len(values)} values, a label has {len(COLUMNS)}; mend or take out the line")
    path, sha256, label, verdict, score, labelled_at, by = values
    wrong = ""
    if not path or not _SHA256.fullmatch(sha256):
        wrong = f"path {path!r}, sha256 {sha256!r}: a label names a path, and a SHA-256 of 64 hexadecimal digits"
    elif label not in get_args(Kind):
        wrong = f"label {label!r}: there are {' and '.join(get_args(Kind))}"
    elif verdict not in get_args(Verdict):
        wrong = f"verdict {verdict!r}: there are {', '.join(get_args(Verdict))}"
    elif not _is_number(score):
        wrong = f"score {score!r}: a number is needed"
    elif not _is_utc(labelled_at):
        wrong = f"labelled_at {labelled_at!r}: a date in UTC is needed, as {now()}"
    if wrong:
        raise DataError(f"{place}: {wrong}; mend or take out the line")
    return Label(path, sha256, cast(Kind, label), cast(Verdict, verdict), float(score), labelled_at, by)


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _is_utc(text: str) -> bool:
    try:
        return datetime.fromisoformat(text).utcoffset() == timedelta(0)
    except ValueError:
        return False


def _write(file: Path, labels: Mapping[str, Label]) -> None:
    partial = file.with_name(f".{file.name}.partial")
    try:
        with partial.open("w", encoding="utf-8", newline="") as opened:
            opened.write(csv_line(COLUMNS))
            opened.writelines(csv_line(astuple(label)) for label in labels.values())
            opened.flush()
            os.fsync(opened.fileno())
        partial.replace(file)
        sync_folder(file.parent)
    except OSError as error:
        raise _failure(file, error) from error


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Hold the labels alone; the system lets go when the process ends, however it ends."""
    try:
        import fcntl
    except ImportError:  # no such locks there
        with _THREADS:
            yield
        return
    with _THREADS:
        try:
            lock: Any = file.with_name(f".{file.name}.lock").open("ab")
        except OSError as error:
            raise _failure(file, error) from error
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _failure(file: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{file} cannot be written ({error.strerror}): the labels before stay; make room or check its rights"
    )
