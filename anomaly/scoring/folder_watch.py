"""Images as they arrive in a folder, each once and only when it is complete."""

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

POLL_SECONDS = 0.25
SETTLE_SECONDS = 1.0
"""How long size and date of a file must stay the same before it counts as complete"""


def watch_folder(
    folder: Path, *, seen: set[str], stop: threading.Event, settle: float = SETTLE_SECONDS
) -> Iterator[Item | None]:
    """Give the images of a folder and of those below it as they arrive, until stopped.

    Args:
        folder: to look into, every quarter of a second.
        seen: paths that are not given again; those given are added.
        stop: ends the watch; what is complete by then is given.
        settle: seconds for which a file must not have changed; a file that is renamed into the folder waits too.

    Yields:
        Complete images in the order of their dates; a None after each burst, before a wait.

    Raises:
        DataError: there is no such folder.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder to watch: name one, in which images arrive")
    changed: dict[str, tuple[tuple[int, int], float]] = {}
    while True:
        stopping = stop.is_set()
        ready = []
        for path in image_files(folder):
            name = str(path)
            if name in seen:
                continue
            try:
                status = path.stat()
            except OSError:  # gone again
                changed.pop(name, None)
                continue
            state = (status.st_size, status.st_mtime_ns)
            if name not in changed or changed[name][0] != state:
                changed[name] = (state, time.monotonic())
            elif status.st_size and time.monotonic() - changed[name][1] >= settle:
                ready.append((status.st_mtime_ns, name))
        for _, name in sorted(ready):
            seen.add(name)
            del changed[name]
            yield Item(name)
        if ready:
            yield None
        if stopping:
            return
        stop.wait(POLL_SECONDS)


@contextmanager
def stopped_by_signals() -> Iterator[threading.Event]:
    """Give an event that Ctrl-C or a request to terminate sets, in place of what they do otherwise."""
    stop = threading.Event()

    def set_stop(number: int, frame: FrameType | None) -> None:
        stop.set()

    before = {number: signal.signal(number, set_stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
