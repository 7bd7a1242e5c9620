"""The image file in the body of `POST /score`: the first file of a form (RFC 7578), or the whole body."""

from __future__ import annotations

from typing import Any

import python_multipart
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from anomaly.errors import RequestError
from anomaly.service.limits import Reservation

MAX_PARTS = 16
UNNAMED = "image"


def image_file(body: bytes, *, content_type: str, reserved: Reservation) -> tuple[str, bytes]:
    """Extract the image file from a body.

    Args:
        body: decompressed body.
        content_type: Content-Type of the request.
        reserved: memory of the request, to which a file of a form is added.

    Returns:
        The client's name of the file, and its bytes.

    Raises:
        RequestError: 400 a damaged form or one without a file, 503 no memory.
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
            400, "the form is damaged or has no boundary: send multipart/form-data as in RFC 7578"
        ) from error
    if form.filename is None or not form.is_complete:
        raise RequestError(400, "the form contains no complete file: send the image as a part with a filename")
    reserved.add(len(form.data))
    name = form.filename.decode("utf-8", "replace")[:200]
    return name or UNNAMED, bytes(form.data)


class _Form:
    """Collects the first file of a form and limits the number of parts."""

    def __init__(self) -> None:
        self.filename: bytes | None = None
        self.data = bytearray()
        self.is_complete = False
        self._num_parts = 0
        self._is_image = False
        self._field = self._value = b""
        self._disposition = b""

    def callbacks(self) -> Any:
        """Return the callbacks of the parser."""
        return {
            "on_part_begin": self._on_part_begin,
            "on_header_field": self._on_header_field,
            "on_header_value": self._on_header_value,
            "on_header_end": self._on_header_end,
            "on_headers_finished": self._on_headers_finished,
            "on_part_data": self._on_part_data,
            "on_part_end": self._on_part_end,
        }

    def _on_part_begin(self) -> None:
        self._num_parts += 1
        if self._num_parts > MAX_PARTS:
            raise RequestError(400, f"the form has more than {MAX_PARTS} parts: send the image alone")
        self._disposition = b""

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        if self._field.lower() == b"content-disposition":
            self._disposition = self._value
        self._field = self._value = b""

    def _on_headers_finished(self) -> None:
        filename = parse_options_header(self._disposition)[1].get(b"filename")
        self._is_image = filename is not None and self.filename is None
        if self._is_image:
            self.filename = filename

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._is_image:
            self.data += memoryview(data)[start:end]

    def _on_part_end(self) -> None:
        self.is_complete = self.is_complete or self._is_image
        self._is_image = False
