"""A run: every image once, hashes of all files, and recovery from failures of the disk."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anomaly.commands.main import run as cli
from anomaly.errors import OutputError, UsageError
from anomaly.runs import sinks
from anomaly.runs.run_files import INPUTS, LEDGER, MANIFEST, SUMMARY, hash_files, read_ledger
from anomaly.runs.run_writer import RunWriter
from anomaly.runs.sinks import Format, read_rows
from tests.runs.conftest import FORMATS, NUM_IMAGES
from tests.runs.fake_scoring import FakeScorer, contents, score_fake_run


@pytest.mark.parametrize("kind", FORMATS)
def test_run_holds_every_image_once_and_the_hash_of_every_file(
    kind: Format, whole: dict[str, Path], mixed_images: Path
) -> None:
    folder = whole[kind]
    rows = list(read_rows(folder))
    assert [row["path"] for row in rows] == sorted(str(path) for path in mixed_images.iterdir())
    manifest = json.loads((folder / MANIFEST).read_text())
    assert manifest["files"] == hash_files(folder)
    assert {SUMMARY, INPUTS, LEDGER} < set(manifest["files"])
    summary = json.loads((folder / SUMMARY).read_text())
    assert summary["num_images"] == len(rows) == NUM_IMAGES + 1
    assert summary["errors"] == {"not_an_image": 1}
    assert summary["verdicts"]["review"] > 0
    verdicts = [row["verdict"] for row in rows]
    assert summary["verdicts"] == {name: verdicts.count(name) for name in ("good", "review", "defect")}
    assert len(list((folder / "overlays").iterdir())) == verdicts.count("defect") > 0
    ledger = read_ledger(folder)
    assert [entry["event"] for entry in ledger][:2] == ["begin", "listed"]
    assert ledger[-1]["event"] == "end"
    assert not any(path.name.startswith(".waiting") for path in folder.rglob("*"))


def test_formats_hold_the_same_rows(whole: dict[str, Path]) -> None:
    csv, lines, parquet = (list(read_rows(whole[kind])) for kind in FORMATS)
    assert csv == lines
    for a, b in zip(lines, parquet, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            single = name in ("score", "threshold", "p_value") and a[name] is not None
            assert (np.float32(a[name]) if single else a[name]) == b[name]
    assert len(list((whole["parquet"] / "rows").iterdir())) == 2  # of 48 rows


def test_library_prints_nothing_and_returns_the_counts(
    mixed_images: Path, fake_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    summary = score_fake_run(mixed_images, fake_model, tmp_path / "run", "csv")
    assert capfd.readouterr() == ("", "")
    rows = list(read_rows(tmp_path / "run"))
    assert summary.num_images == len(rows)
    assert summary.num_defect == sum(row["verdict"] == "defect" for row in rows)
    assert summary.num_errors == 1
    assert summary.drift == json.loads((tmp_path / "run" / SUMMARY).read_text())["drift"]
    assert set(summary.seconds) == {"decode", "infer"}


def test_finished_runs_and_other_folders_are_refused(
    whole: dict[str, Path], mixed_images: Path, fake_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="holds a finished run"):
        score_fake_run(mixed_images, fake_model, whole["csv"], "csv", resume=True)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="is not empty and holds no run"):
        score_fake_run(mixed_images, fake_model, tmp_path / "taken", "csv")


def test_full_disk_is_an_error_and_the_run_resumes(
    whole: dict[str, Path], mixed_images: Path, fake_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0
    commit = sinks.TextSink.commit

    def full(self: sinks.TextSink) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise OSError(28, "No space left on device")
        return commit(self)

    monkeypatch.setattr(sinks.TextSink, "commit", full)
    with pytest.raises(OutputError, match=r"No space left on device.*--resume"):
        score_fake_run(mixed_images, fake_model, tmp_path / "run", "csv")
    score_fake_run(mixed_images, fake_model, tmp_path / "run", "csv", resume=True)
    assert contents(tmp_path / "run") == contents(whole["csv"])


@pytest.mark.parametrize("at", [1, 2, 9])
def test_disk_that_turns_read_only_is_an_error_and_the_run_resumes(
    at: int,
    whole: dict[str, Path],
    mixed_images: Path,
    fake_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The system makes a failing disk read-only: from then on every flush is refused."""
    calls = 0
    fsync = os.fsync

    def refused(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls >= at:
            raise OSError(30, "Read-only file system")
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refused)
        with pytest.raises(OutputError, match=r"Read-only file system.*--resume"):
            score_fake_run(mixed_images, fake_model, tmp_path / "run", "csv")
    score_fake_run(mixed_images, fake_model, tmp_path / "run", "csv", resume=True)
    assert contents(tmp_path / "run") == contents(whole["csv"])


def test_read_only_folder_is_an_error_before_any_inference(
    mixed_images: Path, fake_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: Path, *_: Any, **__: Any) -> None:
        raise OSError(30, "Read-only file system", str(self))

    monkeypatch.setattr(Path, "mkdir", refused)
    monkeypatch.setattr(FakeScorer, "score", lambda *_: pytest.fail("scored"))
    with pytest.raises(OutputError, match=r"run.* cannot be written \(Read-only file system\)"):
        score_fake_run(mixed_images, fake_model, tmp_path / "run", "csv")


def test_images_added_or_deleted_during_an_interruption_change_no_other_row(
    whole: dict[str, Path], mixed_images: Path, fake_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "images"
    shutil.copytree(mixed_images, copy)
    commit = RunWriter.commit

    def interrupt(self: RunWriter, **named: Any) -> None:
        commit(self, **named)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunWriter, "commit", interrupt)
        with pytest.raises(KeyboardInterrupt):
            score_fake_run(copy, fake_model, tmp_path / "run", "jsonl")
    (copy / "0000a.png").write_bytes((copy / "0001.png").read_bytes())
    (copy / "0085.png").unlink()
    score_fake_run(copy, fake_model, tmp_path / "run", "jsonl", resume=True)
    before, after = (
        [row | {"path": Path(row["path"]).name, "message": bool(row["message"])} for row in read_rows(folder)]
        for folder in (whole["jsonl"], tmp_path / "run")
    )
    assert len(before) == len(after)
    assert [b["path"] for a, b in zip(before, after, strict=True) if a != b] == ["0085.png"]
    assert [row["status"] for row in after if row["path"] == "0085.png"] == ["missing"]


def test_shard_takes_every_nth_image(
    mixed_images: Path, fake_model: Path, tmp_path: Path, whole: dict[str, Path]
) -> None:
    rows = []
    for number in (1, 2, 3):
        folder = tmp_path / str(number)
        score_fake_run(mixed_images, fake_model, folder, "jsonl", shard=f"{number}/3")
        rows.append([row["path"] for row in read_rows(folder)])
    paths = [row["path"] for row in read_rows(whole["jsonl"])]
    assert rows == [paths[0::3], paths[1::3], paths[2::3]]
    for wrong in ("0/3", "4/3", "x", "1", ""):
        with pytest.raises(UsageError, match="give I/N"):
            score_fake_run(mixed_images, fake_model, tmp_path / "wrong", "csv", shard=wrong)
    assert not (tmp_path / "wrong").exists()


@pytest.mark.slow
def test_verb_scores_into_a_run(model: Path, category: Path, tmp_path: Path) -> None:
    command = ["score", str(model), str(category / "test"), "--run", str(tmp_path / "run"), "--maps", "--device", "cpu"]
    assert cli(command) == 0
    rows = list(read_rows(tmp_path / "run"))
    assert len(rows) == 12
    table = tmp_path / "rows.csv"
    assert cli(["score", str(model), str(category / "test"), "--out", str(table), "--device", "cpu"]) == 0
    assert table.read_bytes() == (tmp_path / "run" / "rows.csv").read_bytes()
    assert len(list((tmp_path / "run" / "maps").iterdir())) == 12
    assert cli(command) == 2
    assert cli([*command[:3]]) == 2
    assert cli([*command, "--out", "x.csv"]) == 2
