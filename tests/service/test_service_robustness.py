"""What goes wrong around a service: clients that are slow, vanish or send too much, files replaced under load, the end."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from anomaly.inference.artifact import load_graph, write_model
from anomaly.inference.scorer import OnnxScorer, Scores
from anomaly.service import app as app_module
from anomaly.service.app import Service
from tests.plates import draw_part, draw_scratch
from tests.service.served import make_service, running

DEFECT = cv2.imencode(".png", np.ascontiguousarray(draw_scratch(draw_part(1), 1)[0][..., ::-1]))[1].tobytes()


def ask(address: str, *, path: str = "/score", body: bytes = DEFECT) -> tuple[int, Any, dict[str, str]]:
    connection = http.client.HTTPConnection(address, timeout=20)
    try:
        connection.request("POST", path, body=body)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read()), {k.lower(): v for k, v in answer.getheaders()}
    finally:
        connection.close()


def raw(address: str, data: bytes) -> socket.socket:
    host, port = address.split(":")
    opened = socket.create_connection((host, int(port)), timeout=20)
    opened.sendall(data)
    return opened


def head(length: int) -> bytes:
    return f"POST /score HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n".encode()


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def gated(service: Service) -> tuple[list[int], threading.Event]:
    """Make inferences wait for an event; gives the sizes of the batches that were begun, and the event."""
    (served,) = service.models.all()
    scorer, begun, gate = served.scorer, list[int](), threading.Event()
    score = scorer.score

    def wait_and_score(image: Any) -> Scores:
        begun.append(len(image))
        assert gate.wait(20)
        return score(image)

    scorer.score = wait_and_score  # type: ignore[method-assign]
    return begun, gate


def test_slow_clients_are_cut_while_others_are_served(model: Path) -> None:
    service = make_service(model, timeout=1.5)
    with running(service, idle_seconds=0.5) as address:
        slow_head = raw(address, b"POST /score HT")
        silent = raw(address, b"")
        slow_body = raw(address, head(1000) + b"x" * 10)
        refused_body = raw(address, head(2**30) + b"x")
        assert ask(address)[0] == 200
        for number in range(18):
            time.sleep(0.1)
            for trickle, data in ((slow_head, b"T"), (slow_body, b"x"), (refused_body, b"x")):
                try:
                    trickle.send(data)
                except OSError:
                    assert number > 2
        assert slow_body.recv(100).startswith(b"HTTP/1.1 408 ")
        assert refused_body.recv(100).startswith(b"HTTP/1.1 413 ")
        for cut in (slow_head, silent, slow_body, refused_body):
            try:
                while cut.recv(1000):
                    pass
            except ConnectionResetError:
                pass
            cut.close()
        assert ask(address)[0] == 200
        assert service._memory.num_bytes == 0


def test_100_megabytes_are_refused_as_they_come(model: Path) -> None:
    service = make_service(model)
    with running(service) as address:
        with raw(address, head(100_000_000)) as declared:
            assert declared.recv(1000).startswith(b"HTTP/1.1 413 ")
        chunked = raw(address, b"POST /score HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        chunk = b"%x\r\n" % 2**20 + bytes(2**20) + b"\r\n"
        with chunked:
            for _ in range(100):
                chunked.sendall(chunk)
            chunked.sendall(b"0\r\n\r\n")
            assert chunked.recv(1000).startswith(b"HTTP/1.1 413 ")
        assert ask(address)[0] == 200
        assert service._memory.num_bytes == 0


def test_dropped_connections_give_everything_back(model: Path) -> None:
    service = make_service(model)
    begun, gate = gated(service)
    with running(service) as address:
        for _ in range(20):
            raw(address, head(1000) + b"x" * 500).close()
        first = raw(address, head(len(DEFECT)) + DEFECT)
        wait_for(lambda: begun == [1])
        waiting = [raw(address, head(len(DEFECT)) + DEFECT) for _ in range(12)]
        wait_for(lambda: service._batcher.num_waiting == 12)
        for gone in (first, *waiting):
            gone.close()
        wait_for(lambda: service._memory.num_bytes == 0)
        gate.set()
        assert ask(address)[0] == 200
    assert begun == [1, 1]  # those that waited and went away were never begun


def test_full_queue_is_503_with_retry_after_and_what_waits_is_answered(model: Path) -> None:
    service = make_service(model, max_images=4, batch_size=1)
    begun, gate = gated(service)
    answers: list[tuple[int, Any, dict[str, str]]] = []

    def add() -> None:
        answers.append(ask(address))

    with running(service) as address:
        threads = [threading.Thread(target=add) for _ in range(12)]
        threads[0].start()
        wait_for(lambda: begun == [1])
        for thread in threads[1:]:
            thread.start()
        wait_for(lambda: len(answers) == 7)
        refused = list(answers)
        gate.set()
        for thread in threads:
            thread.join()
    assert [status for status, _, _ in answers] == [503] * 7 + [200] * 5
    for _, told, headers in refused:
        assert told == {"error": "too many images wait for a model: try again later"}
        assert headers["retry-after"] == "1"


def test_time_that_is_over_is_503_with_retry_after(model: Path) -> None:
    service = make_service(model, timeout=1.0)
    begun, gate = gated(service)
    with running(service) as address:
        status, told, headers = ask(address)
        gate.set()
    assert (status, told, headers["retry-after"]) == (
        503, {"error": "the time of this request is over: try again later"}, "1",
    )  # fmt: skip
    assert begun == [1]


def test_end_answers_what_was_accepted(model: Path) -> None:
    service = make_service(model, batch_size=1)
    begun, gate = gated(service)
    answers: list[int] = []
    with running(service) as address:
        threads = [threading.Thread(target=lambda: answers.append(ask(address)[0])) for _ in range(5)]
        for thread in threads:
            thread.start()
        wait_for(lambda: begun == [1] and service._batcher.num_waiting == 4)
        later = threading.Timer(0.3, gate.set)
        later.start()
    for thread in (*threads, later):
        thread.join()
    assert answers == [200] * 5
    with pytest.raises(ConnectionRefusedError):
        raw(address, b"")


def replace_file(path: Path, data: bytes) -> None:
    partial = path.with_suffix(".new")
    partial.write_bytes(data)
    partial.replace(path)


def renamed_model(path: Path, *, category: str) -> bytes:
    """The same graph with other metadata: another file, and ours."""
    other = path.with_name("other.onnx")
    metadata = OnnxScorer(path, device="cpu", num_threads=1).metadata
    write_model(other, load_graph(path), replace(metadata, category=category))
    return other.read_bytes()


def test_file_is_taken_over_only_when_it_is_whole_and_keeps_its_golden_image(
    model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    service = make_service(f"plate={model}")
    (served,) = service.models.all()
    first, good = served.scorer, model.read_bytes()
    assert served.reload() is None
    metadata = first.metadata
    lying = model.with_name("lying.onnx")
    write_model(lying, load_graph(model), replace(metadata, golden=replace(metadata.golden, score=99.0)))
    for data in (b"garbage", good[:-1000], b"", lying.read_bytes()):
        replace_file(model, data)
        assert served.reload() is None  # it may still be growing
        assert served.reload() is False
        assert served.reload() is None
        assert (served.scorer, served.is_current) == (first, False)
    assert "does not score its golden image" in caplog.text
    model.unlink()
    assert (served.reload(), served.reload(), served.scorer) == (None, False, first)
    replace_file(model, renamed := good[:])
    assert (served.reload(), served.reload(), served.is_current) == (None, True, True)
    replace_file(model, renamed_model(model, category="renamed"))
    assert (served.reload(), served.reload()) == (None, True)
    assert served.scorer.metadata.category == "renamed"
    assert renamed == good


def test_file_replaced_by_garbage_and_by_a_model_under_load(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_module, "POLL_SECONDS", 0.05)
    service = make_service(f"plate={model}")
    (served,) = service.models.all()
    first = served.scorer.sha256[:16]
    other = renamed_model(model, category="renamed")
    answers: list[tuple[int, Any, dict[str, str]]] = []
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            answers.append(ask(address))

    def counted(result: str) -> float:
        return service.metrics.reloads.labels("plate", "1", result)._value.get()

    with running(service) as address:
        threads = [threading.Thread(target=load) for _ in range(3)]
        for thread in threads:
            thread.start()
        replace_file(model, b"garbage" * 1000)
        wait_for(lambda: counted("refused") == 1)
        told = http.client.HTTPConnection(address)
        told.request("GET", "/v2/models/plate")
        about = json.loads(told.getresponse().read())
        told.close()
        assert (about["parameters"]["current"], about["parameters"]["sha256"][:16]) == (False, first)
        assert str(model) not in json.dumps(about)
        model.write_bytes(other[: len(other) // 2])  # a copy that is under way
        time.sleep(0.2)
        model.write_bytes(other)
        wait_for(lambda: counted("taken") == 1)
        second = served.scorer.sha256[:16]
        num_before = len(answers)
        wait_for(lambda: len(answers) > num_before + 6)
        stop.set()
        for thread in threads:
            thread.join()
    assert second != first
    assert {status for status, _, _ in answers} == {200}
    models = [told["model"] for _, told, _ in answers]
    assert set(models) == {first, second}
    assert models[-1] == second
    assert len({told["score"] for _, told, _ in answers}) <= 4  # batches of 1 to 4 differ in the last bits
    assert max(told["score"] for _, told, _ in answers) - min(told["score"] for _, told, _ in answers) < 1e-4
