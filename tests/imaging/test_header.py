from __future__ import annotations

import io
import struct
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from anomaly.errors import ImageError
from anomaly.imaging.header import check_header, image_header
from anomaly.imaging.image_file import decode_image

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (12, 16, 3), dtype=np.uint8)
IMAGE = Image.fromarray(RGB)
KINDS = ["PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF"]


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def refused(data: bytes, *, max_pixels: int = 10_000) -> tuple[str, str]:
    with pytest.raises(ImageError) as caught:
        decode_image(data, name="part 7.png", white=65535, max_pixels=max_pixels)
    message = str(caught.value)
    assert message.startswith("part 7.png: ")
    assert ";" in message, "every message ends with a way out"
    return caught.value.code, message


def png_header(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBBI", 13, b"IHDR", width, height, 8, 2, 0, 0, 0, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_header_has_the_size_of_the_image(kind: str) -> None:
    header = image_header(encoded(IMAGE, kind), name="part")
    assert (header.format, header.width, header.height) == (kind.lower(), 16, 12)
    assert (header.bits, header.channels, header.frames, header.orientation) == (8, 3, 1, 1)
    assert header.missing is header.unsupported is None


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 300), (300, 1), (257, 129)])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lossless", [True, False])
def test_header_agrees_with_the_decoder(kind: str, width: int, height: int, lossless: bool) -> None:
    drawn = Image.new("RGB", (width, height), (200, 100, 50))
    data = encoded(drawn, kind, lossless=lossless) if kind == "WEBP" else encoded(drawn, kind)
    header = image_header(data, name="part")
    image = decode_image(data, name="part", white=255, max_pixels=10**6)
    assert image.shape == (header.height, header.width, 3) == (height, width, 3)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_header_of_a_turned_image_has_its_sides_swapped(kind: str) -> None:
    exif = Image.Exif()
    exif[274] = 6
    header = image_header(encoded(IMAGE, kind, exif=exif), name="part")
    assert (header.width, header.height, header.orientation) == (12, 16, 6)


@pytest.mark.parametrize(
    ("mode", "bits", "channels"), [("L", 8, 1), ("LA", 8, 2), ("RGBA", 8, 4), ("I;16", 16, 1), ("1", 1, 1)]
)
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_header_has_bits_and_channels(kind: str, mode: str, bits: int, channels: int) -> None:
    header = image_header(encoded(Image.new(mode, (16, 12)), kind), name="part")
    assert (header.bits, header.channels) == (bits, channels)


def test_grey_bmp_has_one_channel() -> None:
    assert image_header(encoded(Image.new("L", (16, 12)), "BMP"), name="part").channels == 1


def test_png_of_900_million_pixels_is_refused_by_its_header() -> None:
    data = png_header(30_000, 30_000).ljust(100, b"\0")
    tracemalloc.start()
    code, message = refused(data, max_pixels=100_000_000)
    memory = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert code == "too_large"
    assert "30000×30000 is 900,000,000 pixels" in message
    assert "--max-pixels" in message
    assert memory < 1_000_000


@pytest.mark.parametrize("kind", KINDS)
def test_limit_of_pixels_is_exact(kind: str) -> None:
    data = encoded(IMAGE, kind)
    assert refused(data, max_pixels=16 * 12 - 1)[0] == "too_large"
    assert decode_image(data, name="part", white=255, max_pixels=16 * 12).shape == (12, 16, 3)


def test_empty_file_is_not_an_image() -> None:
    code, message = refused(b"")
    assert code == "not_an_image"
    assert "0 bytes" in message


@pytest.mark.parametrize(
    "data", [b"timestamp;camera\n1;2\n", b"<html>", b"PK\3\4" + bytes(40), b"RIFF" + bytes(20), bytes(50)]
)
def test_other_content_is_not_an_image(data: bytes) -> None:
    assert refused(data)[0] == "not_an_image"


def test_image_without_pixels_is_not_an_image() -> None:
    assert refused(png_header(0, 12))[0] == "not_an_image"
    assert refused(b"\xff\xd8\xff\xd9")[0] == "not_an_image"


@pytest.mark.parametrize("kind", KINDS)
def test_cut_file_is_truncated(kind: str) -> None:
    image = Image.fromarray(RNG.integers(0, 256, (40, 50, 3), dtype=np.uint8))
    whole = encoded(image, kind)
    for length in [12, 30, *range(40, len(whole) - 1, len(whole) // 50), len(whole) - 1]:
        assert refused(whole[:length])[0] == "truncated", f"{length} of {len(whole)} bytes"


@pytest.mark.parametrize("options", [{"progressive": True}, {"restart_marker_rows": 1}, {"comment": b"\xff\xd9" * 9}])
def test_jpeg_without_its_end_is_truncated(options: dict[str, object]) -> None:
    whole = encoded(IMAGE, "JPEG", **options)
    assert decode_image(whole, name="part", white=255, max_pixels=10_000).shape == (12, 16, 3)
    code, message = refused(whole[:-2])
    assert code == "truncated"
    assert "EOI" in message


def test_jpeg_cut_after_a_whole_thumbnail_is_truncated() -> None:
    thumbnail = encoded(IMAGE.resize((8, 6)), "JPEG")
    plain = encoded(IMAGE, "JPEG")
    block = b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0" + thumbnail
    data = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + plain[2:]
    header = image_header(data, name="part")
    assert (header.width, header.height, header.missing) == (16, 12, None)
    assert refused(data[:-2])[0] == "truncated"


def test_jpeg_padded_with_zeros_is_truncated() -> None:
    whole = encoded(IMAGE, "JPEG")
    assert refused(whole[:-100] + bytes(100))[0] == "truncated"


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_after_the_end_are_ignored(kind: str) -> None:
    whole = encoded(IMAGE, kind)
    image = decode_image(whole, name="part", white=255, max_pixels=10_000)
    assert np.array_equal(decode_image(whole + b"\xff\xd8 more", name="part", white=255, max_pixels=10_000), image)


@pytest.mark.parametrize(
    ("kind", "mode"), [("JPEG", "CMYK"), ("TIFF", "CMYK"), ("TIFF", "F"), ("TIFF", "I"), ("TIFF", "LAB")]
)
def test_unsupported_pixels_are_refused(kind: str, mode: str) -> None:
    code, message = refused(encoded(Image.new(mode, (16, 12)), kind))
    assert code == "unsupported_pixels"
    assert "8-bit or 16-bit grey or RGB" in message


def tiff(tags: dict[int, int]) -> bytes:
    """Make a little-endian TIFF of 2 × 1 pixels with 16-bit samples and the given tags."""
    fields = {256: 2, 257: 1, 258: 16, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: 12} | tags
    entries = b"".join(struct.pack("<HHII", tag, 3, 1, value) for tag, value in sorted(fields.items()))
    return b"II*\0" + struct.pack("<I", 20) + bytes(12) + struct.pack("<H", len(fields)) + entries + bytes(4)


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({258: 12}, "12-bit"),
        ({339: 2}, "signed"),
        ({262: 0}, "white is 0"),
        ({277: 2}, "with alpha"),
        ({262: 2, 277: 3, 284: 2}, "planes"),
        ({277: 5}, "5 × 16-bit"),
    ],
)
def test_tiff_with_wrongly_decoded_pixels_is_refused(tags: dict[int, int], words: str) -> None:
    assert decode_image(tiff({}), name="part", white=255, max_pixels=10_000).shape == (1, 2, 3)
    code, message = refused(tiff(tags))
    assert code == "unsupported_pixels"
    assert words in message


def test_gif_with_a_transparent_colour_is_refused() -> None:
    code, message = refused(encoded(IMAGE.quantize(16), "GIF", transparency=3))
    assert code == "unsupported_pixels"
    assert "transparent" in message


@pytest.mark.parametrize("kind", ["PNG", "GIF", "WEBP", "TIFF"])
def test_several_frames_are_refused_unless_the_first_is_requested(kind: str) -> None:
    frames = [IMAGE, Image.fromarray(RGB[::-1].copy()), Image.fromarray(255 - RGB)]
    if kind == "GIF":
        frames = [frame.quantize(256) for frame in frames]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    code, message = refused(data)
    assert code == "unsupported_pixels"
    assert "3 frames" in message
    first = decode_image(data, name="part", white=255, max_pixels=10_000, frame="first")
    assert np.array_equal(first, np.asarray(frames[0].convert("RGB")))


def test_damage_raises_only_image_errors(capfd: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(1)
    codes = set()
    for kind in KINDS:
        whole = np.frombuffer(encoded(IMAGE, kind), dtype=np.uint8)
        for _ in range(150):
            data = whole.copy()
            data[rng.integers(0, min(len(data), 200), 3)] = rng.choice([0, 1, 127, 128, 255], 3)
            try:
                header = image_header(data.tobytes(), name="part")
                check_header(header, name="part", max_pixels=10_000, frame="first")
                decode_image(data.tobytes(), name="part", white=255, max_pixels=10_000, frame="first")
            except ImageError as error:
                codes.add(error.code)
    assert codes == {"not_an_image", "too_large", "unsupported_pixels", "truncated"}
    capfd.readouterr()  # the decoder writes to the terminal


def test_circular_chain_of_tiff_pages_ends() -> None:
    data = bytearray(tiff({}))
    data[-4:] = struct.pack("<I", 20)
    assert image_header(bytes(data), name="part").frames == 1


def test_tiff_with_offsets_beyond_its_end_is_truncated() -> None:
    data = b"II+\0\x08\0\0\0" + b"\xff" * 8
    assert refused(data)[0] == "truncated"
