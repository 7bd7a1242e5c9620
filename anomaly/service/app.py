"""The service as an ASGI application: routes, and the way of a request from its body to its answer.

    read the body ──► unpack and decode in a thread ──► wait in the queue ──► one inference ──► write the answer in a thread

The event loop only moves bytes. A request keeps the scorer that it found, whatever is loaded meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

import anomaly
from anomaly.errors import ImageError, RequestError
from anomaly.inference.scorer import OnnxScorer, Scores
from anomaly.inference.session import SESSION_ERRORS
from anomaly.scoring.pipeline import Settings
from anomaly.service import inference_protocol as protocol
from anomaly.service.auth import Guard
from anomaly.service.batching import Batcher
from anomaly.service.drift_monitor import Drifts
from anomaly.service.error_handlers import HANDLERS
from anomaly.service.limits import BYTES_A_JSON_BYTE, Holding, Limits, Memory
from anomaly.service.metrics import CONTENT_TYPE, Metrics
from anomaly.service.middleware import Gate, JsonResponse, Log
from anomaly.service.model_repository import Models, Place, Served, model_card
from anomaly.service.openapi import document
from anomaly.service.request_body import read_body, unpacked
from anomaly.service.score_endpoint import STATUS, answer, decode, image_of, map_values, overlay_png, refusal
from anomaly.service.static_files import PAGE, page_routes

POLL_SECONDS = 1.0
"""Between two looks at the models' files"""
T = TypeVar("T")
_log = logging.getLogger(__name__)


class Service:
    """What the routes share.

    Args:
        models: to score with.
        limits: of a request.
        settings: threshold of the verdict, images per inference, pixels, frame, and threads that decode.
        max_delay: seconds that the oldest image may wait for others while nothing is inferred.
    """

    def __init__(self, models: Models, *, limits: Limits, settings: Settings, max_delay: float) -> None:
        self.models, self.limits, self.settings = models, limits, settings
        self.metrics = Metrics()
        self._max_delay = max_delay
        self._memory = Memory(limits.max_memory)
        self._drifts = Drifts(threshold=settings.threshold)
        self.metrics.watch_models(models)
        self.metrics.watch("anomaly_held_bytes", "Bodies and images held by requests.", lambda: self._memory.num_bytes)
        self.metrics.watch("anomaly_images_waiting", "Images in the queue.", lambda: self._batcher.num_waiting)

    @asynccontextmanager
    async def running(self, app: Starlette) -> AsyncIterator[None]:
        """Start the threads and the watch over the files; in the end what was accepted is finished."""
        cv2.setNumThreads(0)  # one image per thread; OpenCV's own threads would fight them
        self._pool = ThreadPoolExecutor(self.settings.num_threads, thread_name_prefix="decode")
        self._batcher = Batcher(
            max_batch=self.settings.batch_size,
            max_images=self.limits.max_images,
            max_delay=self._max_delay,
            observe=self.metrics.observe_inference,
        )
        watch = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            watch.cancel()
            with suppress(asyncio.CancelledError):
                await watch
            await asyncio.to_thread(self._batcher.close)
            self._pool.shutdown()

    async def _watch(self) -> None:
        """Look after replaced files, in a thread that nothing else waits for."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            for served in self.models.all():
                taken = await asyncio.to_thread(served.reload)
                if taken is not None:
                    result = "taken" if taken else "refused"
                    self.metrics.reloads.labels(served.place.name, str(served.place.version), result).inc()

    async def live(self, request: Request) -> Response:
        """Say that the process answers."""
        return JsonResponse({"live": True})

    async def ready(self, request: Request) -> Response:
        """Say that requests are taken: every model was loaded before the first one was."""
        return JsonResponse({"ready": True})

    async def server_metadata(self, request: Request) -> Response:
        """Name the server."""
        return JsonResponse(
            {"name": "anomaly", "version": anomaly.__version__, "extensions": list(protocol.EXTENSIONS)}
        )

    async def repository_index(self, request: Request) -> Response:
        """List all models; the body, which may ask for those that are ready, changes nothing: all are."""
        return JsonResponse(
            [
                {"name": s.place.name, "version": str(s.place.version), "state": "READY", "reason": _reason(s)}
                for s in self.models.all()
            ]
        )

    def _served(self, request: Request) -> Served:
        return self.models.find(request.path_params["name"], request.path_params.get("version", ""))

    async def model_metadata(self, request: Request) -> Response:
        """Describe a model."""
        served = self._served(request)
        parameters = model_card(served, threshold=self.settings.threshold, drift=self._drifts.of(served.scorer).state())
        name = served.place.name
        return JsonResponse(protocol.model_metadata(name, versions=self.models.versions(name), parameters=parameters))

    async def model_config(self, request: Request) -> Response:
        """Describe a model as Triton does."""
        return JsonResponse(protocol.model_config(self._served(request).place.name))

    async def model_ready(self, request: Request) -> Response:
        """Say that a model answers; a file that could not replace it leaves it ready."""
        served = self._served(request)
        return JsonResponse({"name": served.place.name, "ready": True})

    async def prometheus(self, request: Request) -> Response:
        """Give the counters."""
        return Response(self.metrics.text(), media_type=CONTENT_TYPE)

    async def openapi(self, request: Request) -> Response:
        """Describe the interface."""
        return JsonResponse(document([(s.place.name, str(s.place.version)) for s in self.models.all()]))

    async def infer(self, request: Request) -> Response:
        """Score tensors."""
        served = self._served(request)
        scorer = served.scorer
        with self._memory.holding() as held:
            body = await read_body(request, limits=self.limits, held=held)
            deadline = time.monotonic() + self.limits.timeout

            def parse() -> protocol.InferRequest:
                length = request.headers.get(protocol.HEADER_LENGTH)
                header, binary = protocol.split_body(self._plain(request, body, held), header_length=length)
                held.take(BYTES_A_JSON_BYTE * len(header))
                return protocol.parse_request(header, binary, max_pixels=self.settings.max_pixels)

            asked = await self._in_thread(parse, deadline=deadline)
            deadline = min(deadline, time.monotonic() + asked.timeout)
            scores = await self._scores(request, scorer, asked.image, place=served.place, deadline=deadline)

            def write() -> tuple[bytes, int | None]:
                place = served.place
                self._drifts.of(scorer).observe(asked.image, scores.score)
                return protocol.encode_response(
                    asked, scores, model=place.name, version=str(place.version), sha256=scorer.sha256
                )

            data, header_length = await self._in_thread(write, deadline=deadline)
        if header_length is None:
            return Response(data, media_type="application/json")
        headers = {protocol.HEADER_LENGTH: str(header_length)}
        return Response(data, media_type="application/octet-stream", headers=headers)

    async def score(self, request: Request) -> Response:
        """Score one image file."""
        asked = _query(request)
        served = self.models.find(asked["model"], asked["version"])
        scorer, settings = served.scorer, self.settings
        with self._memory.holding() as held:
            body = await read_body(request, limits=self.limits, held=held)
            deadline = time.monotonic() + self.limits.timeout
            kind = request.headers.get("content-type", "")

            def open_form() -> tuple[str, bytes]:
                return image_of(self._plain(request, body, held), content_type=kind, held=held)

            name, data = await self._in_thread(open_form, deadline=deadline)
            try:
                image = await self._in_thread(
                    lambda: decode(data, name=name, white=scorer.metadata.white, settings=settings, held=held),
                    deadline=deadline,
                )
                scores = await self._scores(request, scorer, image[None], place=served.place, deadline=deadline)
            except ImageError as error:
                row = refusal(name, data, error, model=scorer.sha256[:16], settings=settings)
                return JsonResponse(row, status_code=STATUS[error.code])

            def write() -> dict[str, Any]:
                row = answer(name, data, image=image, scores=scores, scorer=scorer, settings=settings)
                resize = scorer.metadata.resize
                if asked["overlay"] == "true":
                    row["overlay"] = overlay_png(
                        image, scores.anomaly_map[0], resize=resize, threshold=settings.threshold
                    )
                if asked["map"] == "true":
                    row["map"] = map_values(scores.anomaly_map[0], resize=resize)
                self._drifts.of(scorer).observe(image[None], scores.score)
                return row

            return JsonResponse(await self._in_thread(write, deadline=deadline))

    def _plain(self, request: Request, body: bytes, held: Holding) -> bytes:
        encoding = request.headers.get("content-encoding", "")
        return unpacked(body, encoding=encoding, limits=self.limits, held=held)

    async def _scores(
        self, request: Request, scorer: OnnxScorer, image: NDArray[np.uint8], *, place: Place, deadline: float
    ) -> Scores:
        """Wait for the scores of images; those of a client that went away, or of a time that is over, are not computed.

        Raises:
            RequestError: 503 the queue is full or the time over.
            ImageError: `internal`, the inference failed or gave no numbers.
            ClientDisconnect: the client went away.
        """
        pending = asyncio.wrap_future(self._batcher.submit(scorer, image))
        gone = asyncio.ensure_future(_disconnected(request))
        either: set[asyncio.Future[Any]] = {pending, gone}
        try:
            await asyncio.wait(
                either, timeout=max(0.0, deadline - time.monotonic()), return_when=asyncio.FIRST_COMPLETED
            )
            if not pending.done():
                raise ClientDisconnect if gone.done() else self._too_slow()
            scores = pending.result()
        except SESSION_ERRORS as error:
            _log.warning("%s does not run on %s: %s", place.name, image.shape, error)
            raise ImageError("internal", "the model cannot be run on these images: make them smaller") from error
        finally:
            pending.cancel()
            gone.cancel()
        if not (np.isfinite(scores.score).all() and np.isfinite(scores.anomaly_map).all()):
            raise ImageError("internal", "the model gives no numbers for these images: tell who runs the service")
        self.metrics.observe_scores(
            scores.score, threshold=self.settings.threshold, model=place.name, version=str(place.version)
        )
        return scores

    async def _in_thread(self, work: Callable[[], T], *, deadline: float) -> T:
        """Do work in a thread of the pool.

        Raises:
            RequestError: 503, the time is over.
        """
        running = asyncio.get_running_loop().run_in_executor(self._pool, work)
        try:
            return await asyncio.wait_for(running, max(0.0, deadline - time.monotonic()))
        except asyncio.TimeoutError as error:
            raise self._too_slow() from error

    def _too_slow(self) -> RequestError:
        return RequestError(503, "the time of this request is over: try again later")


async def _disconnected(request: Request) -> None:
    """Wait until the client of a request that was read is gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _reason(served: Served) -> str:
    return "" if served.is_current else "its file was replaced by one that is refused; the model before it goes on"


def _query(request: Request) -> dict[str, str]:
    """Options of `POST /score`.

    Raises:
        RequestError: 400, an option that is not known, is given twice, or has another value.
    """
    known = {"model": "", "version": "", "overlay": "false", "map": "false"}
    given = request.query_params.multi_items()
    for name, _ in given:
        if name not in known:
            raise RequestError(400, f"no option {name[:100]!r}: there are {', '.join(known)}")
    if len({name for name, _ in given}) < len(given):
        raise RequestError(400, "an option is given twice: give it once")
    asked = known | dict(given)
    for name in ("overlay", "map"):
        if asked[name] not in ("true", "false"):
            raise RequestError(400, f"{name} is {asked[name][:100]!r}: it is true or false")
    return asked


def routes(service: Service) -> list[Route]:
    """Give the routes of the protocol, those beside it and those of the page."""
    model, version = "/v2/models/{name}", "/v2/models/{name}/versions/{version}"
    found = [
        Route("/v2/health/live", service.live),
        Route("/v2/health/ready", service.ready),
        Route("/v2", service.server_metadata),
        Route("/v2/repository/index", service.repository_index, methods=["POST"]),
        Route("/score", service.score, methods=["POST"]),
        Route("/metrics", service.prometheus),
        Route("/openapi.json", service.openapi),
        *page_routes(PAGE),
    ]
    for path in (model, version):
        found += [
            Route(path, service.model_metadata),
            Route(f"{path}/ready", service.model_ready),
            Route(f"{path}/config", service.model_config),
            Route(f"{path}/infer", service.infer, methods=["POST"]),
        ]
    return found


def create_app(service: Service, *, guard: Guard, log: Log) -> ASGIApp:
    """Build the application.

    Args:
        service: to serve.
        guard: who may ask.
        log: takes the lines of the access log.
    """
    app = Starlette(
        routes=routes(service),
        lifespan=service.running,
        exception_handlers=HANDLERS,
    )
    app.router.redirect_slashes = False  # a redirection would repeat the Host that a client made up
    return Gate(app, guard=guard, limits=service.limits, metrics=service.metrics, log=log)
