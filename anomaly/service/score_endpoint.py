"""`POST /score` without its inference: the query parameters, the image file, and the row of results in JSON."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request

from anomaly.errors import ErrorCode, ImageError, RequestError
from anomaly.imaging.header import image_header
from anomaly.imaging.image_file import decode_image
from anomaly.imaging.map_png import MAP_STEP, MAP_ZERO, map_levels
from anomaly.imaging.overlay import Resize, enlarge_map, overlay
from anomaly.inference.scorer import OnnxScorer, Scores
from anomaly.scoring.image_verdicts import error_row, scored_row
from anomaly.scoring.rows import row_values
from anomaly.scoring.settings import Settings
from anomaly.scoring.sources import Item
from anomaly.service.limits import BYTES_PER_PIXEL, Reservation
from anomaly.service.query import query_parameters

HTTP_STATUS: dict[ErrorCode, int] = {
    "missing": 400,
    "unreadable": 400,
    "truncated": 400,
    "not_an_image": 415,
    "unsupported_pixels": 415,
    "too_large": 413,
    "no_model": 404,
    "internal": 500,
}
"""Status of a row -> HTTP status of the response"""


@dataclass(frozen=True)
class ScoreQuery:
    """Query parameters of `POST /score`."""

    model: str | None
    """model name; None selects the only model"""
    version: str | None
    """model version; None selects the highest"""
    overlay: bool
    map: bool


def score_query(request: Request) -> ScoreQuery:
    """Read the query parameters of a request.

    Raises:
        RequestError: 400, an unknown or repeated parameter, or an invalid value.
    """
    parameters = query_parameters(request, known=("model", "version", "overlay", "map"))
    flags = {name: parameters.get(name, "false") for name in ("overlay", "map")}
    for name, value in flags.items():
        if value not in ("true", "false"):
            raise RequestError(400, f"{name} is {value[:100]!r}: give true or false")
    return ScoreQuery(
        model=parameters.get("model") or None,
        version=parameters.get("version") or None,
        overlay=flags["overlay"] == "true",
        map=flags["map"] == "true",
    )


def decode(data: bytes, *, name: str, white: int, settings: Settings, reserved: Reservation) -> NDArray[np.uint8]:
    """Decode an image file to (H, W, 3) uint8 RGB; its memory is reserved first, by the size in its header.

    Args:
        data: bytes of the file.
        name: name of the file, for messages.
        white: white level of 16-bit images.
        settings: settings of the service.
        reserved: memory of the request, to which the image is added.

    Raises:
        ImageError: an error of `anomaly.imaging.image_file.decode_image`.
        RequestError: 503, no memory.
    """
    header = image_header(data, name=name)
    if header.width * header.height <= settings.max_pixels:  # `decode_image` refuses larger images
        reserved.add(header.width * header.height * BYTES_PER_PIXEL * (2 if header.bits > 8 else 1))
    return decode_image(data, name=name, white=white, max_pixels=settings.max_pixels, frame=settings.frame)


def scored_image(
    name: str, data: bytes, *, image: NDArray[np.uint8], scores: Scores, scorer: OnnxScorer, settings: Settings
) -> dict[str, Any]:
    """Build the row of an image as JSON values.

    Args:
        name: client's name of the file.
        data: bytes of the file.
        image: (H, W, 3) uint8 RGB.
        scores: score and anomaly map of this image, with a batch axis of length 1.
        scorer: scorer of the model.
        settings: settings of the service, with the threshold.
    """
    one = Scores(scores.score[0], scores.anomaly_map[0])
    sha256 = hashlib.sha256(data).hexdigest()
    return row_values(scored_row(Item(name), one, sha256=sha256, image=image, scorer=scorer, settings=settings))


def failed_image(name: str, data: bytes, error: ImageError, *, model: str, settings: Settings) -> dict[str, Any]:
    """Build the row of an image without a score as JSON values."""
    sha256 = hashlib.sha256(data).hexdigest()
    return row_values(error_row(Item(name), error, sha256=sha256, model=model, settings=settings))


def overlay_png(image: NDArray[np.uint8], anomaly_map: NDArray[np.float32], *, resize: Resize, threshold: float) -> str:
    """Draw an anomaly map (h, w) over its image (H, W, 3), as a PNG in base64."""
    height, width = image.shape[:2]
    enlarged = enlarge_map(anomaly_map, height=height, width=width, resize=resize)
    drawn = overlay(image, enlarged, threshold=threshold)
    data = cv2.imencode(".png", cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR))[1]
    return base64.b64encode(data.tobytes()).decode()


def map_json(anomaly_map: NDArray[np.float32], *, resize: Resize) -> dict[str, Any]:
    """Encode an anomaly map (h, w) at the network's resolution as JSON values.

    Returns:
        `png`: base64 of a 16-bit PNG with the map's values `level * step - zero`. `resize`: alignment of the map with its
        image, see `anomaly.imaging.overlay.enlarge_map`.
    """
    data = cv2.imencode(".png", map_levels(anomaly_map))[1]
    png = base64.b64encode(data.tobytes()).decode()
    return {"png": png, "step": MAP_STEP, "zero": MAP_ZERO, "resize": resize}
