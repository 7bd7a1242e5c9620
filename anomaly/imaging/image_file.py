"""Image files to uint8 RGB arrays and back. Every kind of stored pixel has one meaning; other kinds are refused.

    stored            becomes
    8-bit grey        the value in all three channels
    8-bit colour      RGB; a palette is looked up
    alpha             dropped, never blended
    16-bit            value · 255 / white, rounded to nearest, halves up, clipped at 255
    EXIF orientation  applied, to images and masks alike

Files are refused by their header before they are decoded (`anomaly.imaging.header`).
"""

from __future__ import annotations

import stat
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from anomaly.errors import ImageError, OutputError, UsageError
from anomaly.imaging.array_image import eight_bits
from anomaly.imaging.header import Frame, Header, check_header, image_header
from anomaly.system.files import as_path, atomic_write

Stored = NDArray[Any]  # uint8 or uint16


def read_image(path: str | Path, *, white: int, max_pixels: int, frame: Frame = "only") -> NDArray[np.uint8]:
    """Read an image file.

    Args:
        path: image file.
        white: stored value of a 16-bit image that becomes 255, 1 to 65535.
        max_pixels: largest width × height.
        frame: rule for files with several frames or pages: "only" refuses them, "first" takes the first frame.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ImageError: see `read_file` and `decode_image`.
        UsageError: `path` is neither a string nor a path, or `white` is not between 1 and 65535.
    """
    data = read_file(path, max_pixels=max_pixels)
    return decode_image(data, name=str(path), white=white, max_pixels=max_pixels, frame=frame)


def read_file(path: str | Path, *, max_pixels: int) -> bytes:
    """Read the bytes of an image file.

    Args:
        path: image file.
        max_pixels: largest width × height; the file may hold 8 bytes for each pixel, and 64 MiB more.

    Raises:
        ImageError: `missing`, `unreadable` (a folder, a device, no permission, a fault of the disk) or `too_large`.
        UsageError: `path` is neither a string nor a path.
    """
    file, limit = as_path(path, name="path"), 8 * max_pixels + 2**26
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise ImageError("unreadable", f"{path}: this is {kind}; give the path of an image file")
        if status.st_size > limit:
            message = f"{path}: the file has {status.st_size:,} bytes, {max_pixels:,} pixels need at most {limit:,}"
            raise ImageError("too_large", f"{message}; raise --max-pixels or make the image smaller")
        return file.read_bytes()
    except FileNotFoundError as error:
        raise ImageError("missing", f"{path}: the file does not exist; check the path") from error
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        reason = error.strerror if isinstance(error, OSError) else error
        raise ImageError("unreadable", f"{path}: cannot be read ({reason}); check its permissions and disk") from error


def decode_image(data: bytes, *, name: str, white: int, max_pixels: int, frame: Frame = "only") -> NDArray[np.uint8]:
    """Decode the content of an image file.

    Args:
        data: content of the file.
        name: name of the file, for messages.
        white: stored value of a 16-bit image that becomes 255, 1 to 65535.
        max_pixels: largest width × height.
        frame: rule for files with several frames or pages: "only" refuses them, "first" takes the first frame.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ImageError: `not_an_image`, `too_large`, `unsupported_pixels` or `truncated`.
        UsageError: `white` is not between 1 and 65535.
    """
    if not 1 <= white <= 65535:
        raise UsageError(f"white is {white}; give the stored value of white, 1 to 65535")
    return eight_bits(decode_stored(data, name=name, max_pixels=max_pixels, frame=frame), white=white)


def decode_stored(data: bytes, *, name: str, max_pixels: int, frame: Frame = "only") -> Stored:
    """Decode the content of an image file at its stored depth.

    Grey is repeated in all three channels, alpha is dropped, and the orientation is applied.

    Args:
        data: content of the file.
        name: name of the file, for messages.
        max_pixels: largest width × height.
        frame: rule for files with several frames or pages: "only" refuses them, "first" takes the first frame.

    Returns:
        (H, W, 3) RGB, uint8 or uint16 with the stored values.

    Raises:
        ImageError: see `decode_image`.
    """
    header = image_header(data, name=name)
    check_header(header, name=name, max_pixels=max_pixels, frame=frame)
    if header.alpha_at is not None:  # unknown kind of alpha: decoders leave the colours alone
        data = data[: header.alpha_at] + b"\0\0" + data[header.alpha_at + 2 :]
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        stored = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), flags)
    except cv2.error as error:
        raise ImageError(
            "not_an_image", f"{name}: the image cannot be decoded ({error.err}); export it again"
        ) from error
    if stored is None:
        raise ImageError(
            "not_an_image",
            f"{name}: the {header.format.upper()} of {header.width}×{header.height} pixels cannot be decoded: "
            "it is damaged or of a rare kind; export it again as PNG",
        )
    if header.format != "tiff":  # the decoder turns a TIFF regardless of the flags
        stored = _turned(stored, orientation=header.orientation)
    _check_decoded(stored, header, name=name)
    upright: Stored = cv2.cvtColor(stored, cv2.COLOR_BGR2RGB)
    return upright


def _turned(stored: Any, *, orientation: int) -> Any:
    """Turn a stored image upright; the cases are those of Exif 2.32 §4.6.4, tag 274."""
    if orientation in (5, 6, 7, 8):
        stored = cv2.transpose(stored)
    # After the transposition: mirror left to right (1), top to bottom (0) or both (-1).
    mirror = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}
    return cv2.flip(stored, mirror[orientation]) if orientation in mirror else stored


def _check_decoded(stored: Stored, header: Header, *, name: str) -> None:
    """Refuse a decoded image that differs from its header."""
    expected = ((header.height, header.width, 3), np.dtype(np.uint16 if header.bits > 8 else np.uint8))
    if (stored.shape, stored.dtype) != expected:
        raise ImageError(
            "unsupported_pixels",
            f"{name}: the header announces {header.width}×{header.height} pixels of {header.bits} bits, the image has "
            f"{stored.shape[1]}×{stored.shape[0]} of {stored.dtype}; save it again as 8-bit or 16-bit PNG",
        )


def stored_maximum(path: str | Path, *, max_pixels: int) -> int:
    """Find the largest stored value of an image file. Only 16-bit files are decoded.

    The `white` of a set of images is the `white_level` of their largest stored value.

    Returns:
        0 to 65535 for a 16-bit file; 255 for a file of 8 bits or fewer.

    Raises:
        ImageError: see `read_image`.
    """
    data, name = read_file(path, max_pixels=max_pixels), str(path)
    if image_header(data, name=name).bits <= 8:
        return 255
    return int(decode_stored(data, name=name, max_pixels=max_pixels).max())


def white_level(maximum: int) -> int:
    """Find the white of 16-bit images from their largest stored value `maximum`: the next 2^k − 1, 255 to 65535."""
    if not 0 <= maximum <= 65535:
        raise UsageError(f"the largest stored value is {maximum}; 16-bit images hold 0 to 65535")
    return max(255, (1 << maximum.bit_length()) - 1)


def read_mask(path: str | Path, *, max_pixels: int) -> NDArray[np.bool_]:
    """Read an 8-bit mask file.

    Returns:
        (H, W) bool: True where any channel except alpha is not 0.

    Raises:
        ImageError: see `read_image`; `unsupported_pixels` for a 16-bit mask.
    """
    stored = decode_stored(read_file(path, max_pixels=max_pixels), name=str(path), max_pixels=max_pixels)
    if stored.dtype != np.uint8:
        raise ImageError(
            "unsupported_pixels", f"{path}: the mask has 16 bits; save it with 8 bits, 0 = good, 255 = defect"
        )
    defect: NDArray[np.bool_] = (stored[..., 0] | stored[..., 1] | stored[..., 2]) != 0
    return defect


def write_png(path: str | Path, array: NDArray[Any], *, text: Mapping[str, str] = MappingProxyType({})) -> None:
    """Write an array as a PNG file, whole or not at all. Missing folders are created.

    Args:
        path: file to write or replace.
        array: (H, W) uint8 or uint16 grey, or (H, W, 3) uint8 RGB.
        text: keyword -> Latin-1 text, stored in `tEXt` chunks (PNG 1.2, §4.2.3.1).

    Raises:
        OutputError: the file cannot be written, or PNG cannot hold the size.
        UsageError: the array has another shape or type.
    """
    grey = array.ndim == 2 and array.dtype in (np.uint8, np.uint16)
    if not grey and not (array.ndim == 3 and array.shape[2] == 3 and array.dtype == np.uint8):
        raise UsageError(
            f"{path}: an array {array.shape} of {array.dtype} is not an image; "
            "give (H, W) uint8 or uint16, or (H, W, 3) uint8"
        )
    encoded, data = cv2.imencode(".png", array if grey else cv2.cvtColor(array, cv2.COLOR_RGB2BGR))
    if not encoded:
        raise OutputError(f"{path}: an image of {array.shape} cannot be written as PNG; make it smaller")
    stored = bytearray(data.tobytes())
    for keyword, value in text.items():
        chunk = b"tEXt" + keyword.encode("latin-1") + b"\0" + value.encode("latin-1")
        header_end = 33  # bytes of the signature and the first chunk, IHDR
        stored[header_end:header_end] = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    with atomic_write(path) as partial:
        partial.write_bytes(stored)
