"""The queue: what shares an inference, what waits, what is refused, and that one request's fault is not another's."""

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


class Gated:
    """A scorer that waits to be let through, and gives the means of images."""

    def __init__(self) -> None:
        self.open = threading.Semaphore(0)
        self.entered = threading.Semaphore(0)
        self.batches: list[tuple[int, ...]] = []

    def score(self, image: NDArray[np.uint8]) -> Scores:
        self.entered.release()
        assert self.open.acquire(timeout=10)
        self.batches.append(image.shape)
        if (image == 255).any():
            raise RuntimeError("cannot")
        mean = image.mean(axis=(1, 2, 3), dtype=np.float32)
        return Scores(mean, np.repeat(mean[:, None, None], 2, axis=1))


def of(scorer: Gated) -> OnnxScorer:
    return cast(OnnxScorer, scorer)


@contextmanager
def batcher(scorers: list[Gated], **changed: Any) -> Iterator[Batcher]:
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
    scores = future.result(timeout=10)
    assert len(scores.anomaly_map) == len(scores.score)
    return [float(v) for v in scores.score]


def busy(queue: Batcher, scorer: Gated) -> Future[Scores]:
    """A request that is being inferred until the scorer is let through."""
    first = queue.submit(of(scorer), images(9))
    assert scorer.entered.acquire(timeout=10)
    return first


def test_a_lone_request_does_not_wait_and_those_behind_it_share() -> None:
    scorer = Gated()
    with batcher([scorer]) as queue:
        first = busy(queue, scorer)
        assert queue.num_waiting == 0
        later = [queue.submit(of(scorer), images(n)) for n in range(6)]
        assert queue.num_waiting == 6
        scorer.open.release(100)
        assert means(first) == [9]
        assert [means(future) for future in later] == [[n] for n in range(6)]
    assert [shape[0] for shape in scorer.batches] == [1, 4, 2]


def test_only_one_model_and_size_share_and_the_order_is_kept() -> None:
    a, b = Gated(), Gated()
    with batcher([a, b]) as queue:
        first = busy(queue, a)
        kinds = [(a, 2), (b, 2), (a, 3), (a, 2), (b, 2)]
        later = [queue.submit(of(s), images(n, side=side)) for n, (s, side) in enumerate(kinds)]
        a.open.release(100)
        b.open.release(100)
        assert means(first) == [9]
        assert [means(future) for future in later] == [[n] for n in range(5)]
    assert a.batches == [(1, 2, 2, 3), (2, 2, 2, 3), (1, 3, 3, 3)]
    assert b.batches == [(2, 2, 2, 3)]


def test_request_of_many_images_goes_in_batches_and_comes_back_whole() -> None:
    scorer = Gated()
    seen: list[int] = []
    with batcher([scorer], observe=lambda num, seconds: seen.append(num)) as queue:
        scorer.open.release(100)
        many = np.concatenate([images(n) for n in range(7)])
        assert means(queue.submit(of(scorer), many)) == list(range(7))
    assert seen == [4, 3]


def test_full_queue_and_too_large_a_request_are_refused() -> None:
    scorer = Gated()
    with batcher([scorer]) as queue:
        busy(queue, scorer)
        queue.submit(of(scorer), images(1, num=7))
        queue.submit(of(scorer), images(1))
        with pytest.raises(RequestError, match="too many images wait") as full:
            queue.submit(of(scorer), images(1))
        with pytest.raises(RequestError, match="9 images in one request: send at most 8") as large:
            queue.submit(of(scorer), images(1, num=9))
        assert (full.value.status, large.value.status) == (503, 413)


def test_what_is_no_longer_wanted_is_not_inferred() -> None:
    scorer = Gated()
    with batcher([scorer]) as queue:
        first = busy(queue, scorer)
        gone = [queue.submit(of(scorer), images(n)) for n in (1, 2, 3)]
        stays = queue.submit(of(scorer), images(4))
        assert all(future.cancel() for future in gone)
        scorer.open.release(100)
        assert (means(first), means(stays)) == ([9], [4])
    assert scorer.batches == [(1, 2, 2, 3)] * 2


def test_fault_of_one_request_leaves_the_others_of_its_batch() -> None:
    scorer = Gated()
    with batcher([scorer]) as queue:
        first = busy(queue, scorer)
        later = [queue.submit(of(scorer), images(value)) for value in (1, 255, 2)]
        scorer.open.release(100)
        assert (means(first), means(later[0]), means(later[2])) == ([9], [1], [2])
        with pytest.raises(RuntimeError, match="cannot"):
            later[1].result(timeout=10)
        assert means(queue.submit(of(scorer), images(3))) == [3]


def test_delay_gathers_company_and_ends() -> None:
    scorer = Gated()
    with batcher([scorer], max_delay=5.0) as queue:
        scorer.open.release(100)
        futures = [queue.submit(of(scorer), images(n)) for n in range(4)]
        assert [means(future) for future in futures] == [[0], [1], [2], [3]]
    assert scorer.batches == [(4, 2, 2, 3)]
    with batcher([scorer], max_delay=0.05) as queue:
        assert means(queue.submit(of(scorer), images(5))) == [5]


def test_end_finishes_what_waits_and_takes_no_more() -> None:
    scorer = Gated()
    with batcher([scorer]) as queue:
        first = busy(queue, scorer)
        later = [queue.submit(of(scorer), images(n)) for n in range(3)]
        closing = threading.Thread(target=queue.close)
        closing.start()
        scorer.open.release(100)
        closing.join(timeout=10)
        assert not closing.is_alive()
        assert (means(first), [means(future) for future in later]) == ([9], [[0], [1], [2]])
        with pytest.raises(RequestError, match="the service ends"):
            queue.submit(of(scorer), images(1))
