"""The queue: shared inferences, waiting and refused requests, and isolation of failed requests."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from anomaly.errors import RequestError
from anomaly.inference.scorer import OnnxScorer, Scores
from anomaly.service.batching import Batcher


class GatedScorer:
    """A scorer that waits for its semaphore and returns the means of images."""

    def __init__(self) -> None:
        self.open = threading.Semaphore(0)
        self.entered = threading.Semaphore(0)
        self.batches: list[tuple[int, ...]] = []

    def score(self, image: NDArray[np.uint8]) -> Scores:
        self.entered.release()
        assert self.open.acquire(timeout=60)
        self.batches.append(image.shape)
        if (image == 255).any():
            raise RuntimeError("cannot")
        mean = image.mean(axis=(1, 2, 3), dtype=np.float32)
        return Scores(mean, np.repeat(mean[:, None, None], 2, axis=1))


def as_onnx(scorer: GatedScorer) -> OnnxScorer:
    return cast(OnnxScorer, scorer)


@contextmanager
def batcher(scorers: list[GatedScorer], **changed: Any) -> Iterator[Batcher]:
    options: dict[str, Any] = {"max_batch": 4, "max_images": 8, "max_delay": 0.0, "observe": lambda num, seconds: None}
    found = Batcher(**options | changed)
    try:
        yield found
    finally:
        for scorer in scorers:
            scorer.open.release(100)
        found.close()


def images(value: int, num: int = 1, side: int = 2) -> NDArray[np.uint8]:
    return np.full((num, side, side, 3), value, dtype=np.uint8)


def means(future: Future[Scores]) -> list[float]:
    scores = future.result(timeout=60)
    assert len(scores.anomaly_map) == len(scores.score)
    return [float(v) for v in scores.score]


def busy(queue: Batcher, scorer: GatedScorer) -> Future[Scores]:
    """A request whose inference runs until the scorer is released."""
    first = queue.submit(as_onnx(scorer), images(9))
    assert scorer.entered.acquire(timeout=60)
    return first


def test_single_request_does_not_wait_and_later_ones_share_a_batch() -> None:
    scorer = GatedScorer()
    with batcher([scorer]) as queue:
        first = busy(queue, scorer)
        assert queue.num_waiting == 0
        later = [queue.submit(as_onnx(scorer), images(n)) for n in range(6)]
        assert queue.num_waiting == 6
        scorer.open.release(100)
        assert means(first) == [9]
        assert [means(future) for future in later] == [[n] for n in range(6)]
    assert [shape[0] for shape in scorer.batches] == [1, 4, 2]


def test_batch_has_one_model_and_one_size_and_keeps_the_order() -> None:
    a, b = GatedScorer(), GatedScorer()
    with batcher([a, b]) as queue:
        first = busy(queue, a)
        kinds = [(a, 2), (b, 2), (a, 3), (a, 2), (b, 2)]
        later = [queue.submit(as_onnx(s), images(n, side=side)) for n, (s, side) in enumerate(kinds)]
        a.open.release(100)
        b.open.release(100)
        assert means(first) == [9]
        assert [means(future) for future in later] == [[n] for n in range(5)]
    assert a.batches == [(1, 2, 2, 3), (2, 2, 2, 3), (1, 3, 3, 3)]
    assert b.batches == [(2, 2, 2, 3)]


def test_request_with_many_images_is_split_into_batches() -> None:
    scorer = GatedScorer()
    seen: list[int] = []
    with batcher([scorer], observe=lambda num, seconds: seen.append(num)) as queue:
        scorer.open.release(100)
        many = np.concatenate([images(n) for n in range(7)])
        assert means(queue.submit(as_onnx(scorer), many)) == list(range(7))
    assert seen == [4, 3]


def test_full_queue_and_too_large_requests_are_refused() -> None:
    scorer = GatedScorer()
    with batcher([scorer]) as queue:
        busy(queue, scorer)
        queue.submit(as_onnx(scorer), images(1, num=7))
        queue.submit(as_onnx(scorer), images(1))
        with pytest.raises(RequestError, match="the queue of images is full") as full:
            queue.submit(as_onnx(scorer), images(1))
        with pytest.raises(RequestError, match="9 images in one request: send at most 8") as large:
            queue.submit(as_onnx(scorer), images(1, num=9))
        assert (full.value.status, large.value.status) == (503, 413)


def test_cancelled_requests_are_not_scored() -> None:
    scorer = GatedScorer()
    with batcher([scorer]) as queue:
        first = busy(queue, scorer)
        gone = [queue.submit(as_onnx(scorer), images(n)) for n in (1, 2, 3)]
        stays = queue.submit(as_onnx(scorer), images(4))
        assert all(future.cancel() for future in gone)
        scorer.open.release(100)
        assert (means(first), means(stays)) == ([9], [4])
    assert scorer.batches == [(1, 2, 2, 3)] * 2


def test_failure_of_one_request_does_not_fail_its_batch() -> None:
    scorer = GatedScorer()
    with batcher([scorer]) as queue:
        first = busy(queue, scorer)
        later = [queue.submit(as_onnx(scorer), images(value)) for value in (1, 255, 2)]
        scorer.open.release(100)
        assert (means(first), means(later[0]), means(later[2])) == ([9], [1], [2])
        with pytest.raises(RuntimeError, match="cannot"):
            later[1].result(timeout=60)
        assert means(queue.submit(as_onnx(scorer), images(3))) == [3]


def test_delay_collects_a_batch_and_ends() -> None:
    scorer = GatedScorer()
    with batcher([scorer], max_delay=60.0) as queue:
        scorer.open.release(100)
        futures = [queue.submit(as_onnx(scorer), images(n)) for n in range(4)]
        assert [means(future) for future in futures] == [[0], [1], [2], [3]]
    assert scorer.batches == [(4, 2, 2, 3)]
    with batcher([scorer], max_delay=0.05) as queue:
        assert means(queue.submit(as_onnx(scorer), images(5))) == [5]


def test_close_finishes_the_queue_and_refuses_new_requests() -> None:
    scorer = GatedScorer()
    with batcher([scorer]) as queue:
        first = busy(queue, scorer)
        later = [queue.submit(as_onnx(scorer), images(n)) for n in range(3)]
        closing = threading.Thread(target=queue.close)
        closing.start()
        scorer.open.release(100)
        closing.join(timeout=60)
        assert not closing.is_alive()
        assert (means(first), [means(future) for future in later]) == ([9], [[0], [1], [2]])
        with pytest.raises(RequestError, match="the service is stopping"):
            queue.submit(as_onnx(scorer), images(1))
