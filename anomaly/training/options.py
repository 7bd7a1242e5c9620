"""Options of a fit that are read from files or from the images: excluded names, white level, region of interest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from anomaly.data.folders import Sample
from anomaly.errors import DataError, UsageError
from anomaly.imaging.header import image_header
from anomaly.imaging.image_file import read_file, read_mask, stored_maximum, white_level


def read_names(path: str | Path | None) -> list[str]:
    """Read a list of file names, one per line; no path gives no names.

    Raises:
        DataError: the list cannot be read.
    """
    if path is None:
        return []
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"the list {path} cannot be read ({error}); give a UTF-8 text file, one name per line"
        ) from error
    return [line.strip() for line in lines if line.strip()]


def choose_white(white: int | None, samples: Sequence[Sample], *, max_pixels: int) -> int:
    """Choose the stored value of 16-bit images that becomes 255.

    Args:
        white: requested value; None derives it from the largest stored value.
        samples: good images.
        max_pixels: largest width × height that is decoded.
    """
    if white is not None:
        return white
    maxima = [
        stored_maximum(s.path, max_pixels=max_pixels)
        for s in samples
        if image_header(read_file(s.path, max_pixels=max_pixels), name=str(s.path)).bits > 8
    ]
    return white_level(max(maxima)) if maxima else 255


def read_roi(roi: str | Path, *, height: int, width: int, max_pixels: int) -> NDArray[np.bool_]:
    """Read a region of interest as a mask (height, width).

    Args:
        roi: `x,y,w,h` in pixels from the top left, or the path of a mask image.
        height: height of the images in pixels.
        width: width of the images in pixels.
        max_pixels: largest width × height that is decoded.

    Raises:
        UsageError: the region does not lie within the images, or the mask has another size.
        DataError: the mask cannot be read.
    """
    numbers = str(roi).split(",")
    if len(numbers) == 4 and all(number.strip().isdigit() for number in numbers):
        x, y, w, h = (int(number) for number in numbers)
        if not w or not h or x + w > width or y + h > height:
            raise UsageError(f"region {roi!r} (x,y,w,h from the top left) does not lie within {width}×{height} pixels")
        mask: NDArray[np.bool_] = np.zeros((height, width), dtype=bool)
        mask[y : y + h, x : x + w] = True
        return mask
    mask = read_mask(Path(roi), max_pixels=max_pixels)
    if mask.shape != (height, width):
        raise UsageError(
            f"region {roi} is {mask.shape[1]}×{mask.shape[0]} pixels, the images are {width}×{height}:"
            " draw the mask at the images' size"
        )
    return mask
