"""The middleware of every request: access control, the limit of concurrent requests, the access log and the metrics."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from anomaly.errors import RequestError
from anomaly.service.auth import HEALTH_PATHS, Guard
from anomaly.service.limits import Limits
from anomaly.service.metrics import Metrics
from anomaly.service.responses import CLIENT_CLOSED_REQUEST, error_response

AccessLog = Callable[[dict[str, Any]], None]
"""Receives one entry per request; entries never contain headers, queries or bodies"""
SECURITY_HEADERS = [(b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store")]


class RequestMiddleware:
    """ASGI middleware around an application.

    Args:
        app: inner application.
        guard: access control.
        limits: limits of a request; `max_requests` is enforced here.
        metrics: counters of the service.
        log: access log.
    """

    def __init__(self, app: ASGIApp, *, guard: Guard, limits: Limits, metrics: Metrics, log: AccessLog) -> None:
        self._app, self._guard, self._limits, self._metrics, self._log = app, guard, limits, metrics, log
        self._num_requests = 0
        metrics.add_gauge("anomaly_requests_active", "Requests being answered.", lambda: self._num_requests)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward a request to the application, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        entry: dict[str, Any] = {"status": CLIENT_CLOSED_REQUEST, "sent": 0}

        async def send_and_record(message: Message) -> None:
            if message["type"] == "http.response.start":
                entry["status"] = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), *SECURITY_HEADERS]}
            else:
                entry["sent"] += len(message.get("body", b""))
            await send(message)

        self._num_requests += 1
        try:
            try:
                self._check(scope)
            except RequestError as error:
                await error_response(error)(scope, receive, send_and_record)
            else:
                await self._app(scope, receive, send_and_record)
        finally:
            self._num_requests -= 1
            self._record(scope, entry, seconds=time.perf_counter() - start)

    def _check(self, scope: Scope) -> None:
        self._guard.check(scope["path"], Headers(scope=scope))
        if self._num_requests > self._limits.max_requests and scope["path"] not in HEALTH_PATHS:
            raise RequestError(503, "too many concurrent requests: try again later")

    def _record(self, scope: Scope, entry: dict[str, Any], *, seconds: float) -> None:
        route = getattr(scope.get("endpoint"), "__name__", "none")
        self._metrics.requests.labels(route, str(entry["status"])).inc()
        self._metrics.seconds.labels(route).observe(seconds)
        client = scope.get("client")
        self._log(
            {
                "time": round(time.time(), 3),
                "client": client[0] if client else "",
                "method": scope["method"],
                "path": scope["path"],
                **entry,
                "ms": round(1e3 * seconds, 2),
            }
        )
