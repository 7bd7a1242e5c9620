"""Read, hash and decode one image; a failure becomes a value for the result row."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anomaly.errors import ImageError
from anomaly.imaging.image_file import decode_image
from anomaly.imaging.statistics import image_statistics
from anomaly.inference.artifact import Metadata
from anomaly.scoring.settings import Settings
from anomaly.scoring.sources import Item, read_item

NO_IMAGE: NDArray[np.uint8] = np.zeros((0, 0, 3), dtype=np.uint8)


@dataclass(frozen=True)
class LoadedImage:
    """A decoded image, or the error of a failed one."""

    item: Item
    sha256: str
    """SHA-256 of the file's bytes; empty for a file that cannot be read"""
    image: NDArray[np.uint8]
    """(H, W, 3) RGB; `NO_IMAGE` for a failed one"""
    statistics: dict[str, float] | None
    error: ImageError | None


def load_item(item: Item, *, models: Mapping[str, Metadata], settings: Settings) -> LoadedImage:
    """Read, hash and decode one image.

    Args:
        item: image to load.
        models: product -> metadata of its model.
        settings: settings of the run.
    """
    sha256, path = "", item.path
    try:
        data = read_item(item, max_pixels=settings.max_pixels)
        sha256 = hashlib.sha256(data).hexdigest()
        if item.product not in models:
            known = ", ".join(sorted(models)) or "none"
            raise ImageError(
                "no_model", f"{path}: no model for the product {item.product!r}: add it to --models, which has {known}"
            )
        model = models[item.product]
        image = decode_image(data, name=path, white=model.white, max_pixels=settings.max_pixels, frame=settings.frame)
        model.check_size(image, name=path)
        return LoadedImage(item, sha256, image, image_statistics(image) if settings.measure else None, None)
    except ImageError as error:
        return LoadedImage(item, sha256, NO_IMAGE, None, error)
    except Exception as error:  # any failure stays with its image, and the run continues
        internal = ImageError("internal", f"{path}: {type(error).__name__}: {error}")
        return LoadedImage(item, sha256, NO_IMAGE, None, internal)
