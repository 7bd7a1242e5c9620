"""A run directory: the same bytes whatever interrupts the run, one writer, and a proof of every file at the end."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from anomaly.commands.main import run as cli
from anomaly.errors import OutputError, UsageError
from anomaly.imaging.image_file import write_png
from anomaly.inference.scorer import Scores
from anomaly.runs import score_run as run_module
from anomaly.runs import sinks
from anomaly.runs.run_directory import INPUTS, LEDGER, MANIFEST, SUMMARY, hash_files, read_ledger
from anomaly.runs.score_run import Wanted, score_run
from anomaly.runs.sinks import Format, read_rows
from anomaly.scoring.pipeline import ONLY, Settings, score_images
from anomaly.scoring.sources import open_source
from anomaly.system.files import sha256_of

NUM_IMAGES, COMMIT = 90, 16
FORMATS: tuple[Format, ...] = ("csv", "jsonl", "parquet")


class Fake:
    """A scorer that needs no model: the score is the mean, the map the image's first channel."""

    def __init__(self, model: Path, *, seconds: float = 0.0) -> None:
        self.calibration_images = np.linspace(0, 1, 20)
        image_stats = {
            name: {"mean": 60.0, "deviation": 20.0} for name in ("brightness", "contrast", "sharpness", "colour")
        }
        calibration = SimpleNamespace(scores=list(self.calibration_images))
        self.metadata = SimpleNamespace(
            white=255,
            resize="stretch",
            calibration=calibration,
            image_stats=image_stats,
            check_size=lambda *_, **__: None,
        )
        self.num_in_flight = 1
        self.sha256, self.device, self.seconds = sha256_of(model), "cpu", seconds

    def score(self, image: NDArray[np.uint8]) -> Scores:
        time.sleep(self.seconds)
        maps = image[..., 0].astype(np.float32) / 128
        return Scores(maps.mean(axis=(1, 2)), maps)


def settings() -> Settings:
    return Settings(threshold=1.0, batch_size=4, max_pixels=10**6, num_threads=2, review_threshold=0.8, measure=True)


def begin(images: str, model: str, folder: str, kind: Format, resume: bool, **more: Any) -> Any:
    """Score with the fake; small commits and parts, so that there are many of both."""
    run_module.COMMIT_IMAGES, sinks.PART_ROWS, sinks.GROUP_ROWS = COMMIT, 48, 16
    wanted = Wanted(
        format=kind, overlays_of="defect", maps=False, shard=more.get("shard", ""), by_product=False, watch=False
    )
    return score_run(
        open_source(images), name=images, models={ONLY: Path(model)},
        scorers={ONLY: Fake(Path(model), seconds=more.get("seconds", 0.0))},  # type: ignore[dict-item]
        settings=settings(), folder=Path(folder), wanted=wanted, resume=resume,
        engine=score_images,
    )  # fmt: skip


def die_at(number: int, images: str, model: str, folder: str, kind: Format, resume: bool) -> None:
    """Score, and be killed at the `number`-th call that brings something to the disk or renames it."""
    calls = 0

    def counted(original: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **named)

        return call

    os.fsync = counted(os.fsync)
    Path.replace = counted(Path.replace)  # type: ignore[method-assign]
    Path.unlink = counted(Path.unlink)  # type: ignore[method-assign]
    begin(images, model, folder, kind, resume)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for n in range(NUM_IMAGES):
        size = (8, 8) if n % 3 else (6, 10)
        level = 200 if n % 17 == 0 else 110 if n % 5 == 0 else 60
        image = np.clip(rng.normal(level, 20, (*size, 3)), 0, 255).astype(np.uint8)
        write_png(folder / f"{n:04d}.png", image)
    (folder / "0077.png").write_bytes(b"not an image")
    (folder / "0090 with\nnewline.png").write_bytes((folder / "0001.png").read_bytes())
    return folder


@pytest.fixture(scope="module")
def fake_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "fake.onnx"
    path.write_bytes(b"weights")
    return path


@pytest.fixture(scope="module", autouse=True)
def restored() -> Iterator[None]:
    kept = run_module.COMMIT_IMAGES, sinks.PART_ROWS, sinks.GROUP_ROWS
    yield
    run_module.COMMIT_IMAGES, sinks.PART_ROWS, sinks.GROUP_ROWS = kept


def rows_of(folder: Path) -> dict[str, bytes]:
    """Every file of a run that must not depend on interruptions."""
    names = [path for path in folder.rglob("*") if path.is_file() and path.name not in (LEDGER, MANIFEST, ".lock")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in names}


@pytest.fixture(scope="module")
def whole(images: Path, fake_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An uninterrupted run in every format."""
    found = {}
    for kind in FORMATS:
        found[kind] = tmp_path_factory.mktemp("whole") / kind
        begin(str(images), str(fake_model), str(found[kind]), kind, False)
    return found


@pytest.mark.parametrize("kind", FORMATS)
def test_run_holds_every_image_once_and_proves_its_files(kind: Format, whole: dict[str, Path], images: Path) -> None:
    folder = whole[kind]
    rows = list(read_rows(folder))
    assert [row["path"] for row in rows] == sorted(str(path) for path in images.iterdir())
    manifest = json.loads((folder / MANIFEST).read_text())
    assert manifest["files"] == hash_files(folder)
    assert {SUMMARY, INPUTS, LEDGER} < set(manifest["files"])
    summary = json.loads((folder / SUMMARY).read_text())
    assert summary["num_images"] == len(rows) == NUM_IMAGES + 1
    assert summary["errors"] == {"not_an_image": 1}
    assert summary["verdicts"]["review"] > 0
    by_verdict = [row["verdict"] for row in rows]
    assert summary["verdicts"] == {name: by_verdict.count(name) for name in ("good", "review", "defect")}
    assert len(list((folder / "overlays").iterdir())) == by_verdict.count("defect") > 0
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


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_killed_at_every_step_to_the_disk_and_resumed_gives_the_same_bytes(
    kind: Format, whole: dict[str, Path], images: Path, fake_model: Path, tmp_path: Path
) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["anomaly.runs.score_run", "anomaly.scoring.sources"])
    expected = rows_of(whole[kind])
    num_killed, number = 0, 1
    while True:
        folder = tmp_path / str(number)
        process = context.Process(target=die_at, args=(number, str(images), str(fake_model), str(folder), kind, False))
        process.start()
        process.join()
        if process.exitcode == 0:
            assert rows_of(folder) == expected
            break
        assert process.exitcode == -signal.SIGKILL
        num_killed += 1
        if (folder / MANIFEST).exists():
            assert json.loads((folder / MANIFEST).read_text())["files"].keys() == hash_files(folder).keys()
        else:
            begin(str(images), str(fake_model), str(folder), kind, bool(read_ledger(folder)))
        found = rows_of(folder)
        found.pop("rows/.waiting.jsonl", None)  # after the manifest nothing is owed any more
        assert found == expected, f"killed at step {number}"
        shutil.rmtree(folder)
        number += 1 if number < 16 else 3
    assert num_killed > 15


def test_killed_at_random_moments_again_and_again_gives_the_same_bytes(
    whole: dict[str, Path], images: Path, fake_model: Path, tmp_path: Path
) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["anomaly.runs.score_run", "anomaly.scoring.sources"])
    draw, folder = random.Random(0), tmp_path / "run"
    num_killed = 0
    for attempt in range(200):
        resume = bool(read_ledger(folder)) if folder.exists() else False
        arguments = (str(images), str(fake_model), str(folder), "csv", resume)
        process = context.Process(target=begin, args=arguments, kwargs={"seconds": 0.002})
        process.start()
        process.join(draw.uniform(0.05, 0.3 + 0.03 * attempt))  # a slow machine gets there too
        if process.is_alive():
            process.kill()
            num_killed += 1
        process.join()
        if (folder / MANIFEST).exists():
            break
    assert (folder / MANIFEST).exists()
    assert num_killed
    assert rows_of(folder) == rows_of(whole["csv"])


def test_one_process_writes_and_a_finished_run_stays(
    whole: dict[str, Path], images: Path, fake_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="holds a finished run"):
        begin(str(images), str(fake_model), str(whole["csv"]), "csv", True)
    context = multiprocessing.get_context("forkserver")
    arguments = (str(images), str(fake_model), str(tmp_path / "run"), "csv", False)
    process = context.Process(target=begin, args=arguments, kwargs={"seconds": 0.05})
    process.start()
    while not read_ledger(tmp_path / "run"):
        time.sleep(0.01)
    with pytest.raises(UsageError, match="another process writes"):
        begin(str(images), str(fake_model), str(tmp_path / "run"), "csv", True)
    process.kill()
    process.join()
    with pytest.raises(UsageError, match=r"unfinished run of .*: go on with --resume"):
        begin(str(images), str(fake_model), str(tmp_path / "run"), "csv", False)
    with pytest.raises(UsageError, match=r"begun with another format \('csv', now 'jsonl'\)"):
        begin(str(images), str(fake_model), str(tmp_path / "run"), "jsonl", True)
    begin(str(images), str(fake_model), str(tmp_path / "run"), "csv", True)
    assert rows_of(tmp_path / "run") == rows_of(whole["csv"])
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="is not empty and holds no run"):
        begin(str(images), str(fake_model), str(tmp_path / "taken"), "csv", False)


def test_full_disk_is_told_and_the_run_goes_on(
    whole: dict[str, Path], images: Path, fake_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
        begin(str(images), str(fake_model), str(tmp_path / "run"), "csv", False)
    begin(str(images), str(fake_model), str(tmp_path / "run"), "csv", True)
    assert rows_of(tmp_path / "run") == rows_of(whole["csv"])


@pytest.mark.parametrize("at", [1, 2, 9])
def test_output_that_turns_read_only_is_told_and_the_run_goes_on(
    at: int, whole: dict[str, Path], images: Path, fake_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a system does with a disk that fails: whatever is to reach it is refused from some moment on."""
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
            begin(str(images), str(fake_model), str(tmp_path / "run"), "csv", False)
    begin(str(images), str(fake_model), str(tmp_path / "run"), "csv", True)
    assert rows_of(tmp_path / "run") == rows_of(whole["csv"])


def test_read_only_folder_is_told_before_anything_is_scored(
    images: Path, fake_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: Path, *_: Any, **__: Any) -> None:
        raise OSError(30, "Read-only file system", str(self))

    monkeypatch.setattr(Path, "mkdir", refused)
    monkeypatch.setattr(Fake, "score", lambda *_: pytest.fail("scored"))
    with pytest.raises(OutputError, match=r"run.* cannot be written \(Read-only file system\)"):
        begin(str(images), str(fake_model), str(tmp_path / "run"), "csv", False)


def test_images_that_come_and_go_while_a_run_is_interrupted_change_no_other_row(
    whole: dict[str, Path], images: Path, fake_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "images"
    shutil.copytree(images, copy)
    original = run_module.RunDirectory.commit

    def stop(self: Any, **named: Any) -> None:
        original(self, **named)
        raise KeyboardInterrupt

    monkeypatch.setattr(run_module.RunDirectory, "commit", stop)
    with pytest.raises(KeyboardInterrupt):
        begin(str(copy), str(fake_model), str(tmp_path / "run"), "jsonl", False)
    monkeypatch.undo()
    (copy / "0000a.png").write_bytes((copy / "0001.png").read_bytes())
    (copy / "0085.png").unlink()
    begin(str(copy), str(fake_model), str(tmp_path / "run"), "jsonl", True)
    before, after = (
        [row | {"path": Path(row["path"]).name, "message": bool(row["message"])} for row in read_rows(folder)]
        for folder in (whole["jsonl"], tmp_path / "run")
    )
    assert len(before) == len(after)
    differ = [b["path"] for a, b in zip(before, after, strict=True) if a != b]
    assert differ == ["0085.png"]
    assert [row["status"] for row in after if row["path"] == "0085.png"] == ["missing"]


def test_shards_take_every_nth_image(images: Path, fake_model: Path, tmp_path: Path, whole: dict[str, Path]) -> None:
    rows = []
    for number in (1, 2, 3):
        folder = tmp_path / str(number)
        begin(str(images), str(fake_model), str(folder), "jsonl", False, shard=f"{number}/3")
        rows.append([row["path"] for row in read_rows(folder)])
    paths = [row["path"] for row in read_rows(whole["jsonl"])]
    assert rows == [paths[0::3], paths[1::3], paths[2::3]]
    for wrong in ("0/3", "4/3", "x", "1"):
        with pytest.raises(UsageError, match="give i/n"):
            begin(str(images), str(fake_model), str(tmp_path / "wrong"), "csv", False, shard=wrong)
    assert not (tmp_path / "wrong").exists()


def test_verb_scores_into_a_run_directory(model: Path, category: Path, tmp_path: Path) -> None:
    command = ["score", str(model), str(category / "test"), "--run", str(tmp_path / "run"), "--maps", "--device", "cpu"]
    assert cli(command) == 0
    rows = list(read_rows(tmp_path / "run"))
    assert len(rows) == 12
    assert (
        cli(["score", str(model), str(category / "test"), "--out", str(tmp_path / "rows.csv"), "--device", "cpu"]) == 0
    )
    assert (tmp_path / "rows.csv").read_bytes() == (tmp_path / "run" / "rows.csv").read_bytes()
    assert len(list((tmp_path / "run" / "maps").iterdir())) == 12
    assert cli(command) == 2
    assert cli([*command[:3]]) == 2
    assert cli([*command, "--out", "x.csv"]) == 2
