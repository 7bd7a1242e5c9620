"""Finished runs: replay, comparison and merging of shards."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest

from anomaly.commands.main import run as cli
from anomaly.errors import DataError, UsageError
from anomaly.runs.diff import diff
from anomaly.runs.merge import merge
from anomaly.runs.replay import TOLERANCE, replay
from anomaly.runs.run_files import check_manifest
from anomaly.runs.sinks import read_rows


def score(model: Path, images: Path | str, run: Path, *options: str) -> Path:
    code = cli(["score", str(model), str(images), "--run", str(run), "--device", "cpu", "--batch-size", "2", *options])
    assert code in (0, 3)
    return run


@pytest.fixture
def images(category: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    shutil.copytree(category / "test", folder)
    (folder / "bad.png").write_text("not an image")
    return folder


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_replay_here_is_identical(
    model: Path, images: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = score(model, images, tmp_path / "run", "--format", kind)
    capsys.readouterr()
    report, again = replay(run), replay(str(run), sample=1, seed=3)
    assert capsys.readouterr() == ("", "")  # the library prints nothing
    assert report.is_exact
    assert again.is_exact
    assert report.mismatch is again.mismatch is None
    assert report.num_scored == report.num_images == 13
    assert again.num_scored == 8  # one window
    with pytest.raises(UsageError, match="sample 0: give at least 1"):
        replay(run, sample=0)


def test_replay_with_another_batch_size_is_within_the_tolerance(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = score(model, images, tmp_path / "run")
    report = replay(run, batch_size=5)
    assert report.mismatch is None
    assert not report.is_exact
    assert report.largest_difference <= TOLERANCE
    assert cli(["replay", str(run), "--batch-size", "5"]) == 0
    assert "within 1e-05" in capsys.readouterr().err


def test_replay_finds_moved_images_by_their_hash(model: Path, images: Path, tmp_path: Path) -> None:
    run = score(model, images, tmp_path / "run")
    archive = tmp_path / "archive"
    archive.mkdir()
    for number, path in enumerate(sorted(images.rglob("*.png"))):
        path.rename(archive / f"{number}.png")
    assert replay(run, images=str(archive)).mismatch is None
    with pytest.raises(DataError, match="is missing, and no folder was searched"):
        replay(run)
    other = tmp_path / "other"
    other.mkdir()
    (other / "0.png").write_bytes(b"another image")
    with pytest.raises(DataError, match="other has no image with its SHA-256"):
        replay(run, images=str(other))


def test_replay_reports_the_first_row_that_differs(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = score(model, images, tmp_path / "run")
    changed = images / "good" / "002.png"
    changed.write_bytes((images / "good" / "001.png").read_bytes())
    mismatch = replay(run).mismatch
    assert mismatch is not None
    assert mismatch.path == str(changed)
    assert "sha256 was" in mismatch.text
    capsys.readouterr()
    assert cli(["replay", str(run)]) == 1
    assert f"{changed}: {mismatch.text}" in capsys.readouterr().out


def test_changed_added_and_missing_files_of_a_run_are_named(model: Path, images: Path, tmp_path: Path) -> None:
    run = score(model, images, tmp_path / "run")
    check_manifest(run)
    rows = run / "rows.csv"
    good = rows.read_bytes()
    rows.write_bytes(good.replace(b"defect", b"good__", 1))
    with pytest.raises(DataError, match=r"rows.csv was changed"):
        replay(run)
    rows.write_bytes(good)
    (run / "more.txt").write_text("x")
    with pytest.raises(DataError, match=r"more.txt is not in the run's manifest"):
        replay(run)
    (run / "more.txt").unlink()
    (run / "inputs.jsonl").rename(tmp_path / "inputs.jsonl")
    with pytest.raises(DataError, match=r"inputs.jsonl is missing"):
        replay(run)
    (run / "manifest.json").unlink()
    with pytest.raises(DataError, match="holds no finished run"):
        replay(run)


@pytest.mark.slow
def test_diff_lists_the_verdicts_that_change(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = score(model, images, tmp_path / "a")
    b = score(model, images, tmp_path / "b", "--threshold", "1000")
    num_defects = sum(row["verdict"] == "defect" for row in read_rows(a))
    capsys.readouterr()
    same, result = diff(a, a), diff(str(a), b)
    assert capsys.readouterr() == ("", "")  # the library prints nothing
    assert same.changes == []
    assert result.counts == {"defect -> good": num_defects}
    assert (result.num_images, result.run_a.threshold, result.run_b.threshold) == (13, 1.0, 1000.0)
    assert cli(["diff", str(a), str(b), "--out", str(tmp_path / "changes.csv")]) == 0
    assert f"{num_defects} verdicts change" in capsys.readouterr().out
    with (tmp_path / "changes.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == num_defects
    assert all(row["verdict_a"] == "defect" and row["score_a"] == row["score_b"] for row in rows)
    other = score(model, images / "good", tmp_path / "other")
    with pytest.raises(DataError, match="hold different images"):
        diff(a, other)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_merged_shards_equal_the_whole_run(
    model: Path, images: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--format", kind, "--overlays-of", "none")
    whole = score(model, images, tmp_path / "whole", *options)
    shards = [score(model, images, tmp_path / str(n), *options, "--shard", f"{n}/3") for n in (1, 2, 3)]
    capsys.readouterr()
    result = merge([shards[2], str(shards[0]), shards[1]], out=tmp_path / "merged")
    assert capsys.readouterr() == ("", "")  # the library prints nothing
    merged = result.path
    assert (result.num_images, result.num_shards) == (13, 3)
    check_manifest(merged)
    a, b = list(read_rows(whole)), list(read_rows(merged))
    assert [row["path"] for row in a] == [row["path"] for row in b]
    for one, other in zip(a, b, strict=True):
        assert one["verdict"] == other["verdict"]
        assert one["sha256"] == other["sha256"]
        if one["score"] is not None:
            assert one["score"] == pytest.approx(other["score"], rel=1e-5)
    summary, again = (json.loads((run / "summary.json").read_text()) for run in (whole, merged))
    assert set(summary.pop("drift")) == {"all"}  # the shards have their own drift monitors
    assert summary == again
    with pytest.raises(UsageError, match="each once"):
        merge(shards[:2], out=tmp_path / "x")
    with pytest.raises(UsageError, match="is not a shard"):
        merge([whole], out=tmp_path / "x")
    with pytest.raises(UsageError, match="is not empty"):
        merge(shards, out=merged)
    other = score(model, images, tmp_path / "other", *options, "--shard", "3/3", "--threshold", "5")
    with pytest.raises(UsageError, match="threshold differ"):
        merge([*shards[:2], other], out=tmp_path / "x")
