"""The Open Inference Protocol, version 2, over HTTP, with its binary tensor extension: bytes to images, scores to bytes.

Pure functions. A request is a JSON object followed by the bytes of its tensors. `Inference-Header-Content-Length` is the
length of the JSON object. Tensors are little endian, row major, without padding. An invalid request raises an error
with a message for its sender.

Sources: the Open Inference Protocol's REST API and Triton's extensions `binary_tensor_data`, `parameters`,
`model_configuration` and the index of `model_repository`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly.errors import RequestError
from anomaly.inference.artifact import INPUT, OUTPUTS
from anomaly.inference.scorer import Scores
from anomaly.service.limits import MAX_JSON

EXTENSIONS = ("binary_tensor_data", "model_configuration")
HEADER_LENGTH = "inference-header-content-length"
PLATFORM = "onnxruntime_onnx"
RANKS = {"score": 1, "anomaly_map": 3}


@dataclass(frozen=True)
class InferRequest:
    """A parsed inference request."""

    id: str
    image: NDArray[np.uint8]
    """(N, H, W, 3) uint8 RGB"""
    outputs: dict[str, bool]
    """output name, in the requested order -> whether its tensor is sent as bytes"""
    timeout: float
    """seconds; infinite without a timeout"""


def split_body(body: bytes, *, header_length: str | None) -> tuple[bytes, memoryview]:
    """Split a request into its JSON and the bytes of its tensors.

    Args:
        body: JSON, followed by the bytes of the tensors.
        header_length: value of `Inference-Header-Content-Length`; None if the whole body is JSON.

    Raises:
        RequestError: 400 an invalid length, 413 too much JSON.
    """
    length = len(body)
    if header_length is not None:
        is_number = header_length.isascii() and header_length.isdecimal() and len(header_length) < 20
        if not is_number or not 0 < int(header_length) <= length:
            raise RequestError(
                400,
                f"Inference-Header-Content-Length is {header_length[:20]!r}: give the JSON's length, 1 to {length} bytes",
            )
        length = int(header_length)
    if length > MAX_JSON:
        raise RequestError(413, f"{length:,} bytes of JSON, limit {MAX_JSON:,}: send the tensor as binary data")
    return body[:length], memoryview(body)[length:]


def parse_request(header: bytes, binary: memoryview, *, max_pixels: int) -> InferRequest:
    """Parse an inference request.

    Args:
        header: JSON of the request.
        binary: bytes of the tensors.
        max_pixels: largest width × height of an image.

    Raises:
        RequestError: 400 an invalid request, 413 an image is too large.
    """
    request = _json(header)
    inputs = _list(request, "inputs")
    if len(inputs) != 1:
        raise RequestError(400, f"{len(inputs)} inputs: send one, {INPUT!r}")
    parameters = _parameters(request)
    image = _image(_object(inputs[0], "an input"), binary, max_pixels=max_pixels)
    identity = request.get("id", "")
    if not isinstance(identity, str):
        raise RequestError(400, "`id` is not a string: send a string, or leave it out")
    return InferRequest(
        id=identity,
        image=image,
        outputs=_outputs(request, binary=_flag(parameters, "binary_data_output", default=False)),
        timeout=_timeout(parameters),
    )


def _json(data: bytes) -> dict[str, Any]:
    def refuse(name: str) -> Any:
        raise ValueError(f"{name} is not valid JSON")

    try:
        found = json.loads(data, parse_constant=refuse)
    except (ValueError, RecursionError) as error:  # ValueError: not UTF-8, not JSON, a number of thousands of digits
        raise RequestError(400, f"the request is not valid JSON ({str(error)[:200]}): send one object") from error
    return _object(found, "the request")


def _object(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RequestError(400, f"{name} is not a JSON object: send an object")
    return value


def _list(header: Mapping[str, Any], name: str) -> list[Any]:
    value = header.get(name, [])
    if not isinstance(value, list):
        raise RequestError(400, f"`{name}` is not a list: send a list")
    return value


def _parameters(holder: Mapping[str, Any]) -> dict[str, Any]:
    parameters = _object(holder.get("parameters", {}), "`parameters`")
    if any(name.startswith("shared_memory_") for name in parameters):
        raise RequestError(400, "shared memory is not supported: send the tensor as binary data")
    return parameters


def _flag(parameters: Mapping[str, Any], name: str, *, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise RequestError(400, f"`{name}` is not a boolean: give true or false")
    return value


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _timeout(parameters: Mapping[str, Any]) -> float:
    """Convert the parameter `timeout` from microseconds to seconds; 0 means no timeout."""
    value = parameters.get("timeout", 0)
    if not _is_integer(value) or value < 0:
        raise RequestError(400, "`timeout` is not a number of microseconds: give an integer from 0")
    return min(value, 2**53) / 1e6 if value else math.inf


def _image(tensor: dict[str, Any], binary: memoryview, *, max_pixels: int) -> NDArray[np.uint8]:
    datatype, shape = tensor.get("datatype"), tensor.get("shape")
    if tensor.get("name") != INPUT:
        raise RequestError(400, f"unknown input {_quoted(tensor.get('name'))}: send {INPUT!r}")
    if datatype != "UINT8":
        raise RequestError(400, f"the datatype of {INPUT!r} is {_quoted(datatype)}: send UINT8")
    if (
        not isinstance(shape, list)
        or len(shape) != 4
        or not all(_is_integer(side) and 0 < side < 2**31 for side in shape)
    ):
        raise RequestError(400, f"the shape of {INPUT!r} is invalid: send (n, height, width, 3), each above 0")
    if shape[3] != 3:
        raise RequestError(400, f"{INPUT!r} has {shape[3]} channels: send 3 (RGB) in the last axis")
    if shape[1] * shape[2] > max_pixels:
        raise RequestError(
            413, f"{shape[1]}×{shape[2]} is above the limit of {max_pixels:,} pixels: make the images smaller"
        )
    num_values = math.prod(shape)
    if "data" in tensor:
        if binary:
            raise RequestError(400, f"{len(binary)} bytes follow the JSON, but `data` is given too: send one of them")
        return _values(tensor["data"], shape, num_values=num_values)
    num_bytes = _parameters(tensor).get("binary_data_size")
    if num_bytes is None:
        raise RequestError(400, f"{INPUT!r} has neither `data` nor `binary_data_size`: give one of them")
    if not _is_integer(num_bytes) or num_bytes != num_values or len(binary) != num_values:
        raise RequestError(
            400,
            f"`binary_data_size` and the {len(binary)} bytes after the JSON must match the {num_values} bytes of the shape",
        )
    return np.frombuffer(binary, dtype=np.uint8).reshape(shape)


def _quoted(value: Any) -> str:
    """Quote a value of a client in a message: shortened text, or the type of other values."""
    return repr(value[:100]) if isinstance(value, str) else f"a JSON {type(value).__name__}"


def _values(data: Any, shape: list[int], *, num_values: int) -> NDArray[np.uint8]:
    """Read a tensor from JSON, nested or flat; types are checked first because numpy would convert them."""
    refusal = RequestError(400, f"`data` must be {num_values} integers from 0 to 255, flat or nested by the shape")
    if not isinstance(data, list) or not data:
        raise refusal
    values = data
    if isinstance(data[0], list):
        if len(data) != shape[0]:
            raise refusal
        for side in shape[1:]:
            if set(map(type, values)) != {list} or set(map(len, values)) != {side}:
                raise refusal
            values = list(chain.from_iterable(values))
    if len(values) != num_values or set(map(type, values)) != {int}:
        raise refusal
    try:
        return np.frombuffer(bytes(values), dtype=np.uint8).reshape(shape)
    except (ValueError, OverflowError) as error:  # below 0 or above 255
        raise refusal from error


def _outputs(header: Mapping[str, Any], *, binary: bool) -> dict[str, bool]:
    requested = _list(header, "outputs")
    if not requested:
        return dict.fromkeys(OUTPUTS, binary)
    found: dict[str, bool] = {}
    for entry in requested:
        output = _object(entry, "an output")
        name = output.get("name")
        if name not in OUTPUTS or name in found:
            raise RequestError(400, f"invalid output {_quoted(name)}: request {' and '.join(OUTPUTS)}, each once")
        parameters = _parameters(output)
        if parameters.get("classification"):
            raise RequestError(400, "a score has no classes: remove `classification`")
        found[name] = _flag(parameters, "binary_data", default=binary)
    return found


def encode_response(
    request: InferRequest, scores: Scores, *, model: str, version: str, sha256: str
) -> tuple[bytes, int | None]:
    """Encode the response to a request.

    Args:
        request: parsed request.
        scores: scores of the request's images.
        model: name of the model.
        version: version of the model.
        sha256: SHA-256 of the model file, which changes at a reload.

    Returns:
        The body, and the length of its JSON in bytes; None if the whole body is JSON.
    """
    outputs, tensors = [], []
    for name, binary in request.outputs.items():
        values = np.ascontiguousarray(getattr(scores, name), dtype="<f4")
        output: dict[str, Any] = {"name": name, "datatype": "FP32", "shape": list(values.shape)}
        if binary:
            output["parameters"] = {"binary_data_size": values.nbytes}
            tensors.append(values.tobytes())
        else:
            output["data"] = values.ravel().tolist()
        outputs.append(output)
    response: dict[str, Any] = {"model_name": model, "model_version": version}
    if request.id:
        response["id"] = request.id
    response |= {"parameters": {"sha256": sha256}, "outputs": outputs}
    header = json.dumps(response, separators=(",", ":")).encode()
    return b"".join([header, *tensors]), len(header) if tensors else None


def model_metadata(name: str, *, versions: list[str], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Build the protocol's metadata of a model."""
    return {
        "name": name,
        "versions": versions,
        "platform": PLATFORM,
        "inputs": [{"name": INPUT, "datatype": "UINT8", "shape": [-1, -1, -1, 3]}],
        "outputs": [{"name": output, "datatype": "FP32", "shape": [-1] * RANKS[output]} for output in OUTPUTS],
        "parameters": dict(parameters),
    }


def model_config(name: str) -> dict[str, Any]:
    """Build Triton's configuration of a model; `max_batch_size` 0 means that `dims` contain the batch axis."""
    return {
        "name": name,
        "platform": PLATFORM,
        "backend": "onnxruntime",
        "max_batch_size": 0,
        "input": [{"name": INPUT, "data_type": "TYPE_UINT8", "dims": [-1, -1, -1, 3]}],
        "output": [{"name": output, "data_type": "TYPE_FP32", "dims": [-1] * RANKS[output]} for output in OUTPUTS],
    }
