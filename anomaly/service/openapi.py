"""The OpenAPI 3.1 document of the service, for generated clients and generated tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import anomaly
from anomaly.imaging.overlay import Resize
from anomaly.inference.artifact import OUTPUTS
from anomaly.service.inference_protocol import HEADER_LENGTH

Json = dict[str, Any]
_TEXT: Json = {"type": "string"}
_NUMBER_OR_NULL: Json = {"type": ["number", "null"]}
_INTEGER: Json = {"type": "integer"}
_FILE: Json = {"type": "string", "format": "binary"}
_REGION: Json = {
    "type": "object",
    "properties": dict.fromkeys(("x", "y", "width", "height", "area"), _INTEGER)
    | {"peak": {"type": "number"}, "weak": {"type": "boolean"}},
}
_MAP: Json = {
    "type": "object",
    "description": (
        "The calibrated anomaly map at the network's resolution: value = level * step - zero; 1 is the model's threshold."
        " Enlarge it bilinearly with half-pixel centres to align it with the image. `stretch` and `native`: the map covers"
        " the image. `letterbox`: the map contains the image at one scale, centred, with padding around it."
    ),
    "required": ["png", "step", "zero", "resize"],
    "properties": {
        "png": {
            "type": "string",
            "contentEncoding": "base64",
            "contentMediaType": "image/png",
            "description": "16-bit greyscale",
        },
        "step": {"type": "number"},
        "zero": {"type": "number"},
        "resize": {"enum": list(get_args(Resize))},
    },
}
_ROW: Json = {
    "type": "object",
    "required": ["path", "sha256", "status", "verdict", "score", "threshold", "p_value", "regions", "model", "message"],
    "properties": {
        **dict.fromkeys(("path", "sha256", "status", "model", "message"), _TEXT),
        "verdict": {"enum": ["good", "defect", ""], "description": "empty if the image has no score"},
        "score": _NUMBER_OR_NULL | {"description": "calibrated anomaly score; 1 is the model's threshold"},
        "threshold": {"type": "number", "description": "a higher score is a defect"},
        "p_value": _NUMBER_OR_NULL | {"description": "conformal p-value among the calibration images"},
        "width": {"type": ["integer", "null"]},
        "height": {"type": ["integer", "null"]},
        "regions": {"type": "array", "items": _REGION},
        "overlay": {"type": "string", "contentEncoding": "base64", "contentMediaType": "image/png"},
        "map": _MAP,
    },
}
_TENSOR: Json = {
    "type": "object",
    "required": ["name", "datatype", "shape"],
    "properties": {
        "name": {"const": "image"},
        "datatype": {"const": "UINT8"},
        "shape": {
            "type": "array",
            "prefixItems": [*[{"type": "integer", "minimum": 1}] * 3, {"const": 3}],
            "minItems": 4,
            "maxItems": 4,
        },
        "data": {"type": "array"},
        "parameters": {"type": "object", "properties": {"binary_data_size": {"type": "integer", "minimum": 0}}},
    },
}
_REQUEST: Json = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": _TEXT,
        "parameters": {
            "type": "object",
            "properties": {
                "binary_data_output": {"type": "boolean"},
                "timeout": {"type": "integer", "minimum": 0, "description": "microseconds"},
            },
        },
        "inputs": {"type": "array", "items": _TENSOR, "minItems": 1, "maxItems": 1},
        "outputs": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name"],
                "properties": {
                    "name": {"enum": list(OUTPUTS)},
                    "parameters": {"type": "object", "properties": {"binary_data": {"type": "boolean"}}},
                },
            },
        },
    },
}
_ERROR: Json = {"type": "object", "required": ["error"], "properties": {"error": _TEXT}}
_OBJECT: Json = {"type": "object"}

_ERRORS = {
    400: "Invalid request.",
    401: "Missing or wrong token.",
    403: "Request from a page of another site.",
    404: "Unknown model or version.",
    408: "The request did not arrive in time.",
    413: "The body, an image or the JSON is too large.",
    415: "Unsupported Content-Encoding or image format.",
    421: "Request to another host name.",
    500: "Internal error.",
    503: "Overload or timeout; Retry-After gives the seconds to wait.",
}


def _responses(schema: Json, *codes: int, media: str = "application/json") -> Json:
    found: Json = {"200": {"description": "Success.", "content": {media: {"schema": schema}}}}
    for code in (*codes, 401, 403, 421, 503):
        found[str(code)] = {
            "description": _ERRORS[code],
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
        }
    return found


def _parameter(name: str, *, place: str, schema: Json, required: bool, description: str) -> Json:
    return {"name": name, "in": place, "required": required, "schema": schema, "description": description}


def openapi_document(models: Sequence[tuple[str, str]]) -> Json:
    """Build the OpenAPI document of a service.

    Args:
        models: name and version of each served model.
    """
    names = {"enum": sorted({name for name, _ in models})}
    versions = {"enum": sorted({version for _, version in models})}
    name = _parameter("name", place="path", schema=names, required=True, description="Model name.")
    version = _parameter("version", place="path", schema=versions, required=True, description="Model version.")
    paths: Json = {
        "/v2/health/live": {"get": _get("Liveness of the process", _OBJECT)},
        "/v2/health/ready": {"get": _get("Readiness for requests", _OBJECT)},
        "/v2": {"get": _get("Server metadata", _OBJECT)},
        "/v2/repository/index": {"post": _get("List of all models", {"type": "array", "items": _OBJECT})},
        "/metrics": {"get": {"summary": "Prometheus metrics", "responses": _responses(_TEXT, media="text/plain")}},
        "/openapi.json": {"get": _get("This document", _OBJECT)},
        "/score": {"post": _score(names, versions)},
    }
    for path, parameters in (("/v2/models/{name}", [name]), ("/v2/models/{name}/versions/{version}", [name, version])):
        paths[path] = {"parameters": parameters, "get": _get("Model metadata", _OBJECT, 404)}
        paths[f"{path}/ready"] = {"parameters": parameters, "get": _get("Readiness of a model", _OBJECT, 404)}
        paths[f"{path}/config"] = {"parameters": parameters, "get": _get("Triton model configuration", _OBJECT, 404)}
        paths[f"{path}/infer"] = {"parameters": parameters, "post": _infer()}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "anomaly",
            "version": anomaly.__version__,
            "description": "Anomaly scores of images: 0 is a typical good part, 1 is the model's threshold.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": {"Error": _ERROR, "Row": _ROW, "InferRequest": _REQUEST},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"token": []}],
    }


def _get(summary: str, schema: Json, *codes: int) -> Json:
    return {"summary": summary, "responses": _responses(schema, *codes)}


def _infer() -> Json:
    responses = _responses(_OBJECT, 400, 404, 408, 413, 415, 500)
    responses["200"]["content"]["application/octet-stream"] = {"schema": _FILE}
    return {
        "summary": "Score tensors, uint8 RGB (n, height, width, 3)",
        "parameters": [
            _parameter(
                HEADER_LENGTH,
                place="header",
                schema={"type": "integer", "minimum": 1},
                required=False,
                description="Length of the JSON in bytes; without it the whole body is JSON.",
            )
        ],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": {"$ref": "#/components/schemas/InferRequest"}},
                "application/octet-stream": {"schema": _FILE},
            },
        },
        "responses": responses,
    }


def _query(name: str, schema: Json, description: str) -> Json:
    return _parameter(name, place="query", schema=schema, required=False, description=description)


def _score(names: Json, versions: Json) -> Json:
    row: Json = {"$ref": "#/components/schemas/Row"}
    responses = _responses(row, 400, 404, 408, 413, 415, 500)
    either = {"anyOf": [row, {"$ref": "#/components/schemas/Error"}]}
    for code in ("400", "413", "415", "500"):
        responses[code]["content"]["application/json"]["schema"] = either
    form: Json = {"type": "object", "required": ["image"], "properties": {"image": _FILE}}
    return {
        "summary": "Score one image file",
        "parameters": [
            _query("model", names, "Model name; optional if only one model is served."),
            _query("version", versions, "Model version; by default the highest."),
            _query("overlay", {"type": "boolean"}, "Add `overlay`: the image with its heat map."),
            _query("map", {"type": "boolean"}, "Add `map`: the anomaly map as numbers."),
        ],
        "requestBody": {
            "required": True,
            "content": {
                "application/octet-stream": {"schema": _FILE},
                "image/png": {"schema": _FILE},
                "image/jpeg": {"schema": _FILE},
                "multipart/form-data": {"schema": form},
            },
        },
        "responses": responses,
    }
