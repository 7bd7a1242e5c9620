"""Responses to the errors of a route, without internal details."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from anomaly.errors import ImageError, RequestError
from anomaly.service.responses import CLIENT_CLOSED_REQUEST, JsonResponse, error_response
from anomaly.service.score_endpoint import HTTP_STATUS

ErrorHandler = Callable[[Request, Exception], Awaitable[Response]]


def error_handler(response_to: Callable[[Any], Response]) -> ErrorHandler:
    """Turn a function from error to response into an error handler."""

    async def handler(request: Request, error: Exception) -> Response:
        return response_to(error)

    return handler


ERROR_HANDLERS: Mapping[Any, ErrorHandler] = {
    RequestError: error_handler(error_response),
    ImageError: error_handler(lambda e: error_response(RequestError(HTTP_STATUS[e.code], str(e)))),
    HTTPException: error_handler(
        lambda e: JsonResponse({"error": e.detail}, status_code=e.status_code, headers=e.headers)
    ),
    ClientDisconnect: error_handler(lambda e: Response(status_code=CLIENT_CLOSED_REQUEST)),
    Exception: error_handler(lambda e: error_response(RequestError(500, "internal error: see the log of the service"))),
}
"""Error class -> its handler"""
