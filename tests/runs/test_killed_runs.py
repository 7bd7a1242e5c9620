"""Runs that are killed and resumed have the bytes of an uninterrupted run."""

from __future__ import annotations

import json
import random
import shutil
import signal
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from anomaly.errors import UsageError
from anomaly.runs.run_files import MANIFEST, hash_files, read_ledger
from anomaly.runs.sinks import Format
from tests.runs.fake_scoring import contents, die_at, score_fake_run, wait_in_inference

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_kill_at_every_step_and_resume(
    kind: Format,
    whole: dict[str, Path],
    mixed_images: Path,
    fake_model: Path,
    child_processes: ForkServerContext,
    tmp_path: Path,
) -> None:
    expected = contents(whole[kind])
    num_killed, number = 0, 1
    while True:
        folder = tmp_path / str(number)
        process = child_processes.Process(target=die_at, args=(number, mixed_images, fake_model, folder, kind))
        process.start()
        process.join()
        if process.exitcode == 0:
            assert contents(folder) == expected
            break
        assert process.exitcode == -signal.SIGKILL
        num_killed += 1
        if (folder / MANIFEST).exists():
            assert json.loads((folder / MANIFEST).read_text())["files"].keys() == hash_files(folder).keys()
        else:
            score_fake_run(mixed_images, fake_model, folder, kind, resume=bool(read_ledger(folder)))
        found = contents(folder)
        found.pop("rows/.waiting.jsonl", None)  # may stay after the manifest
        assert found == expected, f"killed at step {number}"
        shutil.rmtree(folder)
        number += 1 if number < 16 else 3
    assert num_killed > 15


@pytest.mark.parametrize("seed", [0, 1])
def test_repeated_kills_at_drawn_steps(
    seed: int,
    whole: dict[str, Path],
    mixed_images: Path,
    fake_model: Path,
    child_processes: ForkServerContext,
    tmp_path: Path,
) -> None:
    """Every child dies at a drawn step unless the run has fewer steps left; inferences are steps, too."""
    draw, folder, num_killed = random.Random(seed), tmp_path / "run", 0
    while not (folder / MANIFEST).exists():
        number = draw.randint(1, 20 + num_killed)
        resume = folder.exists() and bool(read_ledger(folder))
        process = child_processes.Process(
            target=die_at,
            args=(number, mixed_images, fake_model, folder, "csv"),
            kwargs={"in_inference": True, "resume": resume},
        )
        process.start()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        num_killed += process.exitcode != 0
    assert num_killed > 0  # a whole run has more than 20 steps
    assert contents(folder) == contents(whole["csv"])


def test_one_process_writes_and_options_stay(
    whole: dict[str, Path],
    mixed_images: Path,
    fake_model: Path,
    child_processes: ForkServerContext,
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    reached = child_processes.Event()
    process = child_processes.Process(target=wait_in_inference, args=(reached, mixed_images, fake_model, run, "csv"))
    process.start()
    reached.wait()
    with pytest.raises(UsageError, match="another process writes"):
        score_fake_run(mixed_images, fake_model, run, "csv", resume=True)
    process.kill()
    process.join()
    with pytest.raises(UsageError, match=r"unfinished run of .*: give --resume"):
        score_fake_run(mixed_images, fake_model, run, "csv")
    with pytest.raises(UsageError, match=r"began with another format \('csv', now 'jsonl'\)"):
        score_fake_run(mixed_images, fake_model, run, "jsonl", resume=True)
    score_fake_run(mixed_images, fake_model, run, "csv", resume=True)
    assert contents(run) == contents(whole["csv"])
