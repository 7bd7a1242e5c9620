"""What every request passes first, and every answer last: who may ask, how many at once, the log and the counters."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from anomaly.errors import RequestError
from anomaly.service.auth import HEALTH_PATHS, Guard
from anomaly.service.limits import Limits
from anomaly.service.metrics import Metrics

Log = Callable[[dict[str, Any]], None]
"""Takes one line of the access log; it never holds a header, a query or a body"""
GONE = 499
"""Status of the log where the client went away"""
RETRY_SECONDS = 1
ALWAYS = [(b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store")]


class JsonResponse(Response):
    """JSON in ASCII: what clients say may hold characters that no encoding has."""

    media_type = "application/json"

    def __init__(self, content: Any, *, status_code: int = 200, headers: Mapping[str, str] | None = None) -> None:
        data = json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")
        super().__init__(data, status_code=status_code, headers=headers)


def refused(error: RequestError) -> JsonResponse:
    """Answer a request that is refused."""
    headers = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": str(RETRY_SECONDS)}}
    return JsonResponse({"error": str(error)}, status_code=error.status, headers=headers.get(error.status))


class Gate:
    """An ASGI application around another.

    Args:
        app: that answers what passes.
        guard: who may ask.
        limits: of which `max_requests` holds here.
        metrics: that count.
        log: that is written.
    """

    def __init__(self, app: ASGIApp, *, guard: Guard, limits: Limits, metrics: Metrics, log: Log) -> None:
        self._app, self._guard, self._limits, self._metrics, self._log = app, guard, limits, metrics, log
        self._num_requests = 0
        metrics.watch("anomaly_requests_active", "Requests being answered.", lambda: self._num_requests)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin = time.perf_counter()
        entry: dict[str, Any] = {"status": GONE, "sent": 0}

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                entry["status"] = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), *ALWAYS]}
            else:
                entry["sent"] += len(message.get("body", b""))
            await send(message)

        self._num_requests += 1
        try:
            try:
                self._check(scope)
            except RequestError as error:
                await refused(error)(scope, receive, sent)
            else:
                await self._app(scope, receive, sent)
        finally:
            self._num_requests -= 1
            self._write(scope, entry, seconds=time.perf_counter() - begin)

    def _check(self, scope: Scope) -> None:
        self._guard.check(scope["path"], Headers(scope=scope))
        if self._num_requests > self._limits.max_requests and scope["path"] not in HEALTH_PATHS:
            raise RequestError(503, "too many requests at once: try again later")

    def _write(self, scope: Scope, entry: dict[str, Any], *, seconds: float) -> None:
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
