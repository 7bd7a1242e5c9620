"""A service for tests: its application, and a real server of it on a free port."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp

from anomaly.scoring.settings import Settings
from anomaly.service.app import create_app
from anomaly.service.auth import Guard
from anomaly.service.connections import IDLE_SECONDS, make_server
from anomaly.service.limits import Limits
from anomaly.service.model_repository import ModelRepository, find_model_files
from anomaly.service.scoring_service import POLL_SECONDS, ScoringService

LIMITS = Limits(max_body=2**21, max_pixels=200_000, max_images=32, max_requests=64, max_memory=2**26, timeout=20.0)
BASE = "http://127.0.0.1"
TOKEN = "a-token-of-the-tests"


def make_service(
    *models: str | Path,
    batch_size: int = 4,
    threshold: float = 1.0,
    poll_seconds: float = POLL_SECONDS,
    **limits: Any,
) -> ScoringService:
    changed = replace(LIMITS, **limits)
    settings = Settings(threshold=threshold, batch_size=batch_size, max_pixels=changed.max_pixels, num_threads=2)
    repository = ModelRepository(find_model_files(models), device="cpu", num_threads=1)
    return ScoringService(repository, limits=changed, settings=settings, max_delay=0.0, poll_seconds=poll_seconds)


def make_app(service: ScoringService, *, token: str | None = None, log: list[dict[str, Any]] | None = None) -> ASGIApp:
    entries: list[dict[str, Any]] = [] if log is None else log
    return create_app(service, guard=Guard(token=token, loopback=True), log=entries.append)


@contextmanager
def running(service: ScoringService, *, token: str | None = None, idle_seconds: float = IDLE_SECONDS) -> Iterator[str]:
    """Serve on a free port of loopback; yields `host:port`."""
    with serving(make_app(service, token=token), limits=service.limits, idle_seconds=idle_seconds) as address:
        yield address


@contextmanager
def serving(app: ASGIApp, *, limits: Limits, idle_seconds: float = IDLE_SECONDS) -> Iterator[str]:
    """Serve an application on a free port of loopback; yields `host:port`."""
    server = make_server(app, limits=limits, idle_seconds=idle_seconds)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            wait_for(lambda: server.started or not thread.is_alive())
            assert thread.is_alive()
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until a condition is true; the limit only ends a test that would hang."""
    until = time.monotonic() + 60
    while not condition():
        if time.monotonic() >= until:
            raise TimeoutError("the condition never became true")
        time.sleep(0.01)
