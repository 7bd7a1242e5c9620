"""Access control, the limit of concurrent requests, and errors without internal details."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from anomaly.service.auth import OPEN_PATHS
from tests.service.running_service import BASE, TOKEN, make_app, make_service


@pytest.fixture(scope="module")
def client(fitted_plate: Path) -> Iterator[TestClient]:
    with TestClient(make_app(make_service(fitted_plate / "model.onnx")), base_url=BASE) as opened:
        yield opened


def test_token_is_required_outside_the_open_paths(fitted_plate: Path) -> None:
    service, log = make_service(fitted_plate / "model.onnx"), []
    with TestClient(make_app(service, token=TOKEN, log=log), base_url=BASE) as client:
        paths = [route.path for route in client.app._app.routes]
        for path in paths:
            filled = path.replace("{name}", "model").replace("{version}", "1")
            for headers in ({}, {"authorization": "Bearer wrong-token-here"}, {"authorization": f"Basic {TOKEN}"}):
                answer = client.get(f"{filled}?token={TOKEN}", headers=headers)
                assert answer.status_code == (200 if path in OPEN_PATHS else 401), path
                if path not in OPEN_PATHS:
                    assert answer.headers["www-authenticate"] == "Bearer"
        right = {"authorization": f"bearer {TOKEN}"}
        assert client.get("/v2", headers=right).status_code == 200
        assert client.get("/v2", headers=right | {"host": "line7.example"}).status_code == 200
    assert TOKEN not in json.dumps(log)
    assert len(log) == 3 * len(paths) + 2


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "localhost:8000"}, 200),
        ({"host": "[::1]:8000"}, 200),
        ({"host": "127.0.0.1"}, 200),
        ({"host": "evil.example"}, 421),
        ({"host": "127.0.0.1.evil.example"}, 421),
        ({"host": ""}, 421),
        ({"host": "[::1"}, 421),
        ({"host": "localhost:8000", "origin": "http://localhost:8000"}, 200),
        ({"host": "localhost:8000", "origin": "http://localhost:9000"}, 403),
        ({"host": "localhost:8000", "origin": "http://evil.example"}, 403),
        ({"host": "localhost:8000", "origin": "null"}, 403),
        ({"host": "localhost:8000", "origin": "http://[::1"}, 403),
    ],
)
def test_requests_from_pages_of_other_sites_are_refused(
    client: TestClient, headers: dict[str, str], status: int
) -> None:
    answer = client.get("/v2", headers=headers)
    assert answer.status_code == status
    assert not any(name.startswith("access-control") for name in answer.headers)
    assert (answer.headers["x-content-type-options"], answer.headers["cache-control"]) == ("nosniff", "no-store")


def test_too_many_concurrent_requests_are_answered_with_503(fitted_plate: Path) -> None:
    service = make_service(fitted_plate / "model.onnx", max_requests=1)
    app = make_app(service)
    with TestClient(app, base_url=BASE) as client:
        app._num_requests = 1  # type: ignore[attr-defined]
        answer = client.get("/v2")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert client.get("/v2/health/live").status_code == 200
        app._num_requests = 0  # type: ignore[attr-defined]
        assert client.get("/v2").status_code == 200


def test_internal_error_leaks_nothing(fitted_plate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = make_service(fitted_plate / "model.onnx")

    def fail() -> bytes:
        raise RuntimeError(f"secret at {fitted_plate}")

    monkeypatch.setattr(service.metrics, "export", fail)
    with TestClient(make_app(service), base_url=BASE, raise_server_exceptions=False) as client:
        answer = client.get("/metrics")
        assert (answer.status_code, answer.json()) == (500, {"error": "internal error: see the log of the service"})
        assert client.get("/v2").status_code == 200
