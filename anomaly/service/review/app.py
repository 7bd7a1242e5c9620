"""The review of a run as an ASGI application: its rows by pages, its images by their number, and their labels.

An image is named by the number of its row and by nothing else; which file that is, the run says.
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
from anomaly.runs.review_session import Filter, Reviewed, Sort
from anomaly.runs.run_directory import check_manifest
from anomaly.runs.sinks import Values, read_rows
from anomaly.scoring.rows import csv_line
from anomaly.service.auth import Guard
from anomaly.service.error_handlers import HANDLERS, answers
from anomaly.service.limits import Limits, Memory
from anomaly.service.metrics import Metrics
from anomaly.service.middleware import Gate, JsonResponse, Log, refused
from anomaly.service.request_body import read_body
from anomaly.service.review.pictures import Picture, RunPictures
from anomaly.service.review.summary import run_card
from anomaly.service.static_files import REVIEW_PAGE, page_routes

MAX_ROWS, MAX_TEXT = 500, 200
PICTURE_THREADS = 2
"""Images that are in memory at a time"""
CSV_LINES = 1000
"""Lines of an export that are sent at once"""
_FORMULA = tuple("=+-@\t\r\n＝＋－＠")
T = TypeVar("T")


class Review:
    """What the routes share.

    Args:
        reviewed: the run.
        models: of the run.
        pictures: of its images.
        limits: of a request.
    """

    def __init__(self, reviewed: Reviewed, *, models: RunModels, pictures: RunPictures, limits: Limits) -> None:
        self.reviewed, self.models, self.pictures, self.limits = reviewed, models, pictures, limits
        self._memory = Memory(limits.max_memory)
        self._files = {"state": "unchecked", "message": ""}
        self._checking = threading.Lock()

    @asynccontextmanager
    async def running(self, app: Starlette) -> AsyncIterator[None]:
        """Start the threads that read images."""
        cv2.setNumThreads(0)
        self._pool = ThreadPoolExecutor(PICTURE_THREADS, thread_name_prefix="picture")
        try:
            yield
        finally:
            self._pool.shutdown(cancel_futures=True)

    async def run(self, request: Request) -> Response:
        """Describe the run: what it was asked, its models and their guarantees, counts, drift, and what to do with labels."""
        card = await asyncio.to_thread(run_card, self.reviewed, models=self.models)
        return JsonResponse(card | {"files": self._files})

    async def check(self, request: Request) -> Response:
        """Begin to compare the run's files with its manifest, in a thread that the end does not wait for."""
        if self._checking.acquire(blocking=False):
            self._files = {"state": "checking", "message": ""}
            threading.Thread(target=self._check, name="check", daemon=True).start()
        return JsonResponse(self._files)

    def _check(self) -> None:
        try:
            check_manifest(self.reviewed.run)
            self._files = {"state": "intact", "message": ""}
        except (DataError, OSError, ValueError) as error:
            self._files = {"state": "changed", "message": str(error)}
        finally:
            self._checking.release()

    async def rows(self, request: Request) -> Response:
        """Give rows that pass a filter, some at a time, and the counts of all."""
        known = {"sort": "order", "verdict": "all", "label": "all", "text": "", "offset": "0", "limit": "120"}
        asked = _options(request, known)
        if asked["sort"] not in get_args(Sort):
            raise RequestError(400, f"sort is {asked['sort'][:100]!r}: there are {', '.join(get_args(Sort))}")
        offset = _number("offset", asked["offset"], most=len(self.reviewed.index))
        limit = _number("limit", asked["limit"], most=MAX_ROWS)
        wanted, sort = _filter(asked), cast(Sort, asked["sort"])
        page = await asyncio.to_thread(self.reviewed.page, wanted, sort=sort, offset=offset, limit=limit)
        return JsonResponse(page | {"counts": await asyncio.to_thread(self.reviewed.counts)})

    async def table(self, request: Request) -> Response:
        """Give all rows that pass a filter as CSV, in the order of the run, with their labels."""
        wanted = _filter(_options(request, {"verdict": "all", "label": "all", "text": ""}))
        chosen = await asyncio.to_thread(self.reviewed.chosen, wanted)
        labels = self.reviewed.labels()

        def lines() -> Iterator[str]:
            waiting: list[str] = []
            for number, row in enumerate(read_rows(self.reviewed.run)):
                if not number:
                    waiting.append(csv_line([*row, "label"]))
                if chosen[number]:
                    waiting.append(csv_line([*map(_plain, row.values()), ("", "good", "defect")[labels[number]]]))
                if len(waiting) >= CSV_LINES:
                    yield "".join(waiting)
                    waiting = []
            yield "".join(waiting)

        return StreamingResponse(lines(), media_type="text/csv")

    async def thumbnail(self, request: Request) -> Response:
        """Give a small picture of an image."""
        return await self._pictured(request, self.pictures.thumbnail)

    async def picture(self, request: Request) -> Response:
        """Give a picture of an image to look at."""
        return await self._pictured(request, self.pictures.picture)

    async def _pictured(self, request: Request, draw: Callable[[Values], Picture]) -> Response:
        made = await self._in_pool(lambda: draw(self._scored(self._numbered(request))))
        return Response(made.data, media_type=made.media_type)

    async def map(self, request: Request) -> Response:
        """Give the map of an image, kept or made again."""
        number = self._numbered(request)
        return JsonResponse(await self._in_pool(lambda: self.pictures.anomaly_map(number, self._scored(number))))

    async def label(self, request: Request) -> Response:
        """Label an image, or take its label away; on the disk before this answers."""
        number = self._numbered(request)
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise RequestError(415, 'send JSON as application/json: {"label": "good"}')
        with self._memory.holding() as held:
            body = await read_body(request, limits=self.limits, held=held)
        try:
            said = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise RequestError(400, 'the body is no JSON: send {"label": "good"}') from error
        if not isinstance(said, dict) or list(said) != ["label"] or not isinstance(said["label"], str):
            raise RequestError(400, 'send {"label": "good"}, "defect", or "" to take the label away')
        await asyncio.to_thread(self.reviewed.set, number, said["label"])
        return JsonResponse({"label": said["label"], "counts": await asyncio.to_thread(self.reviewed.counts)})

    def _numbered(self, request: Request) -> int:
        """The number of an image in the address."""
        text = request.path_params["number"]
        if not (text.isascii() and text.isdecimal() and len(text) <= 10 and int(text) < len(self.reviewed.index)):
            raise RequestError(404, f"the run has {len(self.reviewed.index)} images, numbered from 0")
        return int(text)

    def _scored(self, number: int) -> Values:
        """The row of an image that has a score."""
        row = self.reviewed.row(number)
        if row["status"] != "ok":
            raise RequestError(409, f"this image could not be scored ({row['status']}): {row['message']}")
        return row

    async def _in_pool(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)


def _options(request: Request, known: dict[str, str]) -> dict[str, str]:
    """Options of the address.

    Raises:
        RequestError: 400, one that is not known or is given twice.
    """
    given = request.query_params.multi_items()
    for name, _ in given:
        if name not in known:
            raise RequestError(400, f"no option {name[:100]!r}: there are {', '.join(known)}")
    if len({name for name, _ in given}) < len(given):
        raise RequestError(400, "an option is given twice: give it once")
    return known | dict(given)


def _filter(asked: dict[str, str]) -> Filter:
    if len(asked["text"]) > MAX_TEXT:
        raise RequestError(400, f"text has {len(asked['text'])} characters: {MAX_TEXT} are taken")
    return Filter(verdict=asked["verdict"], label=asked["label"], text=asked["text"])  # type: ignore[arg-type]  # it checks


def _number(name: str, text: str, *, most: int) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 10 and int(text) <= most):
        raise RequestError(400, f"{name} is {text[:100]!r}: give a number from 0 to {most}")
    return int(text)


def _plain(value: Any) -> Any:
    """A value as it stands in a table: what a spreadsheet would compute gets an apostrophe before it."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def create_review_app(review: Review, *, guard: Guard, log: Log) -> ASGIApp:
    """Build the application.

    Args:
        review: to answer with.
        guard: who may ask.
        log: takes the lines of the access log.
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
            Route(f"{image}/label", review.label, methods=["PUT"]),
        ],
        lifespan=review.running,
        exception_handlers={
            **HANDLERS,
            UsageError: answers(lambda e: refused(RequestError(400, str(e)))),
            AnomalyError: answers(lambda e: refused(RequestError(409, str(e)))),  # it is told to the run's own reviewer
        },
    )
    app.router.redirect_slashes = False  # a redirection would repeat the Host that a client made up
    return Gate(app, guard=guard, limits=review.limits, metrics=Metrics(), log=log)
