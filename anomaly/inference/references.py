"""Reduced training images beside a model file: a plain zip archive of JPEG files, one for each image of the bank.

The comment of the archive is a digest of the training images. It reveals the archive of another model.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from anomaly.inference.artifact import Metadata
from anomaly.system.files import atomic_write

SIDE = 384
"""Longest side of a stored image in pixels"""
_QUALITY = (cv2.IMWRITE_JPEG_QUALITY, 80)


def references_path(model: str | Path) -> Path:
    """Path of the archive beside a model file: `model.references.zip` for `model.onnx`."""
    return Path(model).with_suffix(".references.zip")


def encode_reference(image: NDArray[np.uint8]) -> bytes:
    """Reduce an image (H, W, 3) uint8 RGB to a longest side of `SIDE`, as JPEG."""
    height, width = image.shape[:2]
    scale = min(1.0, SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    reduced = cv2.resize(image, size, interpolation=cv2.INTER_AREA) if scale < 1 else image
    return bytes(cv2.imencode(".jpg", cv2.cvtColor(reduced, cv2.COLOR_RGB2BGR), _QUALITY)[1].tobytes())


def write_references(model: str | Path, metadata: Metadata, pictures: Iterable[tuple[int, bytes]]) -> Path:
    """Write the archive beside a model file.

    Args:
        model: model file.
        metadata: its metadata.
        pictures: number and JPEG of training images.

    Raises:
        OutputError: the archive cannot be written.
    """
    path = references_path(model)
    with atomic_write(path) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
        archive.comment = _digest(metadata)
        for number, data in pictures:
            archive.writestr(zipfile.ZipInfo(_name(number)), data)
    return path


class References:
    """The archive beside a model file.

    Args:
        model: model file.
        metadata: its metadata.
    """

    def __init__(self, model: str | Path, metadata: Metadata) -> None:
        self.path = references_path(model)
        self.missing: str | None = self._reason(metadata)
        """reason why no picture can be shown; None if the archive is there"""

    def data(self, number: int) -> bytes | None:
        """Read the JPEG of a training image; None where the archive does not hold it."""
        if self.missing is not None:
            return None
        try:
            with zipfile.ZipFile(self.path) as archive:
                return archive.read(_name(number))
        except (OSError, KeyError, zipfile.BadZipFile):
            return None

    def picture(self, number: int) -> NDArray[np.uint8] | None:
        """Read a training image, (h, w, 3) uint8 RGB; None where the archive does not hold it."""
        data = self.data(number)
        decoded = None if data is None else cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        return None if decoded is None else np.asarray(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB), dtype=np.uint8)

    def _reason(self, metadata: Metadata) -> str | None:
        again = "export the model again, without --no-references"
        if not self.path.is_file():
            return f"{self.path} is missing: copy it beside the model, or {again}"
        try:
            with zipfile.ZipFile(self.path) as archive:
                comment = archive.comment
        except (OSError, zipfile.BadZipFile) as error:
            return f"{self.path} is damaged ({error}): copy it again, or {again}"
        return None if comment == _digest(metadata) else f"{self.path} belongs to another model: {again}"


def _digest(metadata: Metadata) -> bytes:
    return hashlib.sha256("".join(metadata.training_hashes).encode()).hexdigest()[:16].encode()


def _name(number: int) -> str:
    return f"{number:06d}.jpg"
