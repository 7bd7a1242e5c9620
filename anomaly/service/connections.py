"""The HTTP server around the application, and its connections, cut when they keep it waiting between requests."""

from __future__ import annotations

import asyncio

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from anomaly.service.limits import Limits

IDLE_SECONDS = 60.0
CONNECTIONS_A_REQUEST = 4
"""Connections for each request that may be answered at once: clients keep them between requests"""


def make_server(app: ASGIApp, *, limits: Limits, idle_seconds: float) -> uvicorn.Server:
    """Make the server of an application; its end waits for the requests that were accepted.

    Args:
        app: to serve.
        limits: of which `max_requests` bounds the connections too, and `timeout` the wait at the end.
        idle_seconds: that a connection may keep the server waiting.
    """
    config = uvicorn.Config(
        app,
        http=connection_class(max_connections=CONNECTIONS_A_REQUEST * limits.max_requests, idle_seconds=idle_seconds),
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="warning",
        access_log=False,
        proxy_headers=False,  # whoever sends them could name any address
        server_header=False,
        timeout_keep_alive=max(1, int(idle_seconds)),
        timeout_graceful_shutdown=int(2 * limits.timeout) + 1,
    )
    return uvicorn.Server(config)


def connection_class(*, max_connections: int, idle_seconds: float) -> type[asyncio.Protocol]:
    """Make the class of the connections of a server.

    Args:
        max_connections: more than these are closed at once.
        idle_seconds: that may pass between the end of an answer, or the beginning of the connection, and the head of the next
            request; what arrives of it meanwhile, or is left of a body that was refused, wins no time.
    """

    class Connection(H11Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._idle_since = self.loop.time()
            self._look = self.loop.call_later(idle_seconds, self._check)
            if len(self.connections) > max_connections:
                transport.abort()

        def connection_lost(self, exc: Exception | None) -> None:
            self._look.cancel()
            super().connection_lost(exc)

        def on_response_complete(self) -> None:
            self._idle_since = self.loop.time()
            super().on_response_complete()

        def _check(self) -> None:
            is_idle = self.cycle is None or self.cycle.response_complete
            left = self._idle_since + idle_seconds - self.loop.time() if is_idle else idle_seconds
            if left <= 0:
                self.transport.abort()
            else:
                self._look = self.loop.call_later(left, self._check)

    return Connection
