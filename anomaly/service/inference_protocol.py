"""The Open Inference Protocol, version 2, over HTTP, with its binary tensor extension: bytes to images, scores to bytes.

Pure functions. A request is a JSON object, and after it the bytes of its tensors; `Inference-Header-Content-Length` says
where the object ends. Tensors are little endian, row major, without padding. What cannot be read is refused with a sentence
for the one who sent it.

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
    """What a client asks for."""

    id: str
    image: NDArray[np.uint8]
    """(n, H, W, 3) uint8 RGB"""
    outputs: dict[str, bool]
    """name of an output, in the order asked for -> whether its tensor goes as bytes"""
    timeout: float
    """seconds, infinite where the client names none"""


def split_body(body: bytes, *, header_length: str | None) -> tuple[bytes, memoryview]:
    """Part a request into its JSON and the bytes of its tensors.

    Args:
        body: JSON, with the bytes of tensors after it.
        header_length: the value of `Inference-Header-Content-Length`, None where all is JSON.

    Raises:
        RequestError: 400 a length that is none, 413 too much JSON.
    """
    length = len(body)
    if header_length is not None:
        is_number = header_length.isascii() and header_length.isdecimal() and len(header_length) < 20
        if not is_number or not 0 < int(header_length) <= length:
            raise RequestError(
                400, f"Inference-Header-Content-Length is {header_length[:20]!r}: give the bytes of JSON, 1 to {length}"
            )
        length = int(header_length)
    if length > MAX_JSON:
        raise RequestError(413, f"{length:,} bytes of JSON, at most {MAX_JSON:,}: send the tensor as binary data")
    return body[:length], memoryview(body)[length:]


def parse_request(header: bytes, binary: memoryview, *, max_pixels: int) -> InferRequest:
    """Read an inference request.

    Args:
        header: JSON.
        binary: the bytes of its tensors.
        max_pixels: width × height of an image at most.

    Raises:
        RequestError: 400, or 413 where an image is too large.
    """
    request = _json(header)
    inputs = _list(request, "inputs")
    if len(inputs) != 1:
        raise RequestError(400, f"{len(inputs)} inputs: this model takes one, {INPUT!r}")
    parameters = _parameters(request)
    image = _image(_object(inputs[0], "an input"), binary, max_pixels=max_pixels)
    identity = request.get("id", "")
    if not isinstance(identity, str):
        raise RequestError(400, "`id` is no string")
    return InferRequest(
        id=identity,
        image=image,
        outputs=_outputs(request, binary=_flag(parameters, "binary_data_output", default=False)),
        timeout=_timeout(parameters),
    )


def _json(data: bytes) -> dict[str, Any]:
    def refuse(name: str) -> Any:
        raise ValueError(f"{name} is no JSON")

    try:
        found = json.loads(data, parse_constant=refuse)
    except (ValueError, RecursionError) as error:  # ValueError: not UTF-8, not JSON, a number of thousands of digits
        raise RequestError(400, f"the request is no JSON: {str(error)[:200]}") from error
    return _object(found, "the request")


def _object(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RequestError(400, f"{name} is no JSON object")
    return value


def _list(header: Mapping[str, Any], name: str) -> list[Any]:
    value = header.get(name, [])
    if not isinstance(value, list):
        raise RequestError(400, f"`{name}` is no list")
    return value


def _parameters(holder: Mapping[str, Any]) -> dict[str, Any]:
    parameters = _object(holder.get("parameters", {}), "`parameters`")
    if any(name.startswith("shared_memory_") for name in parameters):
        raise RequestError(400, "shared memory is not offered: send the tensor as binary data")
    return parameters


def _flag(parameters: Mapping[str, Any], name: str, *, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise RequestError(400, f"`{name}` is neither true nor false")
    return value


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _timeout(parameters: Mapping[str, Any]) -> float:
    """Seconds of the parameter `timeout`, which counts microseconds; 0 stands for none."""
    value = parameters.get("timeout", 0)
    if not _whole(value) or value < 0:
        raise RequestError(400, "`timeout` is no number of microseconds")
    return min(value, 2**53) / 1e6 if value else math.inf


def _image(tensor: dict[str, Any], binary: memoryview, *, max_pixels: int) -> NDArray[np.uint8]:
    datatype, shape = tensor.get("datatype"), tensor.get("shape")
    if tensor.get("name") != INPUT:
        raise RequestError(400, f"no input {_said(tensor.get('name'))}: this model takes {INPUT!r}")
    if datatype != "UINT8":
        raise RequestError(400, f"{INPUT!r} is of {_said(datatype)}: it takes UINT8")
    if not isinstance(shape, list) or len(shape) != 4 or not all(_whole(side) and 0 < side < 2**31 for side in shape):
        raise RequestError(400, f"the shape of {INPUT!r} is none of (n, height, width, 3), each above 0")
    if shape[3] != 3:
        raise RequestError(400, f"{INPUT!r} has {shape[3]} channels: it takes 3, RGB, last")
    if shape[1] * shape[2] > max_pixels:
        raise RequestError(413, f"{shape[1]}×{shape[2]} is more than {max_pixels:,} pixels: make the images smaller")
    num_values = math.prod(shape)
    if "data" in tensor:
        if binary:
            raise RequestError(400, f"{len(binary)} bytes follow the JSON, which has the tensor itself")
        return _values(tensor["data"], shape, num_values=num_values)
    num_bytes = _parameters(tensor).get("binary_data_size")
    if num_bytes is None:
        raise RequestError(400, f"{INPUT!r} has neither `data` nor a `binary_data_size`")
    if not _whole(num_bytes) or num_bytes != num_values or len(binary) != num_values:
        raise RequestError(
            400,
            f"`binary_data_size` and the {len(binary)} bytes after the JSON have to be the {num_values} of the shape",
        )
    return np.frombuffer(binary, dtype=np.uint8).reshape(shape)


def _said(value: Any) -> str:
    """What a client said, fit for a message: text, shortened; of anything else its kind."""
    return repr(value[:100]) if isinstance(value, str) else f"a JSON {type(value).__name__}"


def _values(data: Any, shape: list[int], *, num_values: int) -> NDArray[np.uint8]:
    """Read a tensor from JSON, nested by its shape or flat; types are looked at first, as numpy would convert them."""
    refusal = RequestError(400, f"`data` is not {num_values} whole numbers from 0 to 255, flat or nested by the shape")
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
    asked = _list(header, "outputs")
    if not asked:
        return dict.fromkeys(OUTPUTS, binary)
    found: dict[str, bool] = {}
    for entry in asked:
        output = _object(entry, "an output")
        name = output.get("name")
        if name not in OUTPUTS or name in found:
            raise RequestError(400, f"output {_said(name)}: ask for {' and '.join(OUTPUTS)}, each once")
        parameters = _parameters(output)
        if parameters.get("classification"):
            raise RequestError(400, "a score has no classes: leave `classification` out")
        found[name] = _flag(parameters, "binary_data", default=binary)
    return found


def encode_response(
    request: InferRequest, scores: Scores, *, model: str, version: str, sha256: str
) -> tuple[bytes, int | None]:
    """Write the answer to a request.

    Args:
        request: to answer.
        scores: of its images.
        model: name of the model.
        version: of the model.
        sha256: of the model's file, so that answers from before and after a reload can be told apart.

    Returns:
        The body, and how many bytes of it are JSON, None where all is.
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
    answer: dict[str, Any] = {"model_name": model, "model_version": version}
    if request.id:
        answer["id"] = request.id
    answer |= {"parameters": {"sha256": sha256}, "outputs": outputs}
    header = json.dumps(answer, separators=(",", ":")).encode()
    return b"".join([header, *tensors]), len(header) if tensors else None


def model_metadata(name: str, *, versions: list[str], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Describe a model as the protocol's model metadata."""
    return {
        "name": name,
        "versions": versions,
        "platform": PLATFORM,
        "inputs": [{"name": INPUT, "datatype": "UINT8", "shape": [-1, -1, -1, 3]}],
        "outputs": [{"name": output, "datatype": "FP32", "shape": [-1] * RANKS[output]} for output in OUTPUTS],
        "parameters": dict(parameters),
    }


def model_config(name: str) -> dict[str, Any]:
    """Describe a model as Triton's model configuration: no batch dimension of its own, so dimensions hold all four."""
    return {
        "name": name,
        "platform": PLATFORM,
        "backend": "onnxruntime",
        "max_batch_size": 0,
        "input": [{"name": INPUT, "data_type": "TYPE_UINT8", "dims": [-1, -1, -1, 3]}],
        "output": [{"name": output, "data_type": "TYPE_FP32", "dims": [-1] * RANKS[output]} for output in OUTPUTS],
    }
