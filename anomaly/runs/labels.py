"""Labels of a reviewer on the images of a finished run, in a CSV file beside the run.

    runs/night                  the run; its manifest holds the SHA-256 of every file in it
    runs/night.labels.csv       its labels

The file is not part of the run: labels change after the run is finished, and the manifest must stay valid. `anomaly
calibrate --labels` checks the bytes of each labelled image.

    path          path of the image, as in the row
    sha256        SHA-256 of the image file, as in the row; the key: equal bytes have one label
    label         good or defect: the true state of the part
    verdict       good, defect or review: the verdict of the run
    score         calibrated score of the run
    labelled_at   date and time in UTC, ISO 8601
    by            name of the reviewer, may be empty

Each change replaces the file atomically, so a crash leaves it complete. A lock on `.NAME.lock` beside the file serialises
the changes of all threads and processes; on Windows only those of one process.
"""

from __future__ import annotations

import csv
import math
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
from anomaly.system.files import as_path, atomic_write
from anomaly.system.run_card import now

LabelKind = Literal["good", "defect"]
Verdict = Literal["good", "defect", "review"]
_SHA256 = re.compile(r"[0-9a-f]{64}")
_THREADS = threading.Lock()


@dataclass(frozen=True)
class Label:
    """One label; the fields are the columns of the file."""

    path: str
    sha256: str
    label: LabelKind
    verdict: Verdict
    score: float
    labelled_at: str
    by: str


COLUMNS = [one.name for one in fields(Label)]


def labels_file(run: str | Path) -> Path:
    """Path of a run's labels: beside the run, under its name."""
    whole = as_path(run, name="run").resolve()
    return whole.with_name(f"{whole.name}.labels.csv")


def read_labels(file: str | Path) -> dict[str, Label]:
    """Read labels in the order of the file; a missing file gives no labels.

    The files of several runs may be concatenated, without the later headers. The last of equal labels counts.

    Returns:
        SHA-256 of the image -> its label.

    Raises:
        DataError: an invalid line, or the same bytes labelled both good and defect; the line is named.
    """
    file = as_path(file, name="file")
    found: dict[str, Label] = {}
    lines: dict[str, int] = {}
    for line, label in _read_lines(file):
        before = found.get(label.sha256)
        if before is not None and before.label != label.label:
            raise DataError(
                f"{file}, line {line}: {label.path} is labelled {label.label}, and line {lines[label.sha256]} labels the same"
                f" bytes {before.label}: remove the wrong line"
            )
        found[label.sha256] = label
        lines[label.sha256] = line
    return found


def set_label(file: str | Path, row: Values, *, label: LabelKind, by: str | None = None) -> Label:
    """Label the image of a row and replace its previous label; durable when this returns.

    Args:
        file: file of labels, see `labels_file`.
        row: row of the run, see `read_rows`.
        label: true state of the part.
        by: name of the reviewer; None for no name.

    Returns:
        The new label.

    Raises:
        DataError: a row without a score, or an invalid file of labels, which stays unchanged.
        OutputError: the file cannot be written; the previous labels stay.
    """
    file = as_path(file, name="file")
    check_has_score(row)
    new = Label(row["path"], row["sha256"], label, row["verdict"], row["score"], now(), by or "")
    new = _parse([str(value) for value in astuple(new)], source=str(row["path"]))
    with _locked(file):
        _write(file, read_labels(file) | {new.sha256: new})
    return new


def check_has_score(row: Values) -> None:
    """Refuse a row that cannot be labelled.

    Raises:
        DataError: a row without a score.
    """
    if row["score"] is None:
        raise DataError(f"{row['path']} has no verdict to label: its row is an error ({row['status']}); label another")


def remove_label(file: str | Path, sha256: str) -> None:
    """Remove the label of an image; an unlabelled image stays unlabelled.

    Args:
        file: file of labels, see `labels_file`.
        sha256: SHA-256 of the image file.

    Raises:
        DataError, OutputError: as in `set_label`.
    """
    file = as_path(file, name="file")
    with _locked(file):
        labels = read_labels(file)
        if labels.pop(sha256, None) is not None:
            _write(file, labels)


def _read_lines(file: Path) -> Iterator[tuple[int, Label]]:
    """Yield each label with the number of its first line."""
    try:
        with file.open(encoding="utf-8", newline="") as opened:
            reader = csv.reader(opened, strict=True)
            head = next(reader, [])
            if head != COLUMNS:
                raise DataError(f"{file}, line 1: the columns are {','.join(head)!r}; give {','.join(COLUMNS)}")
            line = reader.line_num + 1
            for values in reader:
                yield line, _parse(values, source=f"{file}, line {line}")
                line = reader.line_num + 1
    except FileNotFoundError:
        return
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 text ({error.reason}): restore the file that the review wrote") from error
    except csv.Error as error:
        raise DataError(f"{file}, line {reader.line_num}: invalid CSV ({error}); correct or remove the line") from error
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}; check its permissions") from error


def _parse(values: list[str], *, source: str) -> Label:
    """Convert the values of a line to a label; refuse invalid values."""
    if len(values) != len(COLUMNS):
        raise DataError(f"{source}: {len(values)} values, and a label has {len(COLUMNS)}; correct or remove the line")
    path, sha256, label, verdict, score, labelled_at, by = values
    problem = None
    if not path or not _SHA256.fullmatch(sha256):
        problem = f"path {path!r}, sha256 {sha256!r}: give a path and a SHA-256 of 64 hexadecimal digits"
    elif label not in get_args(LabelKind):
        problem = f"label {label!r}: give {' or '.join(get_args(LabelKind))}"
    elif verdict not in get_args(Verdict):
        problem = f"verdict {verdict!r}: give one of {', '.join(get_args(Verdict))}"
    elif not _is_number(score):
        problem = f"score {score!r}: give a finite number"
    elif not _is_utc(labelled_at):
        problem = f"labelled_at {labelled_at!r}: give a date in UTC, e.g. {now()}"
    if problem:
        raise DataError(f"{source}: {problem}; correct or remove the line")
    return Label(path, sha256, cast(LabelKind, label), cast(Verdict, verdict), float(score), labelled_at, by)


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
    try:
        with atomic_write(file, durable=True) as partial, partial.open("w", encoding="utf-8", newline="") as opened:
            opened.write(csv_line(COLUMNS))
            opened.writelines(csv_line(astuple(label)) for label in labels.values())
    except OutputError as error:
        raise OutputError(f"{error}; the previous labels stay") from error


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Lock the file of labels; the system releases the lock when the process ends."""
    try:
        import fcntl
    except ImportError:  # Windows
        with _THREADS:
            yield
        return
    with _THREADS:
        try:
            lock: Any = file.with_name(f".{file.name}.lock").open("ab")
        except OSError as error:
            raise OutputError(f"{file} cannot be written ({error.strerror}): check its permissions") from error
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
