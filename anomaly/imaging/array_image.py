"""Images in memory as (H, W, 3) uint8 RGB: NumPy arrays and Pillow images, by the same rules as image files."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly.errors import ImageError, UsageError

WAY_OUT = "give (H, W) or (H, W, 3) RGB, uint8 or uint16"


def array_image(array: NDArray[Any], *, white: int, name: str = "image") -> NDArray[np.uint8]:
    """Convert an array to (H, W, 3) uint8 RGB. The result is a read-only copy: later changes of `array` do not show.

    Args:
        array: (H, W) grey or (H, W, 3) RGB, uint8 or uint16, both sides at least 1.
        white: stored value of a 16-bit image that becomes 255, 1 to 65535.
        name: name of the argument, for messages.

    Raises:
        UsageError: another shape or dtype, an empty array, or 16-bit values for a model of 8-bit images.
    """
    array = np.asarray(array)
    shape = "×".join(map(str, array.shape)) or "no dimension"
    if array.dtype.kind == "f":
        raise UsageError(f"{name}: a {array.dtype} array; scale it to 0…255, round it, and convert it to uint8")
    if array.dtype not in (np.uint8, np.uint16):
        raise UsageError(f"{name}: a {array.dtype} array; {WAY_OUT}")
    if array.ndim == 3 and array.shape[2] == 4:
        raise UsageError(f"{name}: an array of {shape} with four channels; drop the alpha channel: image[..., :3]")
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3):
        raise UsageError(f"{name}: an array of {shape}; {WAY_OUT}")
    if 0 in array.shape:
        raise UsageError(f"{name}: an empty array of {shape}; {WAY_OUT}, both sides at least 1 pixel")
    stored = array if array.ndim == 3 else np.repeat(array[..., None], 3, axis=2)
    if stored.dtype == np.uint16 and white == 255 and stored.max() > 255:
        raise UsageError(
            f"{name}: 16-bit values up to {stored.max()}, and the model was fitted on 8-bit images;"
            " scale the image to uint8, or fit the model on 16-bit images"
        )
    pixels = np.array(eight_bits(stored, white=white), order="C")
    pixels.flags.writeable = False
    return pixels


def eight_bits(stored: NDArray[Any], *, white: int) -> NDArray[np.uint8]:
    """Scale 16-bit values so that `white` becomes 255, rounded to nearest, halves up, clipped; 8-bit values stay."""
    if stored.dtype == np.uint8:
        return stored.astype(np.uint8, copy=False)
    values = np.arange(65536)
    table: NDArray[np.uint8] = np.minimum((2 * 255 * values + white) // (2 * white), 255).astype(np.uint8)
    return np.take(table, stored)


def is_pillow(image: object) -> bool:
    """Whether an object is a Pillow image; Pillow itself is never imported."""
    pillow = sys.modules.get("PIL.Image")
    return pillow is not None and isinstance(image, pillow.Image)


def pillow_image(image: Any, *, white: int, name: str = "image") -> NDArray[np.uint8]:
    """Convert a Pillow image to (H, W, 3) uint8 RGB: EXIF orientation applied, alpha dropped, palette looked up.

    Raises:
        ImageError: `unreadable`, a closed, damaged or cut image.
        UsageError: several frames, a mode without a fixed meaning, such as CMYK or F, or 32-bit values above 65535.
    """
    from PIL import ImageOps

    num_frames = getattr(image, "n_frames", 1)
    if num_frames > 1:
        raise UsageError(f"{name}: a Pillow image of {num_frames} frames; give one frame, image.copy()")
    try:
        upright = ImageOps.exif_transpose(image)
    except (OSError, ValueError, SyntaxError, AssertionError) as error:  # Pillow reads the file here
        raise ImageError("unreadable", f"{name}: the Pillow image cannot be read ({error}); open it again") from error
    mode = str(upright.mode)
    if mode in ("1", "P", "PA"):
        upright = upright.convert("RGBA" if mode == "PA" or "transparency" in upright.info else "RGB")
    array = np.asarray(upright)
    if upright.mode == "LA":
        array = array[..., 0]
    elif upright.mode in ("RGBA", "RGBX"):
        array = array[..., :3]
    elif upright.mode == "I" and array.size and array.min() >= 0 and array.max() <= 65535:
        array = array.astype(np.uint16)
    elif upright.mode not in ("L", "RGB") and not upright.mode.startswith("I;16"):
        raise UsageError(f"{name}: a Pillow image of mode {mode}; convert it with image.convert('RGB')")
    return array_image(array.astype(array.dtype.newbyteorder("="), copy=False), white=white, name=name)
