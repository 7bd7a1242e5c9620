"""The web page without a browser: its files, their access, and the data that the service provides for it."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from starlette.testclient import TestClient

from anomaly.commands.main import run
from anomaly.inference.scorer import OnnxScorer
from anomaly.service.openapi import openapi_document
from anomaly.service.static_files import FOLDER, PAGE, REVIEW_PAGE
from tests.service.running_service import BASE, TOKEN, make_app, make_service


@pytest.fixture(scope="module")
def client(fitted_plate: Path) -> Iterator[TestClient]:
    with TestClient(make_app(make_service(f"plate={fitted_plate / 'model.onnx'}")), base_url=BASE) as opened:
        yield opened


def test_page_and_its_files_are_served_under_a_strict_policy(client: TestClient) -> None:
    for path, (name, media_type) in PAGE.items():
        answer = client.get(path)
        assert (answer.status_code, answer.content) == (200, (FOLDER / name).read_bytes()), path
        assert answer.headers["content-type"].split(";")[0] == media_type
        assert answer.headers["x-content-type-options"] == "nosniff"
        policy = answer.headers["content-security-policy"].split("; ")
        assert policy[:3] == ["default-src 'none'", "script-src 'self'", "style-src 'self'"]
        assert "unsafe" not in str(policy)
        assert client.head(path).status_code == 200
    names = {name for name, _ in (*PAGE.values(), *REVIEW_PAGE.values())}
    assert sorted(path.name for path in FOLDER.iterdir()) == sorted(names)


def test_files_contain_no_resource_of_another_host() -> None:
    for name, _ in {*PAGE.values(), *REVIEW_PAGE.values()}:
        text = (FOLDER / name).read_text(encoding="utf-8")
        assert not re.search(r"""https?:|["'(]//""", text.replace("http://www.w3.org/2000/svg", ""))
        assert "innerHTML" not in text
        assert " style=" not in text
        assert len(text.splitlines()) <= 400


@pytest.mark.parametrize(
    "path", ["/static/", "/static", "/static/../app.py", "/static/%2e%2e/app.py", "/static/..%2fapp.py", "/static//etc/passwd",
             "/static/index.html", "/static/main.js/x", "/static/MAIN.JS", "/static/main.js%00", "/index.html",
             "/static/review_main.js", "/api/run"],
)  # fmt: skip
def test_other_paths_are_not_served(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404


def test_page_needs_no_token_but_its_data_do(fitted_plate: Path) -> None:
    service = make_service(f"plate={fitted_plate / 'model.onnx'}")
    with TestClient(make_app(service, token=TOKEN), base_url=BASE) as client:
        assert all(client.get(path).status_code == 200 for path in PAGE)
        for method, path in (
            ("POST", "/v2/repository/index"),
            ("GET", "/v2/models/plate"),
            ("POST", "/score?map=true"),
        ):
            assert client.request(method, path).status_code == 401
        index = client.post("/v2/repository/index", headers={"authorization": f"Bearer {TOKEN}"})
        assert index.json()[0]["name"] == "plate"


def test_map_equals_the_map_of_the_verb(client: TestClient, category: Path, fitted_plate: Path, tmp_path: Path) -> None:
    images = category / "test/scratch"
    assert run(["score", str(fitted_plate / "model.onnx"), str(images), "--run", str(tmp_path / "run"), "--maps"]) == 0
    resize = OnnxScorer(fitted_plate / "model.onnx", device="cpu", num_threads=1).metadata.resize
    for number, path in enumerate(sorted(images.glob("*.png"))):
        found = client.post("/score?map=true", content=path.read_bytes()).json()["map"]
        assert (found["step"], found["zero"], found["resize"]) == (1 / 2048, 4.0, resize)
        data = np.frombuffer(base64.b64decode(found["png"]), dtype=np.uint8)
        levels = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
        written = cv2.imread(str(tmp_path / f"run/maps/{number:08d}.png"), cv2.IMREAD_UNCHANGED)
        assert levels is not None
        assert written is not None
        assert (levels.dtype, levels.shape) == (np.uint16, (64, 64))
        assert np.abs(levels.astype(int) - written.astype(int)).max() <= 1  # rounding depends on the batch size
        assert levels.max() > (1 + 4) * 2048
    assert "map" not in client.post("/score", content=path.read_bytes()).json()
    assert client.post("/score?map=yes", content=path.read_bytes()).status_code == 400


def test_document_describes_the_map() -> None:
    described = openapi_document([("plate", "1")])
    parameters = {p["name"]: p for p in described["paths"]["/score"]["post"]["parameters"]}
    assert parameters["map"]["schema"] == {"type": "boolean"}
    found = described["components"]["schemas"]["Row"]["properties"]["map"]
    assert found["required"] == ["png", "step", "zero", "resize"]
    assert found["properties"]["resize"]["enum"] == ["stretch", "letterbox", "native"]
    assert "half-pixel" in found["description"]


def test_metadata_contain_the_model_card(client: TestClient, fitted_plate: Path) -> None:
    stored = OnnxScorer(fitted_plate / "model.onnx", device="cpu", num_threads=1).metadata
    card = client.get("/v2/models/plate").json()["parameters"]
    assert card["calibration_date"] == stored.calibration.date
    assert (card["alpha"], card["guarantee"]) == (stored.alpha, stored.guarantee)
    assert card["num_calibration"] == stored.calibration.num_images > 0
    assert (card["num_part_groups"], card["basis"]) == (10, "split, 10 images")
    assert card["expected_rate"] == pytest.approx(1 / 11)
    assert card["threshold"] == 1.0
    assert all(isinstance(value, str | int | float | bool) for value in card.values())


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(scheme: str) -> None:
    light, dark = (FOLDER / "base.css").read_text(encoding="utf-8").split("@media (prefers-color-scheme: dark)")
    colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", light if scheme == "light" else dark))
    grounds = [(word, ground) for word in ("ink", "muted", "good", "defect", "review") for ground in ("paper", "wash")]
    grounds += [("muted", "sunk"), ("ink", "sunk"), ("on-accent", "accent"), ("tried", "paper"), ("paper", "ink")]
    grounds += [(kind, f"{kind}-wash") for kind in ("good", "defect", "review")]
    grounds += [("ink", "defect-wash"), ("ink", "good-wash"), ("accent", "paper"), ("paper", "defect")]
    for pair in grounds:
        low, high = sorted(luminance(colours[name]) for name in pair)
        assert (high + 0.05) / (low + 0.05) >= 4.5, pair


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb (WCAG 2.2)."""
    channels = np.array([int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)])
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))
