"""The service in one process: the protocol with Triton's client, plain scoring, and limits."""

from __future__ import annotations

import base64
import gzip
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tritonclient.http as triton
from numpy.typing import NDArray
from starlette.testclient import TestClient

from anomaly.inference.scorer import OnnxScorer, Scores
from anomaly.inference.session import SESSION_ERRORS
from anomaly.scoring.pipeline import score_images
from anomaly.scoring.rows import row_values
from anomaly.scoring.settings import DEFAULT_PRODUCT, Settings
from anomaly.scoring.sources import Item
from anomaly.service.inference_protocol import HEADER_LENGTH
from tests.plates import draw_part, draw_scratch
from tests.service.running_service import BASE, make_app, make_service, running


@pytest.fixture(scope="module")
def served_model(fitted_plate: Path) -> Path:
    return fitted_plate / "model.onnx"


@pytest.fixture(scope="module")
def scorer(served_model: Path) -> OnnxScorer:
    return OnnxScorer(served_model, device="cpu", num_threads=1)


@pytest.fixture(scope="module")
def client(served_model: Path) -> Iterator[TestClient]:
    with TestClient(make_app(make_service(f"plate={served_model}")), base_url=BASE) as opened:
        yield opened


@pytest.fixture(scope="module")
def address(served_model: Path) -> Iterator[str]:
    with running(make_service(f"plate={served_model}", f"other={served_model}")) as found:
        yield found


def png(image: NDArray[np.uint8]) -> bytes:
    return cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()


def parts(num: int) -> NDArray[np.uint8]:
    return np.stack([draw_scratch(draw_part(n), n)[0] if n % 2 else draw_part(n) for n in range(num)])


def binary_request(image: NDArray[np.uint8], **changed: Any) -> tuple[bytes, dict[str, str]]:
    tensor: dict[str, Any] = {
        "name": "image", "datatype": "UINT8", "shape": list(image.shape), "parameters": {"binary_data_size": image.size},
    }  # fmt: skip
    header = json.dumps({"inputs": [tensor | changed]}).encode()
    return header + image.tobytes(), {HEADER_LENGTH: str(len(header))}


def test_triton_client_lists_and_inspects(address: str, scorer: OnnxScorer) -> None:
    with triton.InferenceServerClient(address) as triton_client:
        assert triton_client.is_server_live()
        assert triton_client.is_server_ready()
        assert triton_client.is_model_ready("plate")
        assert triton_client.is_model_ready("plate", "1")
        assert not triton_client.is_model_ready("plate", "2")
        assert not triton_client.is_model_ready("plates")
        assert triton_client.get_server_metadata()["extensions"] == ["binary_tensor_data", "model_configuration"]
        index = triton_client.get_model_repository_index()
        assert [(m["name"], m["version"], m["state"]) for m in index] == [
            ("other", "1", "READY"),
            ("plate", "1", "READY"),
        ]
        metadata = triton_client.get_model_metadata("plate")
        assert metadata == triton_client.get_model_metadata("plate", "1")
        assert metadata["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, -1, -1, 3]}]
        assert [(o["name"], o["datatype"], len(o["shape"])) for o in metadata["outputs"]] == [
            ("score", "FP32", 1), ("anomaly_map", "FP32", 3),
        ]  # fmt: skip
        assert metadata["versions"] == ["1"]
        assert metadata["parameters"]["sha256"] == scorer.sha256
        assert metadata["parameters"]["current"] is True
        assert triton_client.get_model_config("plate")["input"][0]["data_type"] == "TYPE_UINT8"
        with pytest.raises(triton.InferenceServerException, match="unknown model 'x'; models: other, plate"):
            triton_client.get_model_metadata("x")
        with pytest.raises(triton.InferenceServerException, match=r"has no version '9'; versions: 1"):
            triton_client.get_model_metadata("plate", "9")


@pytest.mark.parametrize("num_images", [1, 16])
@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_triton_client_gets_the_scores_of_the_scorer(
    address: str, scorer: OnnxScorer, num_images: int, binary_in: bool, binary_out: bool
) -> None:
    image = parts(num_images)
    tensor = triton.InferInput("image", list(image.shape), "UINT8").set_data_from_numpy(image, binary_data=binary_in)
    outputs = [triton.InferRequestedOutput(name, binary_data=binary_out) for name in ("anomaly_map", "score")]
    with triton.InferenceServerClient(address) as triton_client:
        result = triton_client.infer("plate", [tensor], outputs=outputs, request_id="7", model_version="1")
    response = result.get_response()
    assert (response["model_name"], response["model_version"], response["id"]) == ("plate", "1", "7")
    assert response["parameters"]["sha256"] == scorer.sha256
    expected = scorer.score(image)
    np.testing.assert_allclose(result.as_numpy("score"), expected.score, atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(result.as_numpy("anomaly_map"), expected.anomaly_map, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("compression", ["gzip", "deflate"])
def test_triton_client_compresses_and_requests_all_outputs(address: str, scorer: OnnxScorer, compression: str) -> None:
    image = parts(2)
    tensor = triton.InferInput("image", list(image.shape), "UINT8").set_data_from_numpy(image)
    with triton.InferenceServerClient(address) as triton_client:
        result = triton_client.infer(
            "other", [tensor], request_compression_algorithm=compression, response_compression_algorithm=compression
        )
        concurrent = triton_client.async_infer("plate", [tensor])
        np.testing.assert_allclose(concurrent.get_result().as_numpy("score"), result.as_numpy("score"), rtol=1e-5)
    np.testing.assert_allclose(result.as_numpy("score"), scorer.score(image).score, rtol=1e-5)
    assert result.as_numpy("anomaly_map").shape == (2, 64, 64)


def test_outputs_are_json_by_default(client: TestClient, scorer: OnnxScorer) -> None:
    image = parts(2)
    body = {"inputs": [{"name": "image", "datatype": "UINT8", "shape": list(image.shape), "data": image.tolist()}]}
    nested = client.post("/v2/models/plate/infer", json=body)
    body["inputs"][0]["data"] = image.ravel().tolist()
    flat = client.post("/v2/models/plate/versions/1/infer", json=body | {"outputs": [{"name": "score"}]})
    assert (nested.status_code, flat.status_code) == (200, 200)
    assert HEADER_LENGTH not in nested.headers
    assert "id" not in nested.json()
    assert [o["name"] for o in nested.json()["outputs"]] == ["score", "anomaly_map"]
    (score,) = flat.json()["outputs"]
    assert score == nested.json()["outputs"][0]
    np.testing.assert_allclose(score["data"], scorer.score(image).score, rtol=1e-5)


def rows_of_score(folder: Path, scorer: OnnxScorer, *, threshold: float) -> list[dict[str, Any]]:
    settings = Settings(threshold=threshold, batch_size=4, max_pixels=200_000, num_threads=1)
    items = [Item(str(path)) for path in sorted(folder.rglob("*.png"))]
    return [
        row_values(s.row) for s in score_images(items, scorers={DEFAULT_PRODUCT: scorer}, settings=settings, seconds={})
    ]


def test_score_returns_the_rows_of_the_verb(client: TestClient, category: Path, scorer: OnnxScorer) -> None:
    rows = rows_of_score(category / "test", scorer, threshold=1.0)
    assert {row["verdict"] for row in rows} == {"good", "defect"}
    for number, row in enumerate(rows):
        data = Path(row["path"]).read_bytes()
        if number % 2:
            answer = client.post("/score", content=data, headers={"content-type": "image/png"})
            row["path"] = "image"
        else:
            row["path"] = Path(row["path"]).name
            answer = client.post("/score?model=plate&version=1", files={"image": (row["path"], data, "image/png")})
        assert answer.status_code == 200
        found = answer.json()
        assert list(found) == list(row)
        for name in ("score", "p_value"):
            assert found.pop(name) == pytest.approx(row.pop(name), abs=1e-5)
        for name in ("x", "y", "width", "height", "area", "weak"):
            assert [r[name] for r in found["regions"]] == [r[name] for r in row["regions"]]
        found.pop("regions")
        row.pop("regions")
        assert found == row


def test_threshold_changes_the_verdict(served_model: Path) -> None:
    data = png(parts(2)[1])
    with TestClient(make_app(make_service(served_model, threshold=1e6)), base_url=BASE) as client:
        row = client.post("/score", content=data).json()
    assert (row["verdict"], row["threshold"], row["regions"]) == ("good", 1e6, [])


def test_overlay_is_drawn_on_the_image(client: TestClient) -> None:
    image = parts(2)[1]
    row = client.post("/score?overlay=true", content=png(image)).json()
    drawn = cv2.imdecode(np.frombuffer(base64.b64decode(row["overlay"]), dtype=np.uint8), cv2.IMREAD_COLOR)
    assert drawn is not None
    assert drawn.shape == image.shape
    assert (drawn[..., ::-1] != image).any()
    assert "overlay" not in client.post("/score", content=png(image)).json()


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (b"", 415, "not_an_image"),
        (b"GET / HTTP/1.1", 415, "not_an_image"),
        (png(draw_part(0))[:-40], 400, "truncated"),
        (png(np.zeros((500, 500, 3), dtype=np.uint8)), 413, "too_large"),
    ],
)
def test_invalid_image_is_an_error_row(client: TestClient, data: bytes, status: int, code: str) -> None:
    answer = client.post("/score", content=data)
    row = answer.json()
    assert (answer.status_code, row["status"], row["verdict"], row["score"]) == (status, code, "", None)
    assert row["message"].startswith("image: ")
    assert client.post("/score", content=png(draw_part(0))).json()["status"] == "ok"


def decompression_bomb() -> bytes:
    """A PNG of a few bytes with a declared size of 2^30 pixels."""
    image = bytearray(png(np.zeros((8, 8, 3), dtype=np.uint8)))
    image[16:24] = (2**15).to_bytes(4, "big") * 2
    image[29:33] = zlib.crc32(image[12:29]).to_bytes(4, "big")
    return bytes(image)


def test_decompression_bombs_are_refused(client: TestClient) -> None:
    answer = client.post("/score", content=decompression_bomb())
    assert (answer.status_code, answer.json()["status"]) == (413, "too_large")
    compressed = gzip.compress(bytes(2**26))
    assert len(compressed) < 2**17
    answer = client.post("/score", content=compressed, headers={"content-encoding": "gzip"})
    assert (answer.status_code, answer.json()) == (
        413, {"error": "the body has more than 2,097,152 bytes: send fewer or smaller images"},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("body", "encoding", "status"),
    [
        (gzip.compress(b"abc", mtime=0)[:-3], "gzip", 400),
        (gzip.compress(b"abc", mtime=0) + b"more", "gzip", 400),
        (b"not compressed", "deflate", 400),
        (b"abc", "br", 415),
        (b"abc", "gzip, gzip", 415),
    ],
)
def test_damaged_compression_is_refused(client: TestClient, body: bytes, encoding: str, status: int) -> None:
    answer = client.post("/score", content=body, headers={"content-encoding": encoding})
    assert (answer.status_code, list(answer.json())) == (status, ["error"])


def test_form_without_a_file_or_of_many_parts_is_refused(client: TestClient) -> None:
    kind = {"content-type": "multipart/form-data; boundary=b"}
    part = b'--b\r\nContent-Disposition: form-data; name="image"%s\r\n\r\nxyz\r\n'
    for body, words in (
        (part % b"" + b"--b--\r\n", "contains no complete file"),
        (part % b'; filename="a.png"', "contains no complete file"),
        ((part % b"") * 40 + b"--b--\r\n", "more than 16 parts"),
        (b"not a form", "damaged"),
        (b"", "contains no complete file"),
    ):
        answer = client.post("/score", content=body, headers=kind)
        assert (answer.status_code, words in answer.json()["error"]) == (400, True), answer.text
    answer = client.post("/score", content=b"", headers={"content-type": "multipart/form-data"})
    assert answer.status_code == 400


def test_query_parameters_of_score_are_checked(client: TestClient) -> None:
    data = png(draw_part(0))
    for query, status in (
        ("overlai=true", 400), ("overlay=yes", 400), ("model=plate&model=plate", 400), ("model=x", 404),
        ("model=../../etc/passwd", 404), ("version=2", 404), ("version=%00", 404),
    ):  # fmt: skip
        answer = client.post(f"/score?{query}", content=data)
        assert (answer.status_code, list(answer.json())) == (status, ["error"]), query


def test_body_above_the_limit_is_refused_with_or_without_a_declared_length(client: TestClient) -> None:
    for content in (bytes(2**21 + 1), iter([bytes(2**20)] * 3)):
        answer = client.post("/v2/models/plate/infer", content=content)
        assert (answer.status_code, "2,097,152 bytes" in answer.json()["error"]) == (413, True)


def test_memory_of_all_requests_is_limited_and_released(served_model: Path) -> None:
    service = make_service(served_model, max_memory=2**25, max_body=2**20)
    with TestClient(make_app(service), base_url=BASE) as client:
        with service.memory.reservation() as reserved:
            reserved.add(2**25 - 1000)
            answer = client.post("/score", content=png(draw_part(0)))
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert client.post("/score", content=png(draw_part(0))).status_code == 200
        assert service.memory.num_bytes == 0


def test_unknown_paths_and_methods_are_refused(client: TestClient) -> None:
    for method, path, status in (
        ("GET", "/nothing", 404), ("GET", "/v2/", 404), ("GET", "/score", 405), ("DELETE", "/v2", 405),
        ("POST", "/v2/repository/models/plate/load", 404), ("GET", "/v2/models/..%2f..%2fetc/ready", 404),
        ("GET", "/v2/models/pl%ff%00te", 404),
    ):  # fmt: skip
        answer = client.request(method, path)
        assert (answer.status_code, list(answer.json())) == (status, ["error"]), path


@pytest.mark.parametrize("failure", ["error", "nan"])
def test_failed_inference_is_an_internal_error(served_model: Path, failure: str) -> None:
    service = make_service(f"plate={served_model}")
    (served,) = service.models.all()
    score = served.scorer.score

    def broken(image: NDArray[np.uint8]) -> Scores:
        if failure == "error":
            raise SESSION_ERRORS[0](f"no memory for {served_model}")
        scores = score(image)
        return Scores(scores.score * np.float32(np.nan), scores.anomaly_map)

    body, headers = binary_request(parts(1))
    with TestClient(make_app(service), base_url=BASE) as client:
        served.scorer.score = broken  # type: ignore[method-assign]
        row = client.post("/score", content=png(draw_part(0)))
        answer = client.post("/v2/models/plate/infer", content=body, headers=headers)
        served.scorer.score = score  # type: ignore[method-assign]
        assert (row.status_code, row.json()["status"], row.json()["score"]) == (500, "internal", None)
        assert (answer.status_code, list(answer.json())) == (500, ["error"])
        assert str(served_model) not in row.text + answer.text
        assert client.post("/score", content=png(draw_part(0))).status_code == 200


def test_metrics_count_requests_images_and_batches(served_model: Path, scorer: OnnxScorer) -> None:
    with TestClient(make_app(make_service(f"plate={served_model}")), base_url=BASE) as client:
        for image in parts(4):
            client.post("/score", content=png(image))
        body, headers = binary_request(parts(4))
        assert client.post("/v2/models/plate/infer", content=body, headers=headers).status_code == 200
        client.get("/nothing")
        text = client.get("/metrics").text
    num_defect = 2 * int((scorer.score(parts(4)).score > 1).sum())
    assert num_defect == 4
    for line in (
        'anomaly_images_total{model="plate",verdict="defect",version="1"} 4.0',
        'anomaly_images_total{model="plate",verdict="good",version="1"} 4.0',
        'anomaly_requests_total{route="score",status="200"} 4.0',
        'anomaly_requests_total{route="none",status="404"} 1.0',
        'anomaly_batch_images_bucket{le="1.0"} 4.0',
        'anomaly_batch_images_bucket{le="4.0"} 5.0',
        "anomaly_held_bytes 0.0",
        "anomaly_images_waiting 0.0",
    ):
        assert f"{line}\n" in text, line
    assert re.search(
        rf'anomaly_model_info{{current="true",model="plate",sha256="{scorer.sha256}",version="1"}} 1.0', text
    )
