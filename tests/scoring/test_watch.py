"""Images that arrive while the run is on: each once, only when complete, until stopped; and on again after a kill."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from anomaly.errors import DataError
from anomaly.runs.replay import replay
from anomaly.runs.run_directory import MANIFEST, read_ledger
from anomaly.runs.sinks import read_rows
from anomaly.scoring.folder_watch import watch_folder

MAIN = "import sys; from anomaly.commands.main import run; sys.exit(run(sys.argv[1:]))"


def until(condition: Callable[[], bool], *, seconds: float = 60.0) -> None:
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() - begin < seconds
        time.sleep(0.05)


def test_file_is_given_once_it_has_stopped_growing(category: Path, tmp_path: Path) -> None:
    stop, given = threading.Event(), []
    data = next((category / "test/good").iterdir()).read_bytes()

    def watch() -> None:
        for item in watch_folder(tmp_path, seen=set(), stop=stop, settle=0.4):
            if item is not None:
                given.append((item.path, Path(item.path).stat().st_size))

    thread = threading.Thread(target=watch)
    thread.start()
    (tmp_path / "empty.png").touch()
    with (tmp_path / "slow.png").open("wb") as file:
        for at in range(0, len(data), len(data) // 5 + 1):
            file.write(data[at : at + len(data) // 5 + 1])
            file.flush()
            time.sleep(0.2)
    until(lambda: len(given) == 1)
    time.sleep(0.5)
    stop.set()
    thread.join()
    assert given == [(str(tmp_path / "slow.png"), len(data))]
    with pytest.raises(DataError, match="no folder to watch"):
        next(iter(watch_folder(tmp_path / "none", seen=set(), stop=stop)))


def test_watch_goes_on_after_a_kill_and_ends_with_a_manifest(model: Path, category: Path, tmp_path: Path) -> None:
    images = sorted((category / "test").rglob("*.png"))
    arriving, run = tmp_path / "arriving", tmp_path / "run"
    arriving.mkdir()
    command = [
        sys.executable, "-c", MAIN, "score", str(model), str(arriving), "--run", str(run), "--watch", "--device", "cpu",
    ]  # fmt: skip

    def rows() -> int:
        return sum(1 for _ in read_rows(run)) if (run / "rows.csv").exists() else 0

    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        until(lambda: run.exists() and len(read_ledger(run)) > 1)
        for number, path in enumerate(images[:3]):
            shutil.copyfile(path, arriving / f"{number}.png")
        until(lambda: rows() >= 3)
        process.kill()
    shutil.copyfile(images[3], arriving / "3.png")
    with subprocess.Popen([*command, "--resume"], stderr=subprocess.DEVNULL) as process:
        (arriving / "4.png.part").write_bytes(images[4].read_bytes())
        (arriving / "4.png.part").rename(arriving / "4.png")
        until(lambda: rows() >= 5)
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait() == 0
    found = list(read_rows(run))
    assert sorted(row["path"] for row in found) == [str(arriving / f"{n}.png") for n in range(5)]
    assert all(row["status"] == "ok" for row in found)
    assert (run / MANIFEST).exists()
    assert replay(run) == 0
