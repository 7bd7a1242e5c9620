"""The query parameters of a URL: each known and given once."""

from __future__ import annotations

from collections.abc import Collection

from starlette.requests import Request

from anomaly.errors import RequestError


def query_parameters(request: Request, *, known: Collection[str]) -> dict[str, str]:
    """Read the query parameters of a request.

    Args:
        request: HTTP request.
        known: names of the parameters.

    Returns:
        The given parameters and their values.

    Raises:
        RequestError: 400, an unknown or repeated parameter.
    """
    items = request.query_params.multi_items()
    for name, _ in items:
        if name not in known:
            raise RequestError(400, f"unknown parameter {name[:100]!r}; parameters: {', '.join(known)}")
    if len({name for name, _ in items}) < len(items):
        raise RequestError(400, "a parameter is given twice: give it once")
    return dict(items)
