"""One image file in, one row of results out: what `POST /score` does beside the inference itself."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

import cv2
import numpy as np
import python_multipart
from numpy.typing import NDArray
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from anomaly.errors import ErrorCode, ImageError, RequestError
from anomaly.imaging.header import image_header
from anomaly.imaging.image_file import decode_image
from anomaly.imaging.map_png import MAP_STEP, MAP_ZERO, map_levels
from anomaly.imaging.overlay import Resize, enlarge_map, overlay
from anomaly.inference.scorer import OnnxScorer, Scores
from anomaly.scoring.pipeline import Settings, error_row, scored_row
from anomaly.scoring.rows import row_values
from anomaly.scoring.sources import Item
from anomaly.service.limits import BYTES_A_PIXEL, Holding

STATUS: dict[ErrorCode, int] = {
    "missing": 400,
    "unreadable": 400,
    "truncated": 400,
    "not_an_image": 415,
    "unsupported_pixels": 415,
    "too_large": 413,
    "no_model": 404,
    "internal": 500,
}
"""Status of a row -> status of the answer"""
MAX_PARTS = 16
UNNAMED = "image"


def image_of(body: bytes, *, content_type: str, held: Holding) -> tuple[str, bytes]:
    """Take the image file out of a body: the first file of a form, or else the whole body.

    Args:
        body: as it was sent, unpacked.
        content_type: that came with it.
        held: grows by a file that is taken out of a form.

    Returns:
        The file's name as the client gives it, and its bytes.

    Raises:
        RequestError: 400, a form that is damaged or holds no file; 503, no memory just now.
    """
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data":
        return UNNAMED, body
    form = _Form()
    try:
        parser = python_multipart.MultipartParser(options.get(b"boundary", b""), form.callbacks())
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise RequestError(
            400, "the form is damaged or has no boundary: send multipart/form-data as RFC 7578 has it"
        ) from error
    if form.filename is None or not form.is_whole:
        raise RequestError(400, "the form holds no whole file: send the image as a part with a filename")
    held.take(len(form.data))
    name = form.filename.decode("utf-8", "replace")[:200]
    return name or UNNAMED, bytes(form.data)


class _Form:
    """Keeps the first file of a form, and bounds how many parts it has."""

    def __init__(self) -> None:
        self.filename: bytes | None = None
        self.data = bytearray()
        self.is_whole = False
        self._num_parts = 0
        self._is_image = False
        self._field = self._value = b""
        self._disposition = b""

    def callbacks(self) -> Any:
        """Give what the parser calls."""
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._on_field,
            "on_header_value": self._on_value,
            "on_header_end": self._on_header,
            "on_headers_finished": self._on_headers,
            "on_part_data": self._on_data,
            "on_part_end": self._end,
        }

    def _begin(self) -> None:
        self._num_parts += 1
        if self._num_parts > MAX_PARTS:
            raise RequestError(400, f"the form has more than {MAX_PARTS} parts: send the image alone")
        self._disposition = b""

    def _on_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _on_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header(self) -> None:
        if self._field.lower() == b"content-disposition":
            self._disposition = self._value
        self._field = self._value = b""

    def _on_headers(self) -> None:
        filename = parse_options_header(self._disposition)[1].get(b"filename")
        self._is_image = filename is not None and self.filename is None
        if self._is_image:
            self.filename = filename

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        if self._is_image:
            self.data += memoryview(data)[start:end]

    def _end(self) -> None:
        self.is_whole = self.is_whole or self._is_image
        self._is_image = False


def decode(data: bytes, *, name: str, white: int, settings: Settings, held: Holding) -> NDArray[np.uint8]:
    """Decode an image file to (H, W, 3) uint8 RGB; its size is read from its header, and counted, first.

    Raises:
        ImageError: as `anomaly.imaging.image_file.decode_image`.
        RequestError: 503, no memory just now.
    """
    header = image_header(data, name=name)
    if header.width * header.height <= settings.max_pixels:  # else it is refused below
        held.take(header.width * header.height * BYTES_A_PIXEL * (2 if header.bits > 8 else 1))
    return decode_image(data, name=name, white=white, max_pixels=settings.max_pixels, frame=settings.frame)


def answer(
    name: str, data: bytes, *, image: NDArray[np.uint8], scores: Scores, scorer: OnnxScorer, settings: Settings
) -> dict[str, Any]:
    """Give the row of an image as JSON values.

    Args:
        name: of the file, as the client gave it.
        data: of the file.
        image: (H, W, 3) uint8 RGB.
        scores: of this image alone.
        scorer: that scored it.
        settings: with the threshold.
    """
    one = Scores(scores.score[0], scores.anomaly_map[0])
    sha256 = hashlib.sha256(data).hexdigest()
    return row_values(scored_row(Item(name), one, sha256=sha256, image=image, scorer=scorer, settings=settings))


def refusal(name: str, data: bytes, error: ImageError, *, model: str, settings: Settings) -> dict[str, Any]:
    """Give the row of an image that cannot be scored, as JSON values."""
    sha256 = hashlib.sha256(data).hexdigest()
    return row_values(error_row(Item(name), error, sha256=sha256, model=model, settings=settings))


def overlay_png(image: NDArray[np.uint8], anomaly_map: NDArray[np.float32], *, resize: Resize, threshold: float) -> str:
    """Lay the map over its image, as the base64 of a PNG."""
    height, width = image.shape[:2]
    enlarged = enlarge_map(anomaly_map, height=height, width=width, resize=resize)
    drawn = overlay(image, enlarged, threshold=threshold)
    data = cv2.imencode(".png", cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR))[1]
    return base64.b64encode(data.tobytes()).decode()


def map_values(anomaly_map: NDArray[np.float32], *, resize: Resize) -> dict[str, Any]:
    """Give a map (h, w) at the network's resolution as JSON values.

    Returns:
        `png` in base64, 16 bits, whose levels are the map's values by `level * step - zero`, and `resize`, which says how the
        map lies on its image: see `anomaly.imaging.overlay.enlarge_map`.
    """
    data = cv2.imencode(".png", map_levels(anomaly_map))[1]
    png = base64.b64encode(data.tobytes()).decode()
    return {"png": png, "step": MAP_STEP, "zero": MAP_ZERO, "resize": resize}
