"""Progress bars on standard error. They are off by default; the command line turns them on with `show_progress`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Report = Callable[[int, int], None]
"""Function of (done, total)"""

_is_shown: ContextVar[bool] = ContextVar("is_shown", default=False)


@contextmanager
def show_progress() -> Iterator[None]:
    """Show the progress bars of everything called within the block, in this thread."""
    token = _is_shown.set(True)
    try:
        yield
    finally:
        _is_shown.reset(token)


@contextmanager
def progress_bar(label: str) -> Iterator[Report]:
    """Show a progress bar within `show_progress`: live on a terminal, one line at the end elsewhere.

    Args:
        label: text before the bar.

    Yields:
        The function that moves the bar. It does nothing outside `show_progress`.
    """
    if not _is_shown.get():
        yield lambda done, total: None
        return
    from rich.console import Console  # imported late: a library call shows no bar
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
