"""A service over a model for tests: its application, and a real server of it on a free port."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp

from anomaly.scoring.settings import Settings
from anomaly.service.app import Service, create_app
from anomaly.service.auth import Guard
from anomaly.service.connections import IDLE_SECONDS, make_server
from anomaly.service.limits import Limits
from anomaly.service.model_repository import Models, find_places

LIMITS = Limits(max_body=2**21, max_pixels=200_000, max_images=32, max_requests=64, max_memory=2**26, timeout=20.0)
BASE = "http://127.0.0.1"
TOKEN = "a-token-of-the-tests"


def make_service(*models: str | Path, batch_size: int = 4, threshold: float = 1.0, **changed: Any) -> Service:
    limits = replace(LIMITS, **changed)
    settings = Settings(threshold=threshold, batch_size=batch_size, max_pixels=limits.max_pixels, num_threads=2)
    loaded = Models(find_places([str(model) for model in models]), device="cpu", num_threads=1)
    return Service(loaded, limits=limits, settings=settings, max_delay=0.0)


def make_app(service: Service, *, token: str = "", log: list[dict[str, Any]] | None = None) -> ASGIApp:
    lines: list[dict[str, Any]] = [] if log is None else log
    return create_app(service, guard=Guard(token=token, loopback=True), log=lines.append)


@contextmanager
def running(service: Service, *, token: str = "", idle_seconds: float = IDLE_SECONDS) -> Iterator[str]:
    """Serve on a free port of loopback; gives `host:port`."""
    with serving(make_app(service, token=token), limits=service.limits, idle_seconds=idle_seconds) as address:
        yield address


@contextmanager
def serving(app: ASGIApp, *, limits: Limits, idle_seconds: float = IDLE_SECONDS) -> Iterator[str]:
    """Serve an application on a free port of loopback; gives `host:port`."""
    server = make_server(app, limits=limits, idle_seconds=idle_seconds)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.01)
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
