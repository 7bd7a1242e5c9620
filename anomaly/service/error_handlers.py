"""What is answered when a route raises: never more than a client may know."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from anomaly.errors import ImageError, RequestError
from anomaly.service.middleware import GONE, JsonResponse, refused
from anomaly.service.score_endpoint import STATUS


def answers(answer_to: Callable[[Any], Response]) -> Callable[[Request, Exception], Awaitable[Response]]:
    """Make an error's handler of a function from the error to its answer."""

    async def handler(request: Request, error: Exception) -> Response:
        return answer_to(error)

    return handler


HANDLERS: Mapping[Any, Callable[[Request, Exception], Awaitable[Response]]] = {
    RequestError: answers(refused),
    ImageError: answers(lambda e: refused(RequestError(STATUS[e.code], str(e)))),
    HTTPException: answers(
        lambda e: JsonResponse({"error": e.detail}, status_code=e.status_code, headers=e.headers)
    ),
    ClientDisconnect: answers(lambda e: Response(status_code=GONE)),
    Exception: answers(lambda e: refused(RequestError(500, "the service failed; its log says why"))),
}  # fmt: skip
"""Error -> its handler"""
