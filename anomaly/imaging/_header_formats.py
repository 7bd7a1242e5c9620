"""Readers of the image formats' headers: PNG, JPEG, BMP, TIFF, WebP, GIF.

Sources: PNG (Third Edition, W3C 2025), ITU-T T.81 Annex B (JPEG), TIFF 6.0, RFC 9649 (WebP), GIF89a
(CompuServe 1990), Windows GDI BITMAPINFOHEADER, Exif 2.32 §4.6.4 (orientation).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Literal

from anomaly.imaging.tiff_tags import Directory, directories

Format = Literal["png", "jpeg", "bmp", "tiff", "webp", "gif"]


@dataclass(frozen=True, kw_only=True)
class Header:
    """Content of an image file's header."""

    format: Format
    width: int
    """pixels, after the orientation is applied"""
    height: int
    """pixels, after the orientation is applied"""
    bits: int
    """bits of one stored sample"""
    channels: int
    """1 grey, 2 grey and alpha, 3 colour (also by a palette), 4 colour and alpha"""
    frames: int = 1
    orientation: int = 1
    """EXIF orientation, 1 to 8; 1 is the stored orientation"""
    missing: str | None = None
    """name of the content missing at the end of the file; None for a complete file"""
    unsupported: str | None = None
    """name of the unsupported kind of pixels; None for usable pixels"""
    alpha_at: int | None = None
    """offset of the two bytes that make a decoder multiply a TIFF's alpha into its colours; None without such bytes"""


def read_stored_header(data: bytes) -> Header | None:
    """Read the header of a file, its sides before the orientation is applied; None for another format."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return _png(data)
    if data.startswith(b"\xff\xd8"):
        return _jpeg(data)
    if data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return _tiff(data)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _webp(data)
    if data.startswith((b"GIF87a", b"GIF89a")):
        return _gif(data)
    if data.startswith(b"BM"):
        return _bmp(data)
    return None


def _png(data: bytes) -> Header:
    length, kind, width, height, bits, colour = struct.unpack_from(">I4sIIBB", data, 8)
    if kind != b"IHDR" or length != 13:
        raise ValueError("the first chunk of the PNG is not its header")
    if colour not in (0, 2, 3, 4, 6):
        raise ValueError(f"the PNG has the unknown colour type {colour}")
    frames, orientation, seen_data = 1, 1, False
    missing: str | None = "the end of the PNG (IEND)"
    at = 8
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if at + 12 + length > len(data):
            break
        if kind == b"IDAT":
            seen_data = True
        elif kind == b"acTL":
            frames = max(1, struct.unpack_from(">I", data, at + 8)[0])
        elif kind == b"eXIf":
            orientation = _exif_orientation(data[at + 8 : at + 8 + length])
        elif kind == b"IEND":
            missing = None if seen_data else "the image data (IDAT)"
            break
        at += 12 + length
    return Header(
        format="png",
        width=width,
        height=height,
        bits=8 if colour == 3 else bits,
        channels={0: 1, 2: 3, 3: 3, 4: 2, 6: 4}[colour],
        frames=frames,
        orientation=orientation,
        missing=missing,
    )


# The next marker, also after coded data: 0xFF without a following stuffed zero, restart marker or fill byte.
_JPEG_MARKER = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])")


def _jpeg(data: bytes) -> Header:
    size = None
    orientation: int | None = None
    missing: str | None = "the end of the JPEG (EOI)"
    at = 2
    while match := _JPEG_MARKER.search(data, at):
        marker, at = match[1][0], match.end()
        if marker == 0xD9:
            missing = None
            break
        if marker in (0x01, 0xD8):
            continue
        if at + 2 > len(data):
            break
        (length,) = struct.unpack_from(">H", data, at)
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and size is None:
            size = struct.unpack_from(">BHHB", data, at + 2)
        elif marker == 0xE1 and orientation is None and data[at + 2 : at + 8] == b"Exif\0\0":
            orientation = _exif_orientation(data[at + 8 : at + length])
        at += length
    if size is None:
        if missing:
            raise struct.error
        raise ValueError("the JPEG holds no image")
    bits, height, width, channels = size
    unsupported = None
    if channels == 4:
        unsupported = "a JPEG of four colours (CMYK)"
    elif bits != 8 or channels not in (1, 3):
        unsupported = f"a JPEG of {channels} channels with {bits} bits"
    return Header(
        format="jpeg",
        width=width,
        height=height,
        bits=bits,
        channels=channels,
        orientation=orientation or 1,
        missing=missing,
        unsupported=unsupported,
    )


def _bmp(data: bytes) -> Header:
    offset, header_size = struct.unpack_from("<II", data, 10)
    if header_size == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
        compression, size = 0, 0
    elif header_size >= 40:
        width, height, _, bits, compression, size = struct.unpack_from("<iiHHII", data, 18)
    else:
        raise ValueError(f"the BMP has an unknown header of {header_size} bytes")
    if bits not in (1, 4, 8, 16, 24, 32):
        raise ValueError(f"the BMP has an unknown depth of {bits} bits per pixel")
    palette = data[14 + header_size : offset]
    grey = bits <= 8 and header_size != 12 and palette[0::4] == palette[1::4] == palette[2::4]
    if compression in (0, 3, 6):
        size = (width * bits + 31) // 32 * 4 * abs(height)
    return Header(
        format="bmp",
        width=width,
        height=abs(height),
        bits=8,
        channels=1 if grey else 4 if bits == 32 else 3,
        missing=None if offset + size <= len(data) else f"the last {offset + size - len(data)} bytes of the BMP",
    )


def _exif_orientation(block: bytes) -> int:
    """Read the orientation, 1 to 8, of an EXIF block; 1 for an invalid block, because the image can still be used."""
    try:
        return _valid_orientation(next(directories(block)))
    except (struct.error, ValueError, StopIteration):
        return 1


def _valid_orientation(directory: Directory) -> int:
    orientation = directory.value(274, default=1)
    return orientation if 1 <= orientation <= 8 else 1


def _tiff(data: bytes) -> Header:
    pages = directories(data)
    try:
        first = next(pages)
    except StopIteration as error:
        raise ValueError("the TIFF holds no image") from error
    channels, photometric = first.value(277, default=1), first.value(262, default=1)
    bits, sample = set(first.values(258)) or {1}, set(first.values(339)) or {1}
    depth = f"{channels} × {'/'.join(str(b) for b in sorted(bits))}-bit"
    unsupported = None
    if photometric == 5:
        unsupported = "a TIFF of four colours (CMYK)"
    elif sample - {1, 4}:
        unsupported = f"a TIFF of {depth} {({2: 'signed', 3: 'floating-point'}).get(max(sample), 'complex')} samples"
    elif photometric not in (0, 1, 2, 3, 6) or channels > 4:
        unsupported = f"a TIFF of {depth} samples in the colour space {photometric}"
    elif bits not in ({1}, {8}, {16}) or (bits != {8} and photometric == 3):
        unsupported = f"a TIFF of {depth} samples"
    elif bits == {16} and channels == 2:
        unsupported = "a TIFF of 16-bit grey with alpha"
    elif bits == {16} and channels > 1 and first.value(284, default=1) == 2:
        unsupported = "a TIFF of 16-bit colour with its channels in separate planes"
    elif bits == {16} and photometric == 0:
        unsupported = "a TIFF of 16-bit grey where white is 0"

    frames, missing = 1, _tiff_missing(first)
    try:
        # A reduced copy (bit 0) or a transparency mask (bit 2) does not count as a page.
        for page in pages:
            frames += not page.value(254, default=0) & 0b101
    except struct.error:
        missing = missing or "a later page of the TIFF"
    # Decoders multiply an "unassociated" alpha (2) into 8-bit colours.
    blended = bits == {8} and first.value(338, default=0) == 2
    return Header(
        format="tiff",
        width=first.value(256, default=0),
        height=first.value(257, default=0),
        bits=max(bits),
        channels=3 if photometric == 3 else channels,
        frames=frames,
        orientation=_valid_orientation(first),
        missing=missing,
        unsupported=unsupported,
        alpha_at=first.entries[338][2] if blended else None,
    )


def _tiff_missing(page: Directory) -> str | None:
    """Name the strips (273, 279) or tiles (324, 325) beyond the end of the file."""
    offsets_tag, sizes_tag = (324, 325) if 324 in page.entries else (273, 279)
    offsets, sizes = page.values(offsets_tag), page.values(sizes_tag)
    if not offsets:
        return "the list of the TIFF's strips"
    beyond = max(map(sum, zip_longest(offsets, sizes, fillvalue=1))) - len(page.data)
    return f"the last {beyond} bytes of the TIFF" if beyond > 0 else None


def _webp(data: bytes) -> Header:
    (riff_size,) = struct.unpack_from("<I", data, 4)
    missing = None if riff_size + 8 <= len(data) else f"the last {riff_size + 8 - len(data)} bytes of the WebP"
    width = height = 0
    channels, frames, orientation = 3, 0, 1
    for kind, at, length in _riff_chunks(data):
        if kind == b"VP8X":
            flags, wide, high = struct.unpack_from("<I3s3s", data, at)
            width, height = int.from_bytes(wide, "little") + 1, int.from_bytes(high, "little") + 1
            channels = 4 if flags & 0x10 else 3
        elif kind == b"VP8 " and not width:
            width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, at + 6))
        elif kind == b"VP8L" and not width:
            (bits,) = struct.unpack_from("<I", data, at + 1)
            width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
            channels = 4 if bits >> 28 & 1 else 3
        elif kind == b"ANMF":
            frames += 1
        elif kind == b"EXIF":
            orientation = _exif_orientation(data[at : at + length].removeprefix(b"Exif\0\0"))
    if not width:
        raise struct.error
    return Header(
        format="webp",
        width=width,
        height=height,
        bits=8,
        channels=channels,
        frames=max(1, frames),
        orientation=orientation,
        missing=missing,
    )


def _riff_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield kind, offset and length of every chunk of a RIFF file; the last one may be cut."""
    at = 12
    while at + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, at)
        yield kind, at + 8, length
        at += 8 + length + length % 2


def _gif(data: bytes) -> Header:
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    at = 13 + _gif_palette(flags)
    frames, transparent = 0, False
    missing: str | None = "the end of the GIF"
    while at < len(data):
        block = data[at]
        if block == 0x3B:
            missing = None
            break
        if block == 0x21:
            if frames == 0 and data[at + 1 : at + 2] == b"\xf9":
                transparent = struct.unpack_from("B", data, at + 3)[0] & 1 == 1
            at += 2
        elif block == 0x2C and at + 10 <= len(data):
            frames += 1
            at += 11 + _gif_palette(data[at + 9])
        else:
            break
        while at < len(data) and data[at]:
            at += 1 + data[at]
        at += 1
    return Header(
        format="gif",
        width=width,
        height=height,
        bits=8,
        channels=3,
        frames=max(1, frames),
        missing=missing,
        unsupported="a GIF with a transparent colour" if transparent else None,
    )


def _gif_palette(flags: int) -> int:
    """Count the bytes of a GIF's colour table."""
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0
