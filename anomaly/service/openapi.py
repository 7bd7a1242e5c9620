"""The interface in OpenAPI 3.1, for clients that are generated and for tests that are."""

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
_WHOLE: Json = {"type": "integer"}
_FILE: Json = {"type": "string", "format": "binary"}
_REGION: Json = {
    "type": "object",
    "properties": dict.fromkeys(("x", "y", "width", "height", "area"), _WHOLE)
    | {"peak": {"type": "number"}, "weak": {"type": "boolean"}},
}
_MAP: Json = {
    "type": "object",
    "description": (
        "The calibrated map at the network's resolution: value = level * step - zero, 1 the model's threshold. To lay it on the"
        " image enlarge it bilinearly with half-pixel centres: `stretch` and `native` stretch it to the image; `letterbox`"
        " holds the image scaled by one factor and centred, with padding around."
    ),
    "required": ["png", "step", "zero", "resize"],
    "properties": {
        "png": {
            "type": "string",
            "contentEncoding": "base64",
            "contentMediaType": "image/png",
            "description": "grey, 16 bits",
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
        "verdict": {"enum": ["good", "defect", ""]},
        "score": _NUMBER_OR_NULL,
        "threshold": {"type": "number"},
        "p_value": _NUMBER_OR_NULL,
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

_REFUSALS = {
    400: "The request cannot be read.",
    401: "The token is missing or wrong.",
    403: "A page of another site asks.",
    404: "No such model or version.",
    408: "The request did not arrive in time.",
    413: "The body, an image or the JSON is too large.",
    415: "The Content-Encoding or the kind of image is not known.",
    421: "Another host was asked for.",
    500: "The service failed.",
    503: "The queue is full or the time over; Retry-After says when to try again.",
}


def _answers(schema: Json, *codes: int, media: str = "application/json") -> Json:
    found: Json = {"200": {"description": "Answered.", "content": {media: {"schema": schema}}}}
    for code in (*codes, 401, 403, 421, 503):
        found[str(code)] = {
            "description": _REFUSALS[code],
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
        }
    return found


def _named(parameter: str, *, place: str, schema: Json, required: bool) -> Json:
    return {"name": parameter, "in": place, "required": required, "schema": schema}


def document(models: Sequence[tuple[str, str]]) -> Json:
    """Give the document of a service.

    Args:
        models: name and version of each model that it serves.
    """
    names = {"enum": sorted({name for name, _ in models})}
    versions = {"enum": sorted({version for _, version in models})}
    name = _named("name", place="path", schema=names, required=True)
    version = _named("version", place="path", schema=versions, required=True)
    paths: Json = {
        "/v2/health/live": {"get": _get("Whether the process answers", _OBJECT)},
        "/v2/health/ready": {"get": _get("Whether requests are taken", _OBJECT)},
        "/v2": {"get": _get("The server", _OBJECT)},
        "/v2/repository/index": {"post": _get("All models", {"type": "array", "items": _OBJECT})},
        "/metrics": {"get": {"summary": "Prometheus", "responses": _answers(_TEXT, media="text/plain")}},
        "/openapi.json": {"get": _get("This document", _OBJECT)},
        "/score": {"post": _score(names, versions)},
    }
    for path, parameters in (("/v2/models/{name}", [name]), ("/v2/models/{name}/versions/{version}", [name, version])):
        paths[path] = {"parameters": parameters, "get": _get("A model", _OBJECT, 404)}
        paths[f"{path}/ready"] = {"parameters": parameters, "get": _get("Whether it answers", _OBJECT, 404)}
        paths[f"{path}/config"] = {"parameters": parameters, "get": _get("It as Triton describes it", _OBJECT, 404)}
        paths[f"{path}/infer"] = {"parameters": parameters, "post": _infer()}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "anomaly",
            "version": anomaly.__version__,
            "description": "Scores images: 0 is a typical good part, 1 the threshold.",
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
    return {"summary": summary, "responses": _answers(schema, *codes)}


def _infer() -> Json:
    answers = _answers(_OBJECT, 400, 404, 408, 413, 415, 500)
    answers["200"]["content"]["application/octet-stream"] = {"schema": _FILE}
    return {
        "summary": "Score tensors, uint8 RGB (n, height, width, 3)",
        "parameters": [_named(HEADER_LENGTH, place="header", schema={"type": "integer", "minimum": 1}, required=False)],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": {"$ref": "#/components/schemas/InferRequest"}},
                "application/octet-stream": {"schema": _FILE},
            },
        },
        "responses": answers,
    }


def _score(names: Json, versions: Json) -> Json:
    row: Json = {"$ref": "#/components/schemas/Row"}
    answers = _answers(row, 400, 404, 408, 413, 415, 500)
    either = {"anyOf": [row, {"$ref": "#/components/schemas/Error"}]}
    for code in ("400", "413", "415", "500"):
        answers[code]["content"]["application/json"]["schema"] = either
    form: Json = {"type": "object", "required": ["image"], "properties": {"image": _FILE}}
    return {
        "summary": "Score one image file",
        "parameters": [
            _named("model", place="query", schema=names, required=False),
            _named("version", place="query", schema=versions, required=False),
            _named("overlay", place="query", schema={"type": "boolean"}, required=False),
            _named("map", place="query", schema={"type": "boolean"}, required=False),
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
        "responses": answers,
    }
