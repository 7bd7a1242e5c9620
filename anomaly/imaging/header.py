"""Headers of image files, read without decoding: PNG, JPEG, BMP, TIFF, WebP, GIF.

Decoders fill missing pixels with grey, allocate memory before checking a limit, and blend or convert without notice.
Here the header is read first, and an invalid file is refused before its pixels are decoded:

    image_header   bytes -> Header: size, bits, channels, frames, orientation, missing and unsupported content
    check_header   Header -> None, or an ImageError
"""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Literal

from anomaly.errors import ImageError
from anomaly.imaging._header_formats import Header, read_stored_header

__all__ = ["Frame", "Header", "check_header", "image_header"]

Frame = Literal["only", "first"]
"""Rule for files with several frames or pages: `only` refuses them, `first` takes the first frame"""


def image_header(data: bytes, *, name: str) -> Header:
    """Read the header of an image file. The cost grows with the file's sections, not with its pixels.

    Args:
        data: content of the file.
        name: name of the file, for messages.

    Raises:
        ImageError: `not_an_image` for other content; `truncated` if the file ends before its image size.
    """
    if not data:
        raise ImageError("not_an_image", f"{name}: the file is empty (0 bytes); copy or export it again")
    try:
        header = read_stored_header(data)
    except struct.error as error:
        message = f"{name}: the file ends within its header, after {len(data)} bytes; copy or export it again"
        raise ImageError("truncated", message) from error
    except ValueError as error:
        raise ImageError("not_an_image", f"{name}: {error}; export it again") from error
    if header is None:
        raise ImageError(
            "not_an_image",
            f"{name}: begins with {data[:8]!r}, not PNG, JPEG, BMP, TIFF, WebP or GIF; convert it to one of these",
        )
    if header.orientation >= 5:
        return replace(header, width=header.height, height=header.width)
    return header


def check_header(header: Header, *, name: str, max_pixels: int, frame: Frame) -> None:
    """Refuse an unusable image by its header.

    Args:
        header: header of the file.
        name: name of the file, for messages.
        max_pixels: largest width × height.
        frame: rule for files with several frames or pages: "only" refuses them, "first" takes the first frame.

    Raises:
        ImageError: `not_an_image` (no pixels), `too_large`, `unsupported_pixels` or `truncated`, checked in this order.
    """
    width, height = header.width, header.height
    if width < 1 or height < 1:
        raise ImageError("not_an_image", f"{name}: the image has {width}×{height} pixels; export it again")
    if width * height > max_pixels:
        raise ImageError(
            "too_large",
            f"{name}: {width}×{height} is {width * height:,} pixels, more than the limit of {max_pixels:,}; "
            "raise --max-pixels or make the image smaller",
        )
    if header.unsupported:
        raise ImageError(
            "unsupported_pixels",
            f"{name}: {header.unsupported} cannot be used; save it as 8-bit or 16-bit grey or RGB",
        )
    if header.frames > 1 and frame == "only":
        raise ImageError(
            "unsupported_pixels",
            f"{name}: the file holds {header.frames} frames or pages; save the wanted one as a separate file, "
            "or choose the first frame",
        )
    if header.missing:
        raise ImageError("truncated", f"{name}: {header.missing} is missing; copy or export the file again")
