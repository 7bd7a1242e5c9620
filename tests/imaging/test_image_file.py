from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from anomaly.errors import ImageError, OutputError, UsageError
from anomaly.imaging.image_file import (
    decode_image,
    decode_stored,
    read_image,
    read_mask,
    stored_maximum,
    white_level,
    write_png,
)

LIMIT = 10_000
RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (12, 16, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (12, 16), dtype=np.uint8)
ALPHA = RNG.integers(0, 256, (12, 16), dtype=np.uint8)
GREY16 = RNG.integers(0, 65536, (12, 16), dtype=np.uint16)
RGB16 = RNG.integers(0, 65536, (12, 16, 3), dtype=np.uint16)

UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def decoded(data: bytes, *, white: int = 65535) -> np.ndarray:
    return decode_image(data, name="part", white=white, max_pixels=LIMIT)


def in_three_channels(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=2)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP"])
def test_colour_is_read_as_stored(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    assert np.array_equal(decoded(encoded(Image.fromarray(RGB), kind, **options)), RGB)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_grey_is_repeated_in_all_channels(kind: str) -> None:
    assert np.array_equal(decoded(encoded(Image.fromarray(GREY), kind)), in_three_channels(GREY))


@pytest.mark.parametrize("quality", [50, 95])
def test_jpeg_agrees_with_another_decoder(quality: int) -> None:
    for image in (Image.fromarray(RGB), Image.fromarray(GREY)):
        data = encoded(image, "JPEG", quality=quality)
        other = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
        assert np.abs(decoded(data) - other).max() <= 1


@pytest.mark.parametrize(
    ("kind", "options"), [("PNG", {}), ("TIFF", {}), ("BMP", {}), ("WEBP", {"lossless": True, "exact": True})]
)
def test_alpha_is_dropped_and_not_blended(kind: str, options: dict[str, object]) -> None:
    assert np.array_equal(decoded(encoded(Image.fromarray(np.dstack([RGB, ALPHA])), kind, **options)), RGB)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_alpha_beside_grey_is_dropped(kind: str) -> None:
    assert np.array_equal(decoded(encoded(Image.fromarray(np.dstack([GREY, ALPHA])), kind)), in_three_channels(GREY))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF"])
def test_palette_is_looked_up(kind: str) -> None:
    image = Image.fromarray(RGB).quantize(16)
    assert np.array_equal(decoded(encoded(image, kind)), np.asarray(image.convert("RGB")))


def test_transparent_palette_entry_keeps_its_colour() -> None:
    image = Image.fromarray(RGB).quantize(16)
    data = encoded(image, "PNG", transparency=bytes([0, 128]))
    assert np.array_equal(decoded(data), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_one_bit_becomes_0_and_255(kind: str) -> None:
    assert np.array_equal(
        decoded(encoded(Image.fromarray(GREY > 127), kind)), in_three_channels(np.where(GREY > 127, 255, 0))
    )


@pytest.mark.parametrize("white", [65535, 4095, 1000])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_divided_by_white(kind: str, white: int) -> None:
    values = GREY16 if white == 65535 else GREY16 >> 4  # a 12-bit camera in a 16-bit file
    expected = np.clip(np.floor(values * 255.0 / white + 0.5), 0, 255)
    assert np.array_equal(decoded(encoded(Image.fromarray(values), kind), white=white), in_three_channels(expected))


def test_16_bit_colour_is_divided_by_white() -> None:
    data = cv2.imencode(".png", RGB16[..., ::-1])[1].tobytes()
    assert np.array_equal(decoded(data, white=4095), np.clip(np.floor(RGB16 * 255.0 / 4095 + 0.5), 0, 255))


def test_halves_round_up() -> None:
    values = np.arange(510, dtype=np.uint16)[None]
    assert np.array_equal(
        decoded(encoded(Image.fromarray(values), "PNG"), white=510)[0, :, 0], (np.arange(510) + 1) // 2
    )


@pytest.mark.parametrize("white", [0, 65536])
def test_white_outside_16_bits_is_refused(white: int) -> None:
    with pytest.raises(UsageError, match=f"white is {white}"):
        decoded(encoded(Image.fromarray(GREY), "PNG"), white=white)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_orientation_is_applied(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    options = {"lossless": True} if kind == "WEBP" else {"subsampling": 0, "quality": 100} if kind == "JPEG" else {}
    smooth = cv2.resize(RGB[:3, :4], (16, 12), interpolation=cv2.INTER_CUBIC)
    found = decoded(encoded(Image.fromarray(smooth), kind, exif=exif, **options)).astype(int)
    expected = UPRIGHT[orientation](smooth)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= (8 if kind == "JPEG" else 0)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_orientation_is_applied_to_16_bits(kind: str) -> None:
    exif = Image.Exif()
    exif[274] = 6
    found = decode_stored(encoded(Image.fromarray(GREY16), kind, exif=exif), name="part", max_pixels=LIMIT)
    assert np.array_equal(found, in_three_channels(UPRIGHT[6](GREY16)))


def test_orientation_outside_1_to_8_is_ignored() -> None:
    exif = Image.Exif()
    exif[274] = 9
    assert np.array_equal(decoded(encoded(Image.fromarray(RGB), "PNG", exif=exif)), RGB)


@pytest.mark.parametrize("name", ["prüfling 1.png", "零件.png", "a b/c#d%20[1].png"])
def test_paths_of_any_characters_are_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    write_png(path, RGB)
    assert np.array_equal(read_image(path, white=65535, max_pixels=LIMIT), RGB)
    assert np.array_equal(read_image(str(path), white=65535, max_pixels=LIMIT), RGB)


def code_and_message(path: Path) -> tuple[str, str]:
    with pytest.raises(ImageError) as caught:
        read_image(path, white=65535, max_pixels=LIMIT)
    return caught.value.code, str(caught.value)


def test_missing_file_is_reported(tmp_path: Path) -> None:
    code, message = code_and_message(tmp_path / "gone.png")
    assert code == "missing"
    assert "gone.png" in message


def test_folder_pipe_and_impossible_name_are_unreadable(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    assert code_and_message(tmp_path)[0] == "unreadable"
    assert code_and_message(tmp_path / "pipe.png")[0] == "unreadable"
    assert code_and_message(tmp_path / ("x" * 300 + ".png"))[0] == "unreadable"
    assert code_and_message(tmp_path / "nul\0.png")[0] == "unreadable"


def test_file_of_too_many_bytes_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "huge.tif").open("wb") as file:
        file.truncate(2**27)  # a sparse file: takes no space on disk
    code, message = code_and_message(tmp_path / "huge.tif")
    assert code == "too_large"
    assert "134,217,728 bytes" in message


def test_damaged_image_with_a_valid_header_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    data = bytearray(encoded(Image.fromarray(RGB), "PNG"))
    at = data.index(b"IDAT") + 4
    data[at : at + 20] = bytes(20)
    with pytest.raises(ImageError, match="PNG of 16×12 pixels cannot be decoded") as caught:
        decoded(bytes(data))
    assert caught.value.code == "not_an_image"
    capfd.readouterr()  # the decoder writes to the terminal


def test_mask_is_true_at_nonzero_pixels(tmp_path: Path) -> None:
    mask = np.zeros((12, 16), dtype=np.uint8)
    mask[2, 3], mask[4, 5] = 1, 255
    write_png(tmp_path / "mask.png", mask)
    found = read_mask(tmp_path / "mask.png", max_pixels=LIMIT)
    assert found.dtype == np.bool_
    assert np.argwhere(found).tolist() == [[2, 3], [4, 5]]


def test_colour_mask_is_true_at_nonzero_pixels_of_any_channel(tmp_path: Path) -> None:
    mask = np.zeros((12, 16, 3), dtype=np.uint8)
    mask[2, 3, 2] = 9
    write_png(tmp_path / "mask.png", mask)
    assert np.argwhere(read_mask(tmp_path / "mask.png", max_pixels=LIMIT)).tolist() == [[2, 3]]


def test_mask_is_turned_like_its_image(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 8
    Image.fromarray(GREY).save(tmp_path / "mask.png", exif=exif)
    assert np.array_equal(read_mask(tmp_path / "mask.png", max_pixels=LIMIT), UPRIGHT[8](GREY) != 0)


def test_16_bit_mask_is_refused(tmp_path: Path) -> None:
    write_png(tmp_path / "mask.png", GREY16)
    with pytest.raises(ImageError, match="mask has 16 bits"):
        read_mask(tmp_path / "mask.png", max_pixels=LIMIT)


def test_white_level_is_the_next_power_of_two_minus_1() -> None:
    levels = {0: 255, 255: 255, 256: 511, 1000: 1023, 1023: 1023, 4000: 4095, 4096: 8191, 65535: 65535}
    assert {maximum: white_level(maximum) for maximum in levels} == levels
    with pytest.raises(UsageError, match="65536"):
        white_level(65536)


def test_stored_maximum_is_not_scaled(tmp_path: Path) -> None:
    write_png(tmp_path / "part.png", (GREY16 >> 4).astype(np.uint16))
    assert stored_maximum(tmp_path / "part.png", max_pixels=LIMIT) == int(GREY16.max() >> 4)
    write_png(tmp_path / "part.png", GREY // 4)
    assert stored_maximum(tmp_path / "part.png", max_pixels=LIMIT) == 255


@pytest.mark.parametrize("array", [GREY, RGB, GREY16])
def test_written_png_holds_the_array(tmp_path: Path, array: np.ndarray) -> None:
    write_png(tmp_path / "out.png", array)
    found = decode_stored((tmp_path / "out.png").read_bytes(), name="out", max_pixels=LIMIT)
    assert np.array_equal(found, array if array.ndim == 3 else in_three_channels(array))
    assert [file.name for file in tmp_path.iterdir()] == ["out.png"]


@pytest.mark.parametrize("array", [RGB.astype(np.float32), RGB16, RGB[..., :2], RGB[None]])
def test_array_of_another_shape_or_type_is_not_written(tmp_path: Path, array: np.ndarray) -> None:
    with pytest.raises(UsageError, match="is not an image"):
        write_png(tmp_path / "out.png", array)


def test_failed_write_leaves_no_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    with pytest.raises(OutputError, match=r"out\.png cannot be written"):
        write_png(tmp_path / "file" / "out.png", RGB)
    (tmp_path / "taken.png").mkdir()
    with pytest.raises(OutputError, match=r"taken\.png cannot be written"):
        write_png(tmp_path / "taken.png", RGB)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "taken.png"]


def test_missing_folders_of_a_png_are_created(tmp_path: Path) -> None:
    write_png(str(tmp_path / "new" / "folder" / "out.png"), RGB)
    assert (tmp_path / "new" / "folder" / "out.png").is_file()


@pytest.mark.parametrize("path", [None, 7, b"part.png", RGB])
def test_path_of_another_type_is_refused(path: object) -> None:
    for call in (
        lambda: read_image(path, white=255, max_pixels=LIMIT),
        lambda: read_mask(path, max_pixels=LIMIT),
        lambda: stored_maximum(path, max_pixels=LIMIT),
        lambda: write_png(path, RGB),
    ):
        with pytest.raises(UsageError, match=rf"path is {type(path).__name__} .*: give a path as str or pathlib\.Path"):
            call()


def test_png_of_a_few_bits_is_scaled_to_8() -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 1, 2, 0, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0\x1b")) + chunk(b"IEND", b"")
    assert decoded(data)[0, :, 0].tolist() == [0, 85, 170, 255]
