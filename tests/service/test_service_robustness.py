"""The service under stress: slow, disconnecting and oversized clients, model files replaced under load, and shutdown."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from anomaly.inference.artifact import load_graph, write_model
from anomaly.inference.scorer import OnnxScorer, Scores
from anomaly.service.scoring_service import ScoringService
from tests.plates import draw_part, draw_scratch
from tests.service.running_service import make_service, running, wait_for

DEFECT = cv2.imencode(".png", np.ascontiguousarray(draw_scratch(draw_part(1), 1)[0][..., ::-1]))[1].tobytes()


def post(address: str, *, path: str = "/score", body: bytes = DEFECT) -> tuple[int, Any, dict[str, str]]:
    connection = http.client.HTTPConnection(address, timeout=60)
    try:
        connection.request("POST", path, body=body)
        response = connection.getresponse()
        return response.status, json.loads(response.read()), {k.lower(): v for k, v in response.getheaders()}
    finally:
        connection.close()


def connect(address: str, data: bytes) -> socket.socket:
    host, port = address.split(":")
    connection = socket.create_connection((host, int(port)), timeout=60)
    connection.sendall(data)
    return connection


def head(length: int) -> bytes:
    return f"POST /score HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n".encode()


def gated(service: ScoringService) -> tuple[list[int], threading.Event]:
    """Make every inference wait for an event; returns the sizes of the started batches, and the event."""
    (served,) = service.models.all()
    scorer, started, gate = served.scorer, list[int](), threading.Event()
    score = scorer.score

    def wait_and_score(image: Any) -> Scores:
        started.append(len(image))
        assert gate.wait(60)
        return score(image)

    scorer.score = wait_and_score  # type: ignore[method-assign]
    return started, gate


def trickle(connection: socket.socket, data: bytes, stop: threading.Event) -> None:
    """Send bytes one by one until the connection is closed."""
    while not stop.wait(0.05):
        try:
            connection.send(data)
        except OSError:
            return


def received(connection: socket.socket) -> bytes:
    """Receive until the server closes the connection."""
    parts = []
    try:
        while part := connection.recv(1000):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


@pytest.mark.slow
def test_slow_clients_are_disconnected_while_others_are_served(model: Path) -> None:
    service, stop = make_service(model, timeout=2.0), threading.Event()
    with running(service, idle_seconds=1.0) as address:
        slow_head = connect(address, b"POST /score HT")
        silent = connect(address, b"")
        slow_body = connect(address, head(10_000) + b"x" * 10)
        refused_body = connect(address, head(2**30) + b"x")
        clients = [
            threading.Thread(target=trickle, args=(connection, data, stop))
            for connection, data in ((slow_head, b"T"), (slow_body, b"x"), (refused_body, b"x"))
        ]
        for client in clients:
            client.start()
        assert post(address)[0] == 200
        assert received(slow_head) == b""
        assert received(silent) == b""
        assert received(slow_body).startswith(b"HTTP/1.1 408 ")
        assert received(refused_body).startswith(b"HTTP/1.1 413 ")
        stop.set()
        for client in clients:
            client.join()
        for connection in (slow_head, silent, slow_body, refused_body):
            connection.close()
        assert post(address)[0] == 200
        assert service.memory.num_bytes == 0


def test_100_megabytes_are_refused_on_arrival(model: Path) -> None:
    service = make_service(model)
    with running(service) as address:
        with connect(address, head(100_000_000)) as declared:
            assert declared.recv(1000).startswith(b"HTTP/1.1 413 ")
        chunked = connect(address, b"POST /score HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        chunk = b"%x\r\n" % 2**20 + bytes(2**20) + b"\r\n"
        with chunked:
            for _ in range(100):
                chunked.sendall(chunk)
            chunked.sendall(b"0\r\n\r\n")
            assert chunked.recv(1000).startswith(b"HTTP/1.1 413 ")
        assert post(address)[0] == 200
        assert service.memory.num_bytes == 0


def test_closed_connections_release_their_memory(model: Path) -> None:
    service = make_service(model)
    started, gate = gated(service)
    with running(service) as address:
        for _ in range(20):
            connect(address, head(1000) + b"x" * 500).close()
        first = connect(address, head(len(DEFECT)) + DEFECT)
        wait_for(lambda: started == [1])
        waiting = [connect(address, head(len(DEFECT)) + DEFECT) for _ in range(12)]
        wait_for(lambda: service.num_waiting == 12)
        for connection in (first, *waiting):
            connection.close()
        wait_for(lambda: service.memory.num_bytes == 0)
        gate.set()
        assert post(address)[0] == 200
    assert started == [1, 1]  # the closed requests in the queue never started


def test_full_queue_is_answered_with_503_and_the_queue_with_200(model: Path) -> None:
    service = make_service(model, max_images=4, batch_size=1)
    started, gate = gated(service)
    responses: list[tuple[int, Any, dict[str, str]]] = []

    def add() -> None:
        responses.append(post(address))

    with running(service) as address:
        threads = [threading.Thread(target=add) for _ in range(12)]
        threads[0].start()
        wait_for(lambda: started == [1])
        for thread in threads[1:]:
            thread.start()
        wait_for(lambda: len(responses) == 7)
        refused = list(responses)
        gate.set()
        for thread in threads:
            thread.join()
    assert [status for status, _, _ in responses] == [503] * 7 + [200] * 5
    for _, content, headers in refused:
        assert content == {"error": "the queue of images is full: try again later"}
        assert headers["retry-after"] == "1"


def test_timeout_is_answered_with_503_and_retry_after(model: Path) -> None:
    service = make_service(model, timeout=1.0)
    _, gate = gated(service)
    with running(service) as address:
        status, content, headers = post(address)
        gate.set()
    assert (status, content, headers["retry-after"]) == (
        503, {"error": "the request timed out: try again later"}, "1",
    )  # fmt: skip


def test_shutdown_answers_accepted_requests(model: Path) -> None:
    service = make_service(model, batch_size=1)
    started, gate = gated(service)
    responses: list[int] = []

    def is_closed() -> bool:
        try:
            connect(address, b"").close()
        except ConnectionRefusedError:
            return True
        return False

    def open_gate_after_shutdown_began() -> None:
        wait_for(is_closed)
        gate.set()

    with running(service) as address:
        threads = [threading.Thread(target=lambda: responses.append(post(address)[0])) for _ in range(5)]
        for thread in threads:
            thread.start()
        wait_for(lambda: started == [1] and service.num_waiting == 4)
        opening = threading.Thread(target=open_gate_after_shutdown_began)
        opening.start()
    for thread in (*threads, opening):
        thread.join()
    assert responses == [200] * 5
    assert is_closed()


def replace_file(path: Path, data: bytes) -> None:
    partial = path.with_suffix(".new")
    partial.write_bytes(data)
    partial.replace(path)


def renamed_model(path: Path, *, category: str) -> bytes:
    """The same graph with other metadata: a different valid model file."""
    other = path.with_name("other.onnx")
    metadata = OnnxScorer(path, device="cpu", num_threads=1).metadata
    write_model(other, load_graph(path), replace(metadata, category=category))
    return other.read_bytes()


def test_only_a_complete_file_with_a_correct_golden_score_becomes_active(
    model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    service = make_service(f"plate={model}")
    (served,) = service.models.all()
    first, good = served.scorer, model.read_bytes()
    assert served.reload() is None
    metadata = first.metadata
    wrong = model.with_name("wrong.onnx")
    write_model(wrong, load_graph(model), replace(metadata, golden=replace(metadata.golden, score=99.0)))
    for data in (b"garbage", good[:-1000], b"", wrong.read_bytes()):
        replace_file(model, data)
        assert served.reload() is None  # the file may still grow
        assert served.reload() is False
        assert served.reload() is None
        assert (served.scorer, served.is_current) == (first, False)
    assert "golden image" in caplog.text
    model.unlink()
    assert (served.reload(), served.reload(), served.scorer) == (None, False, first)
    replace_file(model, good)
    assert (served.reload(), served.reload(), served.is_current) == (None, True, True)
    replace_file(model, renamed_model(model, category="renamed"))
    assert (served.reload(), served.reload()) == (None, True)
    assert served.scorer.metadata.category == "renamed"


def test_file_is_replaced_by_garbage_and_by_a_model_under_load(model: Path) -> None:
    service = make_service(f"plate={model}", poll_seconds=0.05)
    (served,) = service.models.all()
    first = served.scorer.sha256[:16]
    other = renamed_model(model, category="renamed")
    responses: list[tuple[int, Any, dict[str, str]]] = []
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            responses.append(post(address))

    def num_reloads(result: str) -> float:
        return service.metrics.reloads.labels("plate", "1", result)._value.get()

    with running(service) as address:
        threads = [threading.Thread(target=load) for _ in range(3)]
        for thread in threads:
            thread.start()
        replace_file(model, b"garbage" * 1000)
        wait_for(lambda: num_reloads("refused") == 1)
        connection = http.client.HTTPConnection(address)
        connection.request("GET", "/v2/models/plate")
        metadata = json.loads(connection.getresponse().read())
        connection.close()
        assert (metadata["parameters"]["current"], metadata["parameters"]["sha256"][:16]) == (False, first)
        assert str(model) not in json.dumps(metadata)
        model.write_bytes(other[: len(other) // 2])  # an unfinished copy
        wait_for(lambda: num_reloads("refused") == 2)
        model.write_bytes(other)
        wait_for(lambda: num_reloads("taken") == 1)
        second = served.scorer.sha256[:16]
        num_before = len(responses)
        wait_for(lambda: len(responses) > num_before + 6)
        stop.set()
        for thread in threads:
            thread.join()
    assert second != first
    assert {status for status, _, _ in responses} == {200}
    models = [row["model"] for _, row, _ in responses]
    assert set(models) == {first, second}
    assert models[-1] == second
    scores = {row["score"] for _, row, _ in responses}
    assert len(scores) <= 4  # batches of 1 to 4 images differ in the last bits
    assert max(scores) - min(scores) < 1e-4
