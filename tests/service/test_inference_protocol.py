"""The bytes of the protocol: valid requests, and refusals of malformed ones with a reason."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from anomaly.errors import RequestError
from anomaly.inference.scorer import Scores
from anomaly.service.inference_protocol import InferRequest, encode_response, parse_request, split_body
from anomaly.service.limits import MAX_JSON

IMAGE: NDArray[np.uint8] = np.arange(2 * 3 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 3)
TENSOR: dict[str, Any] = {
    "name": "image",
    "datatype": "UINT8",
    "shape": [2, 3, 4, 3],
    "parameters": {"binary_data_size": IMAGE.size},
}
JSON_TENSOR: dict[str, Any] = {"name": "image", "datatype": "UINT8", "shape": [2, 3, 4, 3], "data": IMAGE.tolist()}


def parse(header: Any, *, binary: bytes = b"") -> InferRequest:
    data = header if isinstance(header, bytes) else json.dumps(header).encode()
    return read(data + binary, header_length=str(len(data)) if binary else None)


def read(body: bytes, *, header_length: str | None) -> InferRequest:
    return parse_request(*split_body(body, header_length=header_length), max_pixels=100)


def test_tensor_is_parsed_from_bytes_and_from_nested_or_flat_json() -> None:
    flat = JSON_TENSOR | {"data": IMAGE.ravel().tolist()}
    for found in (
        parse({"inputs": [TENSOR]}, binary=IMAGE.tobytes()),
        parse({"inputs": [JSON_TENSOR]}),
        parse({"inputs": [flat]}),
    ):
        np.testing.assert_array_equal(found.image, IMAGE)
        assert found.image.dtype == np.uint8
        assert found.outputs == {"score": False, "anomaly_map": False}
        assert (found.id, found.timeout) == ("", float("inf"))


def test_parameters_select_the_form_of_outputs_and_the_timeout() -> None:
    request = {
        "id": "a",
        "inputs": [JSON_TENSOR],
        "parameters": {"binary_data_output": True, "timeout": 1500, "other": 1},
    }
    assert parse(request).outputs == {"score": True, "anomaly_map": True}
    outputs = [{"name": "anomaly_map", "parameters": {"binary_data": False}}, {"name": "score"}]
    found = parse(request | {"outputs": outputs})
    assert list(found.outputs.items()) == [("anomaly_map", False), ("score", True)]
    assert (found.id, found.timeout) == ("a", 0.0015)


def with_tensor(**changed: Any) -> dict[str, Any]:
    return {"inputs": [JSON_TENSOR | changed]}


WRONG: list[tuple[Any, str]] = [
    (b"", "not valid JSON"),
    (b"{", "not valid JSON"),
    (b"\xff\xfe{}", "not valid JSON"),
    (b"[" * 100_000, "not valid JSON"),
    (b'{"inputs": NaN}', "not valid JSON"),
    (b'{"id": ' + b"1" * 5000 + b"}", "not valid JSON"),
    ([], "not a JSON object"),
    ({}, "0 inputs"),
    ({"inputs": {}}, "not a list"),
    ({"inputs": [1]}, "not a JSON object"),
    ({"inputs": [TENSOR, TENSOR]}, "2 inputs"),
    (with_tensor(name="x"), "unknown input 'x'"),
    (with_tensor(name=["x"]), "unknown input a JSON list"),
    (with_tensor(datatype="FP32"), "UINT8"),
    (with_tensor(datatype=None), "UINT8"),
    (with_tensor(shape=[2, 3, 12]), "shape"),
    (with_tensor(shape="2343"), "shape"),
    (with_tensor(shape=[0, 3, 4, 3]), "shape"),
    (with_tensor(shape=[-2, -3, 4, 3]), "shape"),
    (with_tensor(shape=[True, 3, 4, 3]), "shape"),
    (with_tensor(shape=[2.0, 3, 4, 3]), "shape"),
    (with_tensor(shape=[10**1000, 3, 4, 3]), "shape"),
    (with_tensor(shape=[2, 3, 4, 4]), "4 channels"),
    (with_tensor(shape=[2, 10, 11, 3]), "limit of 100 pixels"),
    (with_tensor(shape=[2**30, 3, 4, 3]), "integers from 0 to 255"),
    (with_tensor(data="abc"), "integers from 0 to 255"),
    (with_tensor(data=[]), "integers from 0 to 255"),
    (with_tensor(data=[[[[1] * 3] * 4] * 3]), "integers from 0 to 255"),
    (with_tensor(data=[[[[1] * 3] * 4] * 3, [[[1] * 3] * 4] * 2 + [[[1] * 3] * 5]]), "integers from 0 to 255"),
    (with_tensor(data=[[[[1] * 3] * 4] * 3, 1]), "integers from 0 to 255"),
    (with_tensor(data=[1] * 71), "integers from 0 to 255"),
    (with_tensor(data=[1] * 71 + [256]), "integers from 0 to 255"),
    (with_tensor(data=[1] * 71 + [-1]), "integers from 0 to 255"),
    (with_tensor(data=[1] * 71 + [10**30]), "integers from 0 to 255"),
    (with_tensor(data=[1] * 71 + [1.5]), "integers from 0 to 255"),
    (with_tensor(data=[1] * 71 + [True]), "integers from 0 to 255"),
    (with_tensor(data=[1] * 71 + ["1"]), "integers from 0 to 255"),
    (with_tensor(data=[1] * 71 + [None]), "integers from 0 to 255"),
    ({"inputs": [TENSOR]}, "bytes after the JSON"),
    ({"inputs": [TENSOR | {"parameters": {}}]}, "neither `data`"),
    ({"inputs": [TENSOR | {"parameters": []}]}, "`parameters` is not a JSON object"),
    ({"inputs": [TENSOR | {"parameters": {"binary_data_size": "72"}}]}, "bytes after the JSON"),
    ({"inputs": [TENSOR | {"parameters": {"shared_memory_region": "x"}}]}, "shared memory"),
    ({"inputs": [JSON_TENSOR], "outputs": [{"name": "x"}]}, "output 'x'"),
    ({"inputs": [JSON_TENSOR], "outputs": [{"name": {}}]}, "output a JSON dict"),
    ({"inputs": [JSON_TENSOR], "outputs": [{"name": "score"}] * 2}, "each once"),
    ({"inputs": [JSON_TENSOR], "outputs": ["score"]}, "not a JSON object"),
    ({"inputs": [JSON_TENSOR], "outputs": [{"name": "score", "parameters": {"classification": 2}}]}, "no classes"),
    ({"inputs": [JSON_TENSOR], "outputs": [{"name": "score", "parameters": {"binary_data": 1}}]}, "not a boolean"),
    ({"inputs": [JSON_TENSOR], "outputs": [{"name": "score", "parameters": {"shared_memory_offset": 1}}]}, "shared"),
    ({"inputs": [JSON_TENSOR], "parameters": {"binary_data_output": "yes"}}, "not a boolean"),
    ({"inputs": [JSON_TENSOR], "parameters": {"timeout": -1}}, "microseconds"),
    ({"inputs": [JSON_TENSOR], "parameters": {"timeout": 1.5}}, "microseconds"),
    ({"inputs": [JSON_TENSOR], "id": 1}, "`id`"),
]


@pytest.mark.parametrize(("header", "words"), WRONG, ids=range(len(WRONG)))
def test_malformed_request_is_refused_with_a_reason(header: Any, words: str) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        parse(header)
    assert caught.value.status in (400, 413)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("length", ["", "0", "-1", "1.5", "x", "²", "9" * 30, "9" * 5000, "1000000"])
def test_invalid_header_length_is_refused(length: str) -> None:
    with pytest.raises(RequestError, match="Inference-Header-Content-Length is"):
        read(json.dumps({"inputs": [JSON_TENSOR]}).encode(), header_length=length)


def test_bytes_that_do_not_match_the_tensor_are_refused() -> None:
    with pytest.raises(RequestError, match="but `data` is given too"):
        parse({"inputs": [JSON_TENSOR]}, binary=b"x")
    for num in (71, 73):
        with pytest.raises(RequestError, match=f"the {num} bytes after the JSON"):
            parse({"inputs": [TENSOR]}, binary=bytes(num))


def test_large_json_is_refused_before_parsing() -> None:
    with pytest.raises(RequestError, match="send the tensor as binary data") as caught:
        parse(b" " * (MAX_JSON + 1))
    assert caught.value.status == 413


def test_fuzzed_requests_are_parsed_or_refused() -> None:
    rng = random.Random(0)
    header = json.dumps({"id": "x", "inputs": [TENSOR], "outputs": [{"name": "score"}]}).encode()
    whole = header + IMAGE.tobytes()
    num_refused = 0
    for _ in range(3000):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(data))
            kind = rng.random()
            if kind < 0.5:
                data[at] = rng.randrange(256)
            elif kind < 0.7:
                del data[at : at + rng.randint(1, 9)]
            elif kind < 0.9:
                data[at:at] = rng.choice([b'"', b"[", b"{", b"}", b"9" * 20, b"-", b"null", b"\\ud800", b"1e999"])
            else:
                data = data[: at + 1]
        length = str(len(header)) if rng.random() < 0.7 else str(rng.randint(0, len(whole) + 5))
        try:
            found = read(bytes(data), header_length=length)
        except RequestError:
            num_refused += 1
        else:
            assert found.image.shape == (2, 3, 4, 3)
    assert 2000 < num_refused < 3000


def test_response_is_json_followed_by_the_tensors() -> None:
    scores = Scores(np.array([0.5, 2.5], dtype=np.float32), np.ones((2, 4, 5), dtype=np.float32))
    parsed = parse({"inputs": [JSON_TENSOR], "id": "\ud800"})
    for outputs in ({"anomaly_map": True, "score": True}, {"score": False, "anomaly_map": True}, {"score": False}):
        request = InferRequest(parsed.id, parsed.image, outputs, 1.0)
        data, length = encode_response(request, scores, model="m", version="3", sha256="ab")
        assert (length is None) == (not any(outputs.values()))
        response = json.loads(data[:length])
        assert (response["model_name"], response["model_version"], response["id"]) == ("m", "3", "\ud800")
        at = length or len(data)
        for output in response["outputs"]:
            expected = getattr(scores, output["name"])
            assert output["shape"] == list(expected.shape)
            if outputs[output["name"]]:
                size = output["parameters"]["binary_data_size"]
                values = np.frombuffer(data[at : at + size], dtype="<f4")
                at += size
            else:
                values = np.array(output["data"], dtype=np.float32)
            np.testing.assert_array_equal(values.reshape(output["shape"]), expected)
        assert at == len(data)
