"""The static files of the web pages, read once and served under fixed paths."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

FOLDER = Path(__file__).parent / "static"
_SHARED = (
    "base.css", "gallery.css", "main.css", "api_client.js", "dom.js", "score_gauge.js", "heat_map.js", "png16.js",
    "model_card.js", "review_terms.js", "tile_grid.js", "token_dialog.js", "verdict.js", "viewer.js",
)  # fmt: skip
_MEDIA_TYPES = {".html": "text/html", ".svg": "image/svg+xml", ".css": "text/css", ".js": "text/javascript"}


def _file_table(index: str, *names: str) -> dict[str, tuple[str, str]]:
    paths = {"/": index} | {f"/static/{name}": name for name in ("icon.svg", *_SHARED, *names)}
    return {path: (name, _MEDIA_TYPES[Path(name).suffix]) for path, name in paths.items()}


PAGE = _file_table(
    "index.html", "main.js", "scoring_api.js", "file_input.js", "scoring_queue.js", "gallery.js", "threshold_explorer.js",
    "csv.js",
)  # fmt: skip
"""The page of `serve`: URL path -> file name and media type; a URL path is never used as a file path"""
REVIEW_PAGE = _file_table(
    "review.html", "review.css", "review_main.js", "review_api.js", "run_card.js", "run_list.js", "labelling.js",
    "review_statistics.js", "thumbnails.js",
)  # fmt: skip
"""The page of `review`, in the same form"""
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self';"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "Referrer-Policy": "no-referrer",
}


def page_routes(page: Mapping[str, tuple[str, str]]) -> list[Route]:
    """Read the files of a page and build their routes."""
    return [
        Route(path, _file_endpoint((FOLDER / name).read_bytes(), media_type=media_type))
        for path, (name, media_type) in page.items()
    ]


def _file_endpoint(content: bytes, *, media_type: str) -> Callable[[Request], Awaitable[Response]]:
    async def page(request: Request) -> Response:
        return Response(content, media_type=media_type, headers=HEADERS)

    return page
