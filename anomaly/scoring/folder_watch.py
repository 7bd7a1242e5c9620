"""Watch a folder: each new image once, as soon as its file is complete."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from anomaly.data.image_files import image_files
from anomaly.errors import DataError
from anomaly.scoring.sources import Item
from anomaly.system.files import as_path

POLL_SECONDS = 0.25
STABLE_SECONDS = 1.0
"""Time without a change of size or date after which a file counts as complete"""


def watch_folder(
    folder: str | Path, *, seen: set[str], stop: threading.Event, stable_seconds: float = STABLE_SECONDS
) -> Iterator[Item | None]:
    """Yield the images of a folder and its subfolders as they arrive, until stopped.

    Args:
        folder: folder to watch.
        seen: paths to skip; yielded paths are added.
        stop: event that ends the watch, after all complete files are yielded.
        stable_seconds: seconds without a change after which a file counts as complete.

    Yields:
        Complete images in the order of their dates; a None after each burst, before the next wait.

    Raises:
        DataError: the folder does not exist.
    """
    folder = as_path(folder, name="folder")
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder: name an existing folder to watch")
    states: dict[str, tuple[tuple[int, int], float]] = {}
    while True:
        stopping = stop.is_set()
        complete = []
        for path in image_files(folder):
            name = str(path)
            if name in seen:
                continue
            try:
                status = path.stat()
            except OSError:  # deleted since the folder was listed
                states.pop(name, None)
                continue
            state = (status.st_size, status.st_mtime_ns)
            if name not in states or states[name][0] != state:
                states[name] = (state, time.monotonic())
            elif status.st_size and time.monotonic() - states[name][1] >= stable_seconds:
                complete.append((status.st_mtime_ns, name))
        for _, name in sorted(complete):
            seen.add(name)
            del states[name]
            yield Item(name)
        if complete:
            yield None
        if stopping:
            return
        stop.wait(POLL_SECONDS)


@contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """Yield an event that Ctrl-C and SIGTERM set; within the block they have no other effect."""
    stop = threading.Event()

    def set_stop(number: int, frame: FrameType | None) -> None:
        stop.set()

    before = {number: signal.signal(number, set_stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
