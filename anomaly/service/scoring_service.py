"""The scoring service behind the routes: models, threads, queue, memory budget, drift monitors and metrics."""

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

from anomaly.errors import ImageError, RequestError
from anomaly.inference.scorer import OnnxScorer, Scores
from anomaly.inference.session import SESSION_ERRORS
from anomaly.scoring.settings import Settings
from anomaly.service.batching import Batcher
from anomaly.service.drift_monitor import DriftMonitors
from anomaly.service.limits import Limits, MemoryBudget, Reservation
from anomaly.service.metrics import Metrics
from anomaly.service.model_repository import ModelFile, ModelRepository
from anomaly.service.request_body import decompress_body

POLL_SECONDS = 1.0
"""Interval between two checks of the model files"""
T = TypeVar("T")
_log = logging.getLogger(__name__)


class ScoringService:
    """State and threads shared by all requests.

    Args:
        models: served models.
        limits: limits of a request.
        settings: threshold, batch size, largest image, frame choice and number of decoding threads.
        max_delay: longest wait of the oldest image for others while the inference thread is free, in seconds.
        poll_seconds: interval between two checks of the model files, in seconds.
    """

    def __init__(
        self,
        models: ModelRepository,
        *,
        limits: Limits,
        settings: Settings,
        max_delay: float,
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        self.models, self.limits, self.settings = models, limits, settings
        self.metrics = Metrics()
        self.memory = MemoryBudget(limits.max_memory)
        self.drift_monitors = DriftMonitors(threshold=settings.threshold)
        self._max_delay, self._poll_seconds = max_delay, poll_seconds
        self.metrics.add_models(models)
        self.metrics.add_gauge(
            "anomaly_held_bytes", "Memory of the bodies and images of all requests.", lambda: self.memory.num_bytes
        )
        self.metrics.add_gauge("anomaly_images_waiting", "Images in the queue.", lambda: self.num_waiting)

    @property
    def num_waiting(self) -> int:
        """Images in the queue."""
        return self._batcher.num_waiting

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Start the threads and the checks of the model files; at the end, finish accepted requests."""
        cv2.setNumThreads(0)  # the pool decodes one image per thread
        self._pool = ThreadPoolExecutor(self.settings.num_threads, thread_name_prefix="decode")
        self._batcher = Batcher(
            max_batch=self.settings.batch_size,
            max_images=self.limits.max_images,
            max_delay=self._max_delay,
            observe=self.metrics.observe_inference,
        )
        polling = asyncio.create_task(self._poll_models())
        try:
            yield
        finally:
            polling.cancel()
            with suppress(asyncio.CancelledError):
                await polling
            await asyncio.to_thread(self._batcher.close)
            self._pool.shutdown()

    async def _poll_models(self) -> None:
        """Load replaced model files, in a thread outside the pool."""
        while True:
            await asyncio.sleep(self._poll_seconds)
            for served in self.models.all():
                loaded = await asyncio.to_thread(served.reload)
                if loaded is not None:
                    result = "taken" if loaded else "refused"
                    self.metrics.reloads.labels(served.file.name, str(served.file.version), result).inc()

    def decompress(self, request: Request, body: bytes, reserved: Reservation) -> bytes:
        """Decompress the body of a request; errors are those of `decompress_body`."""
        encoding = request.headers.get("content-encoding", "")
        return decompress_body(body, encoding=encoding, limits=self.limits, reserved=reserved)

    async def score(
        self, request: Request, scorer: OnnxScorer, image: NDArray[np.uint8], *, file: ModelFile, deadline: float
    ) -> Scores:
        """Score the images of a request; a disconnected client or a passed deadline cancels the inference.

        Args:
            request: HTTP request.
            scorer: scorer of the model.
            image: (N, H, W, 3) uint8 RGB.
            file: file of the model, for metrics and log.
            deadline: value of `time.monotonic`.

        Returns:
            Scores with `score` (N,) and `anomaly_map` (N, h, w).

        Raises:
            RequestError: 503, the queue is full or the deadline has passed.
            ImageError: `internal`, the inference failed or returned NaN or infinity.
            ClientDisconnect: the client disconnected.
        """
        pending = asyncio.wrap_future(self._batcher.submit(scorer, image))
        disconnected = asyncio.ensure_future(_disconnected(request))
        either: set[asyncio.Future[Any]] = {pending, disconnected}
        try:
            await asyncio.wait(
                either, timeout=max(0.0, deadline - time.monotonic()), return_when=asyncio.FIRST_COMPLETED
            )
            if not pending.done():
                raise ClientDisconnect if disconnected.done() else _timed_out()
            scores = pending.result()
        except SESSION_ERRORS as error:
            _log.warning("%s failed on images of shape %s: %s", file.name, image.shape, error)
            raise ImageError("internal", "the model failed on these images: make them smaller") from error
        finally:
            pending.cancel()
            disconnected.cancel()
        if not (np.isfinite(scores.score).all() and np.isfinite(scores.anomaly_map).all()):
            raise ImageError("internal", "the model returned NaN or infinity: inform the operator of the service")
        self.metrics.observe_scores(
            scores.score, threshold=self.settings.threshold, model=file.name, version=str(file.version)
        )
        return scores

    async def run_in_pool(self, work: Callable[[], T], *, deadline: float) -> T:
        """Run a function in a thread of the pool.

        Raises:
            RequestError: 503, the deadline has passed.
        """
        running = asyncio.get_running_loop().run_in_executor(self._pool, work)
        try:
            return await asyncio.wait_for(running, max(0.0, deadline - time.monotonic()))
        except asyncio.TimeoutError as error:
            raise _timed_out() from error


def _timed_out() -> RequestError:
    return RequestError(503, "the request timed out: try again later")


async def _disconnected(request: Request) -> None:
    """Wait until the client disconnects; the body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
