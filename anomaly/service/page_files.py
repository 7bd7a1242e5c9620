"""The page for people: files of this package, read once, under fixed addresses."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

FOLDER = Path(__file__).parent / "page"
SCRIPTS = (
    "page.js", "service.js", "intake.js", "session.js", "gallery.js", "viewer.js", "heat_map.js", "map_png.js", "gauge.js",
    "model_card.js", "what_if.js", "csv.js", "elements.js",
)  # fmt: skip
PAGE: dict[str, tuple[str, str]] = {
    "/": ("index.html", "text/html"),
    "/page/icon.svg": ("icon.svg", "image/svg+xml"),
    **{f"/page/{name}": (name, "text/css") for name in ("base.css", "gallery.css", "page.css")},
    **{f"/page/{name}": (name, "text/javascript") for name in SCRIPTS},
}
"""Address -> file, and its media type; no part of an address is ever taken as a path"""
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self';"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "Referrer-Policy": "no-referrer",
}


def page_routes() -> list[Route]:
    """Read the files and give their routes."""
    return [
        Route(path, _answering((FOLDER / name).read_bytes(), media_type=media_type))
        for path, (name, media_type) in PAGE.items()
    ]


def _answering(content: bytes, *, media_type: str) -> Callable[[Request], Awaitable[Response]]:
    async def page(request: Request) -> Response:
        return Response(content, media_type=media_type, headers=HEADERS)

    return page
