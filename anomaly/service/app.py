"""The service as an ASGI application: its routes, and the stages of a request.

    read body ──► decompress and decode in a thread ──► wait in the queue ──► one inference ──► build response in a thread

The event loop only moves bytes. A request keeps its scorer even if the model file is replaced meanwhile.
"""

from __future__ import annotations

import time
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

import anomaly
from anomaly.errors import ImageError
from anomaly.service import inference_protocol as protocol
from anomaly.service.auth import Guard
from anomaly.service.error_handlers import ERROR_HANDLERS
from anomaly.service.image_form import image_file
from anomaly.service.limits import BYTES_PER_JSON_BYTE
from anomaly.service.metrics import CONTENT_TYPE
from anomaly.service.middleware import AccessLog, RequestMiddleware
from anomaly.service.model_repository import ServedModel, model_card
from anomaly.service.openapi import openapi_document
from anomaly.service.request_body import read_body
from anomaly.service.responses import JsonResponse
from anomaly.service.score_endpoint import (
    HTTP_STATUS,
    decode,
    failed_image,
    map_json,
    overlay_png,
    score_query,
    scored_image,
)
from anomaly.service.scoring_service import ScoringService
from anomaly.service.static_files import PAGE, page_routes


class Endpoints:
    """The endpoints of the protocol, of plain scoring and of the metrics.

    Args:
        service: scoring service of the endpoints.
    """

    def __init__(self, service: ScoringService) -> None:
        self.service = service

    async def live(self, request: Request) -> Response:
        """Report that the process is alive."""
        return JsonResponse({"live": True})

    async def ready(self, request: Request) -> Response:
        """Report that the service accepts requests: all models are loaded before it listens."""
        return JsonResponse({"ready": True})

    async def server_metadata(self, request: Request) -> Response:
        """Describe the server."""
        return JsonResponse(
            {"name": "anomaly", "version": anomaly.__version__, "extensions": list(protocol.EXTENSIONS)}
        )

    async def repository_index(self, request: Request) -> Response:
        """List all models; the body is ignored because every model is ready."""
        return JsonResponse(
            [
                {"name": s.file.name, "version": str(s.file.version), "state": "READY", "reason": _reason(s)}
                for s in self.service.models.all()
            ]
        )

    def _served(self, request: Request) -> ServedModel:
        return self.service.models.find(request.path_params["name"], request.path_params.get("version"))

    async def model_metadata(self, request: Request) -> Response:
        """Describe a model."""
        served = self._served(request)
        drift = self.service.drift_monitors.monitor_of(served.scorer).state()
        parameters = model_card(served, threshold=self.service.settings.threshold, drift=drift)
        name = served.file.name
        versions = self.service.models.versions(name)
        return JsonResponse(protocol.model_metadata(name, versions=versions, parameters=parameters))

    async def model_config(self, request: Request) -> Response:
        """Describe a model in the form of Triton."""
        return JsonResponse(protocol.model_config(self._served(request).file.name))

    async def model_ready(self, request: Request) -> Response:
        """Report that a model is ready; a refused replacement of its file does not change that."""
        served = self._served(request)
        return JsonResponse({"name": served.file.name, "ready": True})

    async def prometheus(self, request: Request) -> Response:
        """Export the metrics."""
        return Response(self.service.metrics.export(), media_type=CONTENT_TYPE)

    async def openapi(self, request: Request) -> Response:
        """Return the OpenAPI document."""
        models = [(s.file.name, str(s.file.version)) for s in self.service.models.all()]
        return JsonResponse(openapi_document(models))

    async def infer(self, request: Request) -> Response:
        """Score tensors."""
        service, served = self.service, self._served(request)
        scorer, file = served.scorer, served.file
        with service.memory.reservation() as reserved:
            body = await read_body(request, limits=service.limits, reserved=reserved)
            deadline = time.monotonic() + service.limits.timeout

            def parse() -> protocol.InferRequest:
                length = request.headers.get(protocol.HEADER_LENGTH)
                plain = service.decompress(request, body, reserved)
                header, binary = protocol.split_body(plain, header_length=length)
                reserved.add(BYTES_PER_JSON_BYTE * len(header))
                return protocol.parse_request(header, binary, max_pixels=service.settings.max_pixels)

            parsed = await service.run_in_pool(parse, deadline=deadline)
            deadline = min(deadline, time.monotonic() + parsed.timeout)
            scores = await service.score(request, scorer, parsed.image, file=file, deadline=deadline)

            def encode() -> tuple[bytes, int | None]:
                service.drift_monitors.monitor_of(scorer).observe(parsed.image, scores.score)
                return protocol.encode_response(
                    parsed, scores, model=file.name, version=str(file.version), sha256=scorer.sha256
                )

            data, header_length = await service.run_in_pool(encode, deadline=deadline)
        if header_length is None:
            return Response(data, media_type="application/json")
        headers = {protocol.HEADER_LENGTH: str(header_length)}
        return Response(data, media_type="application/octet-stream", headers=headers)

    async def score(self, request: Request) -> Response:
        """Score one image file."""
        query = score_query(request)
        service, served = self.service, self.service.models.find(query.model, query.version)
        scorer, settings = served.scorer, service.settings
        with service.memory.reservation() as reserved:
            body = await read_body(request, limits=service.limits, reserved=reserved)
            deadline = time.monotonic() + service.limits.timeout
            content_type = request.headers.get("content-type", "")

            def open_body() -> tuple[str, bytes]:
                plain = service.decompress(request, body, reserved)
                return image_file(plain, content_type=content_type, reserved=reserved)

            name, data = await service.run_in_pool(open_body, deadline=deadline)
            try:
                image = await service.run_in_pool(
                    lambda: decode(data, name=name, white=scorer.metadata.white, settings=settings, reserved=reserved),
                    deadline=deadline,
                )
                scores = await service.score(request, scorer, image[None], file=served.file, deadline=deadline)
            except ImageError as error:
                row = failed_image(name, data, error, model=scorer.sha256[:16], settings=settings)
                return JsonResponse(row, status_code=HTTP_STATUS[error.code])

            def build_row() -> dict[str, Any]:
                row = scored_image(name, data, image=image, scores=scores, scorer=scorer, settings=settings)
                anomaly_map, resize = scores.anomaly_map[0], scorer.metadata.resize
                if query.overlay:
                    row["overlay"] = overlay_png(image, anomaly_map, resize=resize, threshold=settings.threshold)
                if query.map:
                    row["map"] = map_json(anomaly_map, resize=resize)
                service.drift_monitors.monitor_of(scorer).observe(image[None], scores.score)
                return row

            return JsonResponse(await service.run_in_pool(build_row, deadline=deadline))


def _reason(served: ServedModel) -> str:
    return "" if served.is_current else "the new model file was refused; the previous model stays active"


def routes(endpoints: Endpoints) -> list[Route]:
    """Build the routes of the endpoints and of the web page."""
    table = [
        Route("/v2/health/live", endpoints.live),
        Route("/v2/health/ready", endpoints.ready),
        Route("/v2", endpoints.server_metadata),
        Route("/v2/repository/index", endpoints.repository_index, methods=["POST"]),
        Route("/score", endpoints.score, methods=["POST"]),
        Route("/metrics", endpoints.prometheus),
        Route("/openapi.json", endpoints.openapi),
        *page_routes(PAGE),
    ]
    for path in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        table += [
            Route(path, endpoints.model_metadata),
            Route(f"{path}/ready", endpoints.model_ready),
            Route(f"{path}/config", endpoints.model_config),
            Route(f"{path}/infer", endpoints.infer, methods=["POST"]),
        ]
    return table


def create_app(service: ScoringService, *, guard: Guard, log: AccessLog) -> ASGIApp:
    """Build the application.

    Args:
        service: scoring service.
        guard: access control.
        log: access log.
    """
    app = Starlette(
        routes=routes(Endpoints(service)),
        lifespan=service.lifespan,
        exception_handlers=ERROR_HANDLERS,
    )
    app.router.redirect_slashes = False  # a redirect would repeat a forged Host header
    return RequestMiddleware(app, guard=guard, limits=service.limits, metrics=service.metrics, log=log)
