"""Marks beside a finished run: their file."""

from __future__ import annotations

import csv
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from anomaly.commands.main import run as cli
from anomaly.errors import DataError, OutputError
from anomaly.runs.labels import COLUMNS, marks_file, read_marks, set_mark, unset_mark
from anomaly.runs.replay import replay
from anomaly.runs.sinks import read_rows

SHA = "0123456789abcdef" * 4
LINE = f"a.png,{SHA},good,defect,1.5,2026-11-21T10:00:00+00:00,"


def made_up_row(number: int) -> dict[str, Any]:
    return {"path": f"{number}.png", "sha256": f"{number:064x}", "status": "ok", "verdict": "defect", "score": 1.5}


def test_marks_lie_beside_the_run_which_stays_as_its_manifest_says(model: Path, category: Path, tmp_path: Path) -> None:
    night = tmp_path / "night"
    assert cli(["score", str(model), str(category / "test"), "--run", str(night), "--device", "cpu"]) == 0
    rows = list(read_rows(night))
    file = marks_file(night)
    assert file == night.parent / "night.marks.csv"
    assert read_marks(file) == {}
    one = set_mark(file, rows[0], mark="good", by='Zoë "QA", shift 3')
    other = set_mark(file, rows[1], mark="defect", by="")
    assert read_marks(file) == {rows[0]["sha256"]: one, rows[1]["sha256"]: other}
    assert (one.path, one.verdict, one.score, one.by) == (
        rows[0]["path"], rows[0]["verdict"], rows[0]["score"], 'Zoë "QA", shift 3',
    )  # fmt: skip
    with file.open(encoding="utf-8", newline="") as opened:
        assert next(csv.reader(opened)) == ["path", "sha256", "mark", "verdict", "score", "marked_at", "by"]
    changed = set_mark(file, rows[0], mark="defect", by="")
    assert read_marks(file)[rows[0]["sha256"]] == changed
    unset_mark(file, rows[1]["sha256"])
    unset_mark(file, SHA)  # never marked
    assert list(read_marks(file).values()) == [changed]
    assert replay(night) == 0
    assert replay(night, sample=1) == 0


def test_error_row_is_not_marked(tmp_path: Path) -> None:
    row = made_up_row(1) | {"score": None, "verdict": "", "status": "truncated"}
    with pytest.raises(DataError, match=r"1\.png has no verdict to mark: its row is an error \(truncated\)"):
        set_mark(tmp_path / "m.csv", row, mark="good", by="")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (LINE.replace("good", "fine"), r"m\.csv, line 3: mark 'fine': there are good and defect"),
        (LINE.replace(SHA, SHA[:-1]), "line 3: path 'a.png', sha256 .* of 64 hexadecimal digits"),
        (LINE.replace(SHA, SHA.upper()), "64 hexadecimal digits"),
        (LINE.replace("a.png", ""), "line 3: path ''"),
        (LINE.replace("1.5", "high"), "line 3: score 'high': a number is needed"),
        (LINE.replace("1.5", "nan"), "line 3: score 'nan'"),
        (LINE.replace(",defect,", ",bad,"), "line 3: verdict 'bad'"),
        (LINE.replace("+00:00", ""), "line 3: marked_at '2026-11-21T10:00:00': a date in UTC"),
        (LINE.replace("+00:00", "+02:00"), "line 3: marked_at"),
        (LINE + ",more", "line 3: has 8 values, a mark has 7"),
        ("", "line 3: has 0 values"),
        (f'"a.png{LINE}', r"line \d: is no CSV"),
        (LINE.replace("good", "defect"), "line 3: a.png is marked defect, and line 2 marks the same bytes good"),
    ],
)
def test_nonsense_is_refused_with_its_line(line: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "m.csv"
    file.write_text("\r\n".join([",".join(COLUMNS), LINE, line, LINE.replace(SHA, "f" * 64), ""]), encoding="utf-8")
    kept = file.read_bytes()
    with pytest.raises(DataError, match=message):
        read_marks(file)
    with pytest.raises(DataError, match=message):
        set_mark(file, made_up_row(1), mark="good", by="")
    assert file.read_bytes() == kept


def test_foreign_files_are_refused_and_files_of_two_runs_can_be_put_together(tmp_path: Path) -> None:
    file = tmp_path / "m.csv"
    file.write_text("path,mark\na.png,good\n", encoding="utf-8")
    with pytest.raises(DataError, match="line 1: the columns are 'path,mark'; marks have path,sha256,mark"):
        read_marks(file)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="is no text in UTF-8"):
        read_marks(file)
    later = LINE.replace("a.png", "b.png")
    file.write_text("\n".join([",".join(COLUMNS), LINE, later, ""]), encoding="utf-8")
    assert [mark.path for mark in read_marks(file).values()] == ["b.png"]


FOREVER = """
import itertools, sys
from pathlib import Path
from anomaly.runs.labels import set_mark
for n in itertools.count():
    row = {"path": f"{n}.png", "sha256": f"{n:064x}", "status": "ok", "verdict": "defect", "score": 1.5}
    set_mark(Path(sys.argv[1]), row, mark="good", by="x" * 2000)
    print(n, flush=True)
"""


def test_killed_process_loses_no_mark_that_it_made(tmp_path: Path) -> None:
    file = tmp_path / "m.csv"
    with subprocess.Popen([sys.executable, "-c", FOREVER, str(file)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        made = [int(process.stdout.readline()) for _ in range(40)]
        process.kill()
        made += [int(line) for line in process.stdout]
    marks = list(read_marks(file).values())
    assert len(marks) in (len(made), len(made) + 1)  # the last may have been written, not told
    assert [mark.path for mark in marks[: len(made)]] == [f"{n}.png" for n in made]
    set_mark(file, made_up_row(99_999), mark="defect", by="")  # no lock is left behind
    assert len(read_marks(file)) == len(marks) + 1


def test_failed_write_leaves_the_marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "m.csv"
    set_mark(file, made_up_row(1), mark="good", by="")
    kept = file.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("anomaly.runs.labels.os.fsync", full)
    with pytest.raises(OutputError, match=r"No space left on device.*the marks before stay"):
        set_mark(file, made_up_row(2), mark="good", by="")
    assert file.read_bytes() == kept


def test_marks_made_at_once_are_all_kept(tmp_path: Path) -> None:
    file = tmp_path / "m.csv"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: set_mark(file, made_up_row(n), mark="good", by=""), range(60)))
    assert set(read_marks(file)) == {f"{n:064x}" for n in range(60)}
