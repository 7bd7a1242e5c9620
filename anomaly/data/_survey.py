"""One pass over the files of a category for its inspection: headers, hashes, fingerprints, masks."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly.data.duplicates import Fingerprint, fingerprint
from anomaly.imaging.header import Header, check_header, image_header
from anomaly.imaging.image_file import decode_stored, read_file, read_mask


class Survey:
    """Facts of the files read so far.

    Args:
        max_pixels: largest width × height that is decoded.
    """

    def __init__(self, max_pixels: int) -> None:
        self.headers: dict[Path, Header] = {}
        self.digests: dict[Path, str] = {}
        self.fingerprints: dict[Path, Fingerprint] = {}
        self.maximum = 0
        """largest stored value of the 16-bit training images"""
        self.masks_of_other_size: list[Path] = []
        self.empty_masks: list[Path] = []
        self._max_pixels = max_pixels

    def read_test(self, path: Path) -> bytes:
        """Record the hash and the header of an image."""
        data = read_file(path, max_pixels=self._max_pixels)
        self.digests[path] = hashlib.sha256(data).hexdigest()
        header = image_header(data, name=str(path))
        check_header(header, name=str(path), max_pixels=self._max_pixels, frame="only")
        self.headers[path] = header
        return data

    def read_calibration(self, path: Path) -> NDArray[Any]:
        """Record the hash and the header of an image with readable pixels."""
        return decode_stored(self.read_test(path), name=str(path), max_pixels=self._max_pixels)

    def read_train(self, path: Path) -> None:
        """Record the hash, the header and the fingerprint of an image."""
        stored = self.read_calibration(path)
        self.fingerprints[path] = fingerprint(stored)
        if stored.dtype == np.uint16:
            self.maximum = max(self.maximum, int(stored.max()))

    def read_mask(self, path: Path, image: Path) -> None:
        """Record an empty mask, or one of another size than its image."""
        mask = read_mask(path, max_pixels=self._max_pixels)
        header = self.headers.get(image)
        if header is not None and mask.shape != (header.height, header.width):
            self.masks_of_other_size.append(path)
        if not mask.any():
            self.empty_masks.append(path)
