"""Images that arrive in a watched folder: each once, only when complete, also after a crash."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from anomaly.errors import DataError
from anomaly.runs.replay import replay
from anomaly.runs.run_files import MANIFEST, read_ledger
from anomaly.runs.sinks import read_rows
from anomaly.scoring import folder_watch
from anomaly.scoring.folder_watch import POLL_SECONDS, watch_folder

MAIN = "import sys; from anomaly.commands.main import run; sys.exit(run(sys.argv[1:]))"


class ScriptedStop(threading.Event):
    """A stop event with its own clock: each wait moves the clock and runs the next step of a script."""

    def __init__(self, script: Iterator[None]) -> None:
        super().__init__()
        self.now = 0.0
        self._script = script

    def wait(self, timeout: float | None = None) -> bool:
        self.now += timeout or 0.0
        try:
            next(self._script)
        except StopIteration:
            self.set()
        return self.is_set()


def test_file_is_yielded_once_after_its_last_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow, data = tmp_path / "slow.png", bytes(1000)

    def script() -> Iterator[None]:
        (tmp_path / "empty.png").touch()
        for at in range(0, len(data), 200):
            with slow.open("ab") as file:
                file.write(data[at : at + 200])
            yield
        for _ in range(20):
            yield

    stop = ScriptedStop(script())
    monkeypatch.setattr(folder_watch.time, "monotonic", lambda: stop.now)
    yielded = [
        (item and item.path, stop.now, slow.stat().st_size if item else None)
        for item in watch_folder(tmp_path, seen=set(), stop=stop, stable_seconds=4 * POLL_SECONDS)
    ]
    last_write = 5 * POLL_SECONDS
    found = last_write + 4 * POLL_SECONDS
    assert yielded == [(str(slow), found, len(data)), (None, found, None)]


def test_complete_files_are_yielded_before_the_watch_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def script() -> Iterator[None]:
        for name in ("b.png", "a.png"):
            (tmp_path / name).write_bytes(b"image")
        os.utime(tmp_path / "b.png", ns=(1, 1))
        os.utime(tmp_path / "a.png", ns=(2, 2))
        yield
        stop.now += 10.0
        stop.set()
        yield

    stop = ScriptedStop(script())
    monkeypatch.setattr(folder_watch.time, "monotonic", lambda: stop.now)
    seen = {str(tmp_path / "old.png")}
    (tmp_path / "old.png").write_bytes(b"image")
    items = list(watch_folder(str(tmp_path), seen=seen, stop=stop))
    assert [item and Path(item.path).name for item in items] == ["b.png", "a.png", None]  # by date
    assert {Path(path).name for path in seen} == {"old.png", "a.png", "b.png"}


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a folder"):
        next(iter(watch_folder(tmp_path / "none", seen=set(), stop=threading.Event())))


@pytest.mark.slow
def test_watch_resumes_after_a_kill_and_ends_with_a_manifest(model: Path, category: Path, tmp_path: Path) -> None:
    images = sorted((category / "test").rglob("*.png"))
    folder, run = tmp_path / "arriving", tmp_path / "run"
    folder.mkdir()
    command = [
        sys.executable, "-c", MAIN, "score", str(model), str(folder), "--run", str(run), "--watch", "--device", "cpu",
    ]  # fmt: skip

    def num_rows() -> int:
        return sum(1 for _ in read_rows(run)) if (run / "rows.csv").exists() else 0

    def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
        while not condition():
            assert process.poll() is None, "the process has ended"
            time.sleep(0.05)

    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        wait_for(lambda: run.exists() and len(read_ledger(run)) > 1, process)
        for number, path in enumerate(images[:3]):
            shutil.copyfile(path, folder / f"{number}.png")
        wait_for(lambda: num_rows() >= 3, process)
        process.kill()
    shutil.copyfile(images[3], folder / "3.png")
    with subprocess.Popen([*command, "--resume"], stderr=subprocess.DEVNULL) as process:
        (folder / "4.png.part").write_bytes(images[4].read_bytes())
        (folder / "4.png.part").rename(folder / "4.png")
        wait_for(lambda: num_rows() >= 5, process)
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait() == 0
    found = list(read_rows(run))
    assert sorted(row["path"] for row in found) == [str(folder / f"{n}.png") for n in range(5)]
    assert all(row["status"] == "ok" for row in found)
    assert (run / MANIFEST).exists()
    assert replay(run).mismatch is None
