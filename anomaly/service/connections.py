"""The HTTP server of an application, with a limit on idle connections."""

from __future__ import annotations

import asyncio

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from anomaly.service.limits import Limits

IDLE_SECONDS = 60.0
CONNECTIONS_PER_REQUEST = 4
"""Connections per concurrent request: clients keep connections open between requests"""


def make_server(app: ASGIApp, *, limits: Limits, idle_seconds: float) -> uvicorn.Server:
    """Build the server of an application; its shutdown waits for accepted requests.

    Args:
        app: application.
        limits: limits of a request; `max_requests` limits the connections, `timeout` the wait at shutdown.
        idle_seconds: longest idle time of a connection.
    """
    config = uvicorn.Config(
        app,
        http=connection_class(max_connections=CONNECTIONS_PER_REQUEST * limits.max_requests, idle_seconds=idle_seconds),
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="warning",
        access_log=False,
        proxy_headers=False,  # any client could forge them
        server_header=False,
        timeout_keep_alive=max(1, int(idle_seconds)),
        timeout_graceful_shutdown=int(2 * limits.timeout) + 1,
    )
    return uvicorn.Server(config)


def connection_class(*, max_connections: int, idle_seconds: float) -> type[asyncio.Protocol]:
    """Build the class of a server's connections.

    Args:
        max_connections: largest number of connections; further connections are closed at once.
        idle_seconds: longest time from the start of the connection or the end of a response to the next complete header.
            Partial headers and the rest of a refused body do not extend it.
    """

    class Connection(H11Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._idle_since = self.loop.time()
            self._timer = self.loop.call_later(idle_seconds, self._check)
            if len(self.connections) > max_connections:
                transport.abort()

        def connection_lost(self, exc: Exception | None) -> None:
            self._timer.cancel()
            super().connection_lost(exc)

        def on_response_complete(self) -> None:
            self._idle_since = self.loop.time()
            super().on_response_complete()

        def _check(self) -> None:
            is_idle = self.cycle is None or self.cycle.response_complete
            remaining = self._idle_since + idle_seconds - self.loop.time() if is_idle else idle_seconds
            if remaining <= 0:
                self.transport.abort()
            else:
                self._timer = self.loop.call_later(remaining, self._check)

    return Connection
