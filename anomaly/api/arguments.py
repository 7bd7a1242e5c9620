"""Arguments of the public face, checked where they enter."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from anomaly.data.folders import folder_images
from anomaly.errors import ImageError, UsageError
from anomaly.imaging.array_image import is_pillow
from anomaly.system.files import usable_path

Image = str | Path | bytes | IO[bytes] | NDArray[Any] | Any
"""Path, bytes of an image file, open binary file, array (H, W) or (H, W, 3) RGB of uint8 or uint16, or Pillow image"""


def image_bytes(image: object, *, name: str) -> bytes:
    """Give the bytes of an image file in memory or behind an open binary file.

    Raises:
        ImageError: `unreadable`, a closed or broken stream.
        UsageError: an object of another type, or a stream of text.
    """
    if isinstance(image, (bytes, bytearray, memoryview)):
        return bytes(image)
    read = getattr(image, "read", None)
    if not callable(read):
        raise UsageError(
            f"{name}: an object of type {type(image).__name__};"
            " give a path, bytes, an open binary file, an array or a Pillow image"
        )
    try:
        data = read()
    except (OSError, ValueError, RuntimeError) as error:  # ValueError: a closed file; RuntimeError: a camera
        raise ImageError("unreadable", f"{name}: the stream cannot be read ({error}); open it again") from error
    if isinstance(data, str):
        raise UsageError(f"{name}: a stream of text; open the file in binary mode, open(path, 'rb')")
    if not isinstance(data, (bytes, bytearray)):
        raise UsageError(f"{name}: a stream that reads {type(data).__name__}; give a stream that reads bytes")
    return bytes(data)


def image_stream(images: object) -> Iterable[Image]:
    """Check a stream of images; a folder gives its image files.

    Raises:
        UsageError: a single image, or an object that is not iterable.
    """
    if isinstance(images, (str, os.PathLike)):
        place = usable_path(images, name="images")
        if place.is_dir():
            return folder_images(place)
        if not place.exists():
            raise UsageError(
                f"images: {place} does not exist; give a folder, or Path(folder).glob(pattern) for a pattern"
            )
    single = (str, os.PathLike, bytes, bytearray, memoryview, np.ndarray, Mapping)
    if isinstance(images, single) or is_pillow(images) or hasattr(images, "read"):
        raise UsageError(
            f"images: a single {type(images).__name__}; call model(image), or give a list, a generator or a folder"
        )
    if not isinstance(images, Iterable):
        raise UsageError(f"images: an object of type {type(images).__name__}; give a list, a generator or a folder")
    return images
