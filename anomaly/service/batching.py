"""Gather the images of concurrent requests into one inference, without making a lone request wait.

One thread infers. While it is busy, images wait in a bounded queue; when it is free it takes the oldest, and with it all
that wait for the same model at the same size, up to a number. So batches grow with the load alone. A delay can be asked
for, up to which the oldest waits for company; it is worth its time only where a batch costs less than its images one by
one, as on a GPU.
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
"""Told of every inference: the number of images, and seconds"""


@dataclass(frozen=True)
class _Waiting:
    scorer: OnnxScorer
    image: NDArray[np.uint8]
    future: Future[Scores]
    since: float

    @property
    def kind(self) -> tuple[int, tuple[int, ...]]:
        return id(self.scorer), self.image.shape[1:]


class Batcher:
    """The queue in front of all models, and the thread that infers.

    Args:
        max_batch: images per inference.
        max_images: that may wait.
        max_delay: seconds that the oldest image may wait for others while nothing is inferred.
        observe: called after every inference, in the thread.
    """

    def __init__(self, *, max_batch: int, max_images: int, max_delay: float, observe: Observer) -> None:
        self._max_batch, self._max_images, self._max_delay = max_batch, max_images, max_delay
        self._observe = observe
        self._waiting: deque[_Waiting] = deque()
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
        return sum(len(one.image) for one in self._waiting)

    def submit(self, scorer: OnnxScorer, image: NDArray[np.uint8]) -> Future[Scores]:
        """Queue the images (n, H, W, 3) of one request; a result that is no longer wanted is given up by `cancel`.

        Raises:
            RequestError: 413 more images than may wait, 503 too many wait already, or the service ends.
        """
        if len(image) > self._max_images:
            raise RequestError(413, f"{len(image)} images in one request: send at most {self._max_images}")
        with self._changed:
            if self._closed:
                raise RequestError(503, "the service ends: ask another one")
            if self._num_waiting() + len(image) > self._max_images:
                raise RequestError(503, "too many images wait for a model: try again later")
            one = _Waiting(scorer, image, Future(), time.monotonic())
            self._waiting.append(one)
            self._changed.notify()
        return one.future

    def close(self) -> None:
        """Infer what waits, take nothing more, and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting:
                    if self._closed:
                        return
                    self._changed.wait()
                batch = self._gather()
            if batch:
                self._infer(batch)

    def _gather(self) -> list[_Waiting]:
        """Take the oldest and those of its kind, in order, within the size of a batch; the lock is held."""
        oldest = self._waiting[0]
        while not self._closed and self._company(oldest) < self._max_batch:
            left = oldest.since + self._max_delay - time.monotonic()
            if left <= 0 or not self._changed.wait(left):
                break
        taken: list[_Waiting] = []
        kept: deque[_Waiting] = deque()
        num_images = 0
        for one in self._waiting:
            fits = not taken or num_images + len(one.image) <= self._max_batch
            if one.kind == oldest.kind and fits:
                if one.future.set_running_or_notify_cancel():
                    taken.append(one)
                    num_images += len(one.image)
            else:
                kept.append(one)
        self._waiting = kept
        return taken

    def _company(self, oldest: _Waiting) -> int:
        return sum(len(one.image) for one in self._waiting if one.kind == oldest.kind)

    def _infer(self, batch: list[_Waiting]) -> None:
        images = batch[0].image if len(batch) == 1 else np.concatenate([one.image for one in batch])
        try:
            scores = self._scored(batch[0].scorer, images)
        except Exception as error:  # whatever an inference provokes, the thread and the other requests go on
            if len(batch) == 1:
                batch[0].future.set_exception(error)
            else:  # one of them, or their number: none has to suffer for the others
                for one in batch:
                    self._infer([one])
            return
        at = 0
        for one in batch:
            end = at + len(one.image)
            one.future.set_result(Scores(scores.score[at:end], scores.anomaly_map[at:end]))
            at = end

    def _scored(self, scorer: OnnxScorer, images: NDArray[np.uint8]) -> Scores:
        """Score images, of which a single request may have brought more than a batch holds."""
        parts = []
        for at in range(0, len(images), self._max_batch):
            part = images[at : at + self._max_batch]
            begin = time.perf_counter()
            parts.append(scorer.score(part))
            self._observe(len(part), time.perf_counter() - begin)
        if len(parts) == 1:
            return parts[0]
        return Scores(np.concatenate([p.score for p in parts]), np.concatenate([p.anomaly_map for p in parts]))
