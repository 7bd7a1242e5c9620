"""The file of labels beside a finished run."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from anomaly.commands.main import run as cli
from anomaly.errors import DataError, OutputError
from anomaly.runs.labels import COLUMNS, labels_file, read_labels, remove_label, set_label
from anomaly.runs.replay import replay
from anomaly.runs.sinks import read_rows

SHA = "0123456789abcdef" * 4
LINE = f"a.png,{SHA},good,defect,1.5,2026-11-21T10:00:00+00:00,"


def example_row(number: int) -> dict[str, Any]:
    return {"path": f"{number}.png", "sha256": f"{number:064x}", "status": "ok", "verdict": "defect", "score": 1.5}


def test_labels_are_beside_the_run_and_leave_its_manifest_valid(model: Path, category: Path, tmp_path: Path) -> None:
    night = tmp_path / "night"
    assert cli(["score", str(model), str(category / "test"), "--run", str(night), "--device", "cpu"]) == 0
    rows = list(read_rows(night))
    file = labels_file(night)
    assert file == night.parent / "night.labels.csv"
    assert read_labels(file) == {}
    one = set_label(file, rows[0], label="good", by='Zoë "QA", shift 3')
    other = set_label(file, rows[1], label="defect")
    assert read_labels(file) == {rows[0]["sha256"]: one, rows[1]["sha256"]: other}
    assert (one.path, one.verdict, one.score, one.by) == (
        rows[0]["path"], rows[0]["verdict"], rows[0]["score"], 'Zoë "QA", shift 3',
    )  # fmt: skip
    with file.open(encoding="utf-8", newline="") as opened:
        assert next(csv.reader(opened)) == ["path", "sha256", "label", "verdict", "score", "labelled_at", "by"]
    changed = set_label(file, rows[0], label="defect", by="")
    assert read_labels(file)[rows[0]["sha256"]] == changed
    remove_label(file, rows[1]["sha256"])
    remove_label(file, SHA)  # never labelled
    assert list(read_labels(file).values()) == [changed]
    assert replay(night).mismatch is None
    assert replay(night, sample=1).mismatch is None


def test_error_row_cannot_be_labelled(tmp_path: Path) -> None:
    row = example_row(1) | {"score": None, "verdict": "", "status": "truncated"}
    with pytest.raises(DataError, match=r"1\.png has no verdict to label: its row is an error \(truncated\)"):
        set_label(tmp_path / "m.csv", row, label="good", by="")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (LINE.replace("good", "fine"), r"m\.csv, line 3: label 'fine': give good or defect"),
        (LINE.replace(SHA, SHA[:-1]), "line 3: path 'a.png', sha256 .* of 64 hexadecimal digits"),
        (LINE.replace(SHA, SHA.upper()), "64 hexadecimal digits"),
        (LINE.replace("a.png", ""), "line 3: path ''"),
        (LINE.replace("1.5", "high"), "line 3: score 'high': give a finite number"),
        (LINE.replace("1.5", "nan"), "line 3: score 'nan'"),
        (LINE.replace(",defect,", ",bad,"), "line 3: verdict 'bad'"),
        (LINE.replace("+00:00", ""), "line 3: labelled_at '2026-11-21T10:00:00': give a date in UTC"),
        (LINE.replace("+00:00", "+02:00"), "line 3: labelled_at"),
        (LINE + ",more", "line 3: 8 values, and a label has 7"),
        ("", "line 3: 0 values"),
        (f'"a.png{LINE}', r"line \d: invalid CSV"),
        (
            LINE.replace("good", "defect"),
            "line 3: a.png is labelled defect, and line 2 labels the same bytes good: remove",
        ),
    ],
)
def test_invalid_line_is_refused_with_its_number(line: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "m.csv"
    file.write_text("\r\n".join([",".join(COLUMNS), LINE, line, LINE.replace(SHA, "f" * 64), ""]), encoding="utf-8")
    kept = file.read_bytes()
    with pytest.raises(DataError, match=message):
        read_labels(file)
    with pytest.raises(DataError, match=message):
        set_label(file, example_row(1), label="good", by="")
    assert file.read_bytes() == kept


def test_other_files_are_refused_and_files_of_two_runs_can_be_concatenated(tmp_path: Path) -> None:
    file = tmp_path / "m.csv"
    file.write_text("path,label\na.png,good\n", encoding="utf-8")
    with pytest.raises(DataError, match="line 1: the columns are 'path,label'; give path,sha256,label"):
        read_labels(file)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="is not UTF-8 text"):
        read_labels(file)
    later = LINE.replace("a.png", "b.png")
    file.write_text("\n".join([",".join(COLUMNS), LINE, later, ""]), encoding="utf-8")
    assert [label.path for label in read_labels(file).values()] == ["b.png"]


LABEL_FOREVER = """
import itertools, sys
from pathlib import Path
from anomaly.runs.labels import set_label
for n in itertools.count():
    row = {"path": f"{n}.png", "sha256": f"{n:064x}", "status": "ok", "verdict": "defect", "score": 1.5}
    set_label(Path(sys.argv[1]), row, label="good", by="x" * 2000)
    print(n, flush=True)
"""


def test_killed_process_keeps_every_label_that_it_reported(tmp_path: Path) -> None:
    file = tmp_path / "m.csv"
    with subprocess.Popen(
        [sys.executable, "-c", LABEL_FOREVER, str(file)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        made = [int(process.stdout.readline()) for _ in range(40)]
        process.kill()
        made += [int(line) for line in process.stdout]
    labels = list(read_labels(file).values())
    assert len(labels) in (len(made), len(made) + 1)  # the last one may be written and not reported
    assert [label.path for label in labels[: len(made)]] == [f"{n}.png" for n in made]
    set_label(file, example_row(99_999), label="defect", by="")  # no lock is left behind
    assert len(read_labels(file)) == len(labels) + 1


def test_failed_write_leaves_the_previous_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "m.csv"
    set_label(file, example_row(1), label="good", by="")
    kept = file.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"No space left on device.*the previous labels stay"):
        set_label(file, example_row(2), label="good", by="")
    assert file.read_bytes() == kept


def test_concurrent_labels_are_all_kept(tmp_path: Path) -> None:
    file = tmp_path / "m.csv"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: set_label(file, example_row(n), label="good", by=""), range(60)))
    assert set(read_labels(file)) == {f"{n:064x}" for n in range(60)}
