"""Dynamic batching: one inference for the images of concurrent requests, without delay for a single request.

One thread runs all inferences. Meanwhile new images wait in a bounded queue. A free thread takes the oldest image. It adds
all waiting images of the same model and size, up to the batch size. Batches therefore grow with the load alone. An
optional delay lets the oldest image wait for others. The delay pays only if a batch costs less than its images one by one,
e.g. on a GPU.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anomaly.errors import RequestError
from anomaly.inference.scorer import OnnxScorer, Scores

Observer = Callable[[int, float], None]
"""Called after every inference with the number of images and the seconds"""


@dataclass(frozen=True)
class _Pending:
    scorer: OnnxScorer
    image: NDArray[np.uint8]
    future: Future[Scores]
    since: float

    @property
    def batch_key(self) -> tuple[int, tuple[int, ...]]:
        return id(self.scorer), self.image.shape[1:]


class Batcher:
    """The queue in front of all models, and the inference thread.

    Args:
        max_batch: images per inference.
        max_images: images in the queue.
        max_delay: longest wait of the oldest image for others while the thread is free, in seconds.
        observe: function called in the thread after every inference.
    """

    def __init__(self, *, max_batch: int, max_images: int, max_delay: float, observe: Observer) -> None:
        self._max_batch, self._max_images, self._max_delay = max_batch, max_images, max_delay
        self._observe = observe
        self._queue: deque[_Pending] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="infer")
        self._thread.start()

    @property
    def num_waiting(self) -> int:
        """Images in the queue."""
        with self._changed:
            return self._num_waiting()

    def _num_waiting(self) -> int:
        return sum(len(pending.image) for pending in self._queue)

    def submit(self, scorer: OnnxScorer, image: NDArray[np.uint8]) -> Future[Scores]:
        """Queue the images of one request.

        Args:
            scorer: scorer of the model.
            image: (N, H, W, 3) uint8 RGB.

        Returns:
            The future scores; `cancel` takes the images out of the queue.

        Raises:
            RequestError: 413 more images than the queue can hold, 503 the queue is full or the service is stopping.
        """
        if len(image) > self._max_images:
            raise RequestError(413, f"{len(image)} images in one request: send at most {self._max_images}")
        with self._changed:
            if self._closed:
                raise RequestError(503, "the service is stopping: use another one")
            if self._num_waiting() + len(image) > self._max_images:
                raise RequestError(503, "the queue of images is full: try again later")
            pending = _Pending(scorer, image, Future(), time.monotonic())
            self._queue.append(pending)
            self._changed.notify()
        return pending.future

    def close(self) -> None:
        """Refuse new images, finish the queue and stop the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._queue:
                    if self._closed:
                        return
                    self._changed.wait()
                batch = self._take_batch()
            if batch:
                self._infer(batch)

    def _take_batch(self) -> list[_Pending]:
        """Take the oldest images and those of the same key, in order, up to the batch size; requires the lock."""
        oldest = self._queue[0]
        while not self._closed and self._num_compatible(oldest) < self._max_batch:
            remaining = oldest.since + self._max_delay - time.monotonic()
            if remaining <= 0 or not self._changed.wait(remaining):
                break
        batch: list[_Pending] = []
        kept: deque[_Pending] = deque()
        num_images = 0
        for pending in self._queue:
            fits = not batch or num_images + len(pending.image) <= self._max_batch
            if pending.batch_key == oldest.batch_key and fits:
                if pending.future.set_running_or_notify_cancel():
                    batch.append(pending)
                    num_images += len(pending.image)
            else:
                kept.append(pending)
        self._queue = kept
        return batch

    def _num_compatible(self, oldest: _Pending) -> int:
        return sum(len(pending.image) for pending in self._queue if pending.batch_key == oldest.batch_key)

    def _infer(self, batch: list[_Pending]) -> None:
        images = batch[0].image if len(batch) == 1 else np.concatenate([pending.image for pending in batch])
        try:
            scores = self._score(batch[0].scorer, images)
        except Exception as error:  # no error may stop the thread or fail other requests
            if len(batch) == 1:
                batch[0].future.set_exception(error)
            else:  # one image or the batch size caused it: score each request alone
                for pending in batch:
                    self._infer([pending])
            return
        start = 0
        for pending in batch:
            end = start + len(pending.image)
            pending.future.set_result(Scores(scores.score[start:end], scores.anomaly_map[start:end]))
            start = end

    def _score(self, scorer: OnnxScorer, images: NDArray[np.uint8]) -> Scores:
        """Score images; a single request may contain more than one batch."""
        parts = []
        for first in range(0, len(images), self._max_batch):
            part = images[first : first + self._max_batch]
            start = time.perf_counter()
            parts.append(scorer.score(part))
            self._observe(len(part), time.perf_counter() - start)
        if len(parts) == 1:
            return parts[0]
        return Scores(np.concatenate([p.score for p in parts]), np.concatenate([p.anomaly_map for p in parts]))
