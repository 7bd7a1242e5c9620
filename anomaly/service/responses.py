"""Responses that every route shares: JSON, and the response to a refused request."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from anomaly.errors import RequestError

CLIENT_CLOSED_REQUEST = 499
"""Status in the log if the client disconnected before the response"""
RETRY_SECONDS = 1


class JsonResponse(Response):
    """JSON in ASCII: texts of clients can contain characters that UTF-8 cannot encode."""

    media_type = "application/json"

    def __init__(self, content: Any, *, status_code: int = 200, headers: Mapping[str, str] | None = None) -> None:
        data = json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")
        super().__init__(data, status_code=status_code, headers=headers)


def error_response(error: RequestError) -> JsonResponse:
    """Build the response to a refused request."""
    headers = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": str(RETRY_SECONDS)}}
    return JsonResponse({"error": str(error)}, status_code=error.status, headers=headers.get(error.status))
