"""The review of a run as an ASGI application: rows in pages, images by their number, and labels.

Requests name an image only by the number of its row. The run maps the number to the file.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, TypeVar, cast, get_args

import cv2
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from anomaly.errors import AnomalyError, DataError, RequestError, UsageError
from anomaly.runs.models import RunModels
from anomaly.runs.review_session import ReviewSession, RowFilter, Sort
from anomaly.runs.run_files import check_manifest
from anomaly.runs.sinks import Values, read_rows
from anomaly.runs.training_review import TrainingReview
from anomaly.scoring.rows import csv_line
from anomaly.service.auth import Guard
from anomaly.service.error_handlers import ERROR_HANDLERS, error_handler
from anomaly.service.limits import Limits, MemoryBudget
from anomaly.service.metrics import Metrics
from anomaly.service.middleware import AccessLog, RequestMiddleware
from anomaly.service.query import query_parameters
from anomaly.service.request_body import read_body
from anomaly.service.responses import JsonResponse, error_response
from anomaly.service.review.pictures import Picture, RunPictures
from anomaly.service.review.summary import run_card, training_card
from anomaly.service.static_files import REVIEW_PAGE, page_routes

MAX_ROWS, MAX_TEXT = 500, 200
PICTURE_THREADS = 2
"""Images in memory at a time"""
CSV_LINES = 1000
"""Lines per chunk of an export"""
_FORMULA = tuple("=+-@\t\r\n＝＋－＠")
"""Characters that begin a formula in a spreadsheet"""
FILTER = {"verdict": "all", "label": "all", "text": ""}
"""Query parameters of a filter and their defaults"""
T = TypeVar("T")


class ReviewService:
    """Endpoints and shared state of a review.

    Args:
        session: run with its labels.
        models: models of the run.
        pictures: pictures of the run's images.
        limits: limits of a request.
    """

    def __init__(self, session: ReviewSession, *, models: RunModels, pictures: RunPictures, limits: Limits) -> None:
        self.session, self.models, self.pictures, self.limits = session, models, pictures, limits
        self._memory = MemoryBudget(limits.max_memory)
        self._files = {"state": "unchecked", "message": ""}
        self._check_lock = threading.Lock()

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Start and stop the threads that read images."""
        cv2.setNumThreads(0)
        self._pool = ThreadPoolExecutor(PICTURE_THREADS, thread_name_prefix="picture")
        try:
            yield
        finally:
            self._pool.shutdown(cancel_futures=True)

    async def run(self, request: Request) -> Response:
        """Describe the run: settings, models, guarantees, counts, drift, and commands that use the labels."""
        if isinstance(self.session, TrainingReview):
            card = await asyncio.to_thread(training_card, self.session)
        else:
            card = await asyncio.to_thread(run_card, self.session, models=self.models)
        return JsonResponse(card | {"files": self._files})

    async def check(self, request: Request) -> Response:
        """Start to compare the run's files with its manifest, in a daemon thread."""
        if self._check_lock.acquire(blocking=False):
            self._files = {"state": "checking", "message": ""}
            threading.Thread(target=self._check, name="check", daemon=True).start()
        return JsonResponse(self._files)

    def _check(self) -> None:
        try:
            if not isinstance(self.session, TrainingReview):  # its files have no manifest
                check_manifest(self.session.run)
            self._files = {"state": "intact", "message": ""}
        except (DataError, OSError, ValueError) as error:
            self._files = {"state": "changed", "message": str(error)}
        finally:
            self._check_lock.release()

    async def rows(self, request: Request) -> Response:
        """Return one page of the rows that pass a filter, and the counts of all rows."""
        query = {"sort": "order", **FILTER, "offset": "0", "limit": "120"}
        query |= query_parameters(request, known=query)
        if query["sort"] not in get_args(Sort):
            raise RequestError(400, f"sort is {query['sort'][:100]!r}; values: {', '.join(get_args(Sort))}")
        offset = _integer("offset", query["offset"], maximum=len(self.session.index))
        limit = _integer("limit", query["limit"], maximum=MAX_ROWS)
        row_filter, sort = _filter(query), cast(Sort, query["sort"])
        page = await asyncio.to_thread(self.session.page, row_filter, sort=sort, offset=offset, limit=limit)
        return JsonResponse(page | {"counts": await asyncio.to_thread(self.session.counts)})

    async def table(self, request: Request) -> Response:
        """Return all rows that pass a filter as CSV, in the order of the run, with their labels."""
        row_filter = _filter(FILTER | query_parameters(request, known=FILTER))
        chosen = await asyncio.to_thread(self.session.select, row_filter)
        labels = self.session.labels()

        def lines() -> Iterator[str]:
            chunk: list[str] = []
            for number, row in enumerate(read_rows(self.session.run)):
                if not number:
                    chunk.append(csv_line([*row, "label"]))
                if chosen[number]:
                    chunk.append(
                        csv_line([*map(_escape_formula, row.values()), ("", "good", "defect")[labels[number]]])
                    )
                if len(chunk) >= CSV_LINES:
                    yield "".join(chunk)
                    chunk = []
            yield "".join(chunk)

        return StreamingResponse(lines(), media_type="text/csv")

    async def thumbnail(self, request: Request) -> Response:
        """Return a thumbnail of an image."""
        return await self._picture_response(request, self.pictures.thumbnail)

    async def picture(self, request: Request) -> Response:
        """Return a picture of an image."""
        return await self._picture_response(request, self.pictures.picture)

    async def _picture_response(self, request: Request, encode: Callable[[Values], Picture]) -> Response:
        picture = await self._run_in_pool(lambda: encode(self._scored_row(self._number(request))))
        return Response(picture.data, media_type=picture.media_type)

    async def map(self, request: Request) -> Response:
        """Return the anomaly map of an image, stored or computed again."""
        number = self._number(request)
        return JsonResponse(
            await self._run_in_pool(lambda: self.pictures.anomaly_map(number, self._scored_row(number)))
        )

    async def evidence(self, request: Request) -> Response:
        """Return the picture of the nearest good patches of a rejected image; 204 if the run has none."""
        path = self.models.kept_evidence(self._number(request))
        if path is None:
            return Response(status_code=204)
        return Response(await self._run_in_pool(path.read_bytes), media_type="image/png")

    async def label(self, request: Request) -> Response:
        """Set or remove the label of an image; it is on disk before the response."""
        number = self._number(request)
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise RequestError(415, 'send JSON as application/json: {"label": "good"}')
        with self._memory.reservation() as reserved:
            body = await read_body(request, limits=self.limits, reserved=reserved)
        try:
            content = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise RequestError(400, 'the body is not valid JSON: send {"label": "good"}') from error
        if not isinstance(content, dict) or list(content) != ["label"] or not isinstance(content["label"], str):
            raise RequestError(400, 'invalid label: send {"label": "good"}, "defect", or "" to remove it')
        await asyncio.to_thread(self.session.set_label, number, content["label"] or None)
        return JsonResponse({"label": content["label"], "counts": await asyncio.to_thread(self.session.counts)})

    def _number(self, request: Request) -> int:
        """Read the number of an image from the URL."""
        text = request.path_params["number"]
        if not (text.isascii() and text.isdecimal() and len(text) <= 10 and int(text) < len(self.session.index)):
            raise RequestError(404, f"the run has {len(self.session.index)} images, numbered from 0")
        return int(text)

    def _scored_row(self, number: int) -> Values:
        """Read the row of an image; refuse a row without a score."""
        row = self.session.row(number)
        if row["status"] != "ok":
            raise RequestError(409, f"this image has no score ({row['status']}): {row['message']}")
        return row

    async def _run_in_pool(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)


def _filter(query: dict[str, str]) -> RowFilter:
    if len(query["text"]) > MAX_TEXT:
        raise RequestError(400, f"text has {len(query['text'])} characters: give at most {MAX_TEXT}")
    return RowFilter(verdict=query["verdict"], label=query["label"], text=query["text"])  # type: ignore[arg-type]  # it checks


def _integer(name: str, text: str, *, maximum: int) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 10 and int(text) <= maximum):
        raise RequestError(400, f"{name} is {text[:100]!r}: give a number from 0 to {maximum}")
    return int(text)


def _escape_formula(value: Any) -> Any:
    """Put an apostrophe before a text that a spreadsheet would compute."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def create_review_app(review: ReviewService, *, guard: Guard, log: AccessLog) -> ASGIApp:
    """Build the application.

    Args:
        review: endpoints of the review.
        guard: access control.
        log: access log.
    """
    image = "/api/images/{number}"
    app = Starlette(
        routes=[
            *page_routes(REVIEW_PAGE),
            Route("/api/run", review.run),
            Route("/api/run/check", review.check, methods=["POST"]),
            Route("/api/rows", review.rows),
            Route("/api/rows.csv", review.table),
            Route(f"{image}/thumbnail", review.thumbnail),
            Route(f"{image}/picture", review.picture),
            Route(f"{image}/map", review.map),
            Route(f"{image}/evidence", review.evidence),
            Route(f"{image}/label", review.label, methods=["PUT"]),
        ],
        lifespan=review.lifespan,
        exception_handlers={
            **ERROR_HANDLERS,
            UsageError: error_handler(lambda e: error_response(RequestError(400, str(e)))),
            AnomalyError: error_handler(lambda e: error_response(RequestError(409, str(e)))),  # for the reviewer
        },
    )
    app.router.redirect_slashes = False  # a redirect would repeat a forged Host header
    return RequestMiddleware(app, guard=guard, limits=review.limits, metrics=Metrics(), log=log)
