"""Pictures of a run's images for its reviewer: reduced in size, and only of files that are unchanged since scoring."""

from __future__ import annotations

import base64
import hashlib
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from anomaly.errors import DataError, ImageError, RequestError
from anomaly.imaging.image_file import decode_image
from anomaly.imaging.map_png import MAP_STEP, MAP_ZERO
from anomaly.inference.difference import relative_difference
from anomaly.inference.golden import GOLDEN_TOLERANCE
from anomaly.inference.session import SESSION_ERRORS
from anomaly.runs.models import RunModels
from anomaly.runs.relocated import ImageFinder
from anomaly.runs.sinks import Values
from anomaly.scoring.archive_members import item_of
from anomaly.scoring.sources import read_item
from anomaly.service.score_endpoint import map_json

THUMBNAIL_SIDE, PICTURE_SIDE = 256, 1600
MAX_CACHED_THUMBNAILS = 2048
GONE, CHANGED = 404, 409
"""HTTP status if the image file is missing, or changed since scoring"""
WHITE_OF_16_BITS = 65535
"""White level of 16-bit images if the model is missing"""


class Picture(NamedTuple):
    """An encoded picture."""

    data: bytes
    media_type: str


class RunPictures:
    """Reads the images of a run at their recorded paths; thread-safe.

    Args:
        models: models of the run.
        images: folder, glob or list to search for moved images, by their SHA-256; None for no search.
    """

    def __init__(self, models: RunModels, *, images: str | Path | None) -> None:
        self._models = models
        self._finder = ImageFinder(images)
        self._has_search = images is not None
        self._search_lock = threading.Lock()
        self._scoring_lock = threading.Lock()
        self._thumbnails: OrderedDict[str, Picture] = OrderedDict()
        self._cache_lock = threading.Lock()

    def thumbnail(self, row: Values) -> Picture:
        """Encode a thumbnail as JPEG, at most 256 pixels per side.

        Args:
            row: row of the image.

        Raises:
            RequestError: 404 missing image, 409 changed image, 415 unreadable image.
        """
        sha256 = row["sha256"]
        with self._cache_lock:
            cached = self._thumbnails.pop(sha256, None)
            if cached is not None:
                self._thumbnails[sha256] = cached  # now the most recent
                return cached
        thumbnail = Picture(_encode(_reduce(self.image(row), THUMBNAIL_SIDE), ".jpg"), "image/jpeg")
        with self._cache_lock:
            self._thumbnails[sha256] = thumbnail
            if len(self._thumbnails) > MAX_CACHED_THUMBNAILS:
                self._thumbnails.popitem(last=False)
        return thumbnail

    def picture(self, row: Values) -> Picture:
        """Encode an image as PNG, at most 1600 pixels per side; smaller images keep their size.

        Args:
            row: row of the image.

        Raises:
            RequestError: same errors as `thumbnail`.
        """
        return Picture(_encode(_reduce(self.image(row), PICTURE_SIDE), ".png"), "image/png")

    def anomaly_map(self, number: int, row: Values) -> dict[str, Any]:
        """Return the stored anomaly map of an image, or score the image again with the model of the run.

        Args:
            number: number of the row.
            row: row with status `ok`.

        Returns:
            The values of `map_json`, and `note`: a remark for the reviewer, or "".

        Raises:
            RequestError: same errors as `thumbnail`.
            DataError: the run's copy of the model is missing or changed.
        """
        reading = self._models.reading(row["model"])
        kept = self._models.kept_map(number)
        if kept is not None:
            png = base64.b64encode(kept.read_bytes()).decode()
            return {"png": png, "step": MAP_STEP, "zero": MAP_ZERO, "resize": reading.resize, "note": ""}
        model = self._models.find(row["model"])
        image = self.image(row)
        scorer = self._models.scorer(model)
        try:
            with self._scoring_lock:  # one inference uses all processors
                scores = scorer.score(image[None])
        except SESSION_ERRORS as error:
            raise RequestError(500, f"the model failed on this image ({error}): try another --device") from error
        score = float(scores.score[0])
        tolerance = scorer.metadata.golden.tolerance.get(scorer.provider, GOLDEN_TOLERANCE)
        difference = float(relative_difference(np.array(row["score"]), np.array(score)))
        note = ""
        if not difference <= tolerance:
            note = (
                f"The new score of this image ({scorer.device}) is {score:.4g}; the run's score is {row['score']:.4g}."
                " The run used another device or runtime. The map belongs to the new score."
            )
        return map_json(scores.anomaly_map[0], resize=model.metadata.resize) | {"note": note}

    def image(self, row: Values) -> NDArray[np.uint8]:
        """Read the image of a row as (H, W, 3) uint8 RGB, decoded as in the run.

        Args:
            row: row of the image.

        Raises:
            RequestError: same errors as `thumbnail`.
        """
        settings = self._models.options
        hint = "" if self._has_search else " If it was moved, start the review with --images FOLDER."
        try:
            with self._search_lock:  # the first missing image hashes all of --images
                item = self._finder.find(item_of(row["path"]), row["sha256"])
            data = read_item(item, max_pixels=settings["max_pixels"])
        except ImageError as error:
            raise RequestError(GONE, f"The image cannot be read: {error}.{hint}") from error
        except DataError as error:
            raise RequestError(GONE, f"The image is missing at {row['path']}, its path at scoring.{hint}") from error
        if hashlib.sha256(data).hexdigest() != row["sha256"]:
            raise RequestError(
                CHANGED,
                f"The file {row['path']} changed since it was scored: its SHA-256 differs. It is not shown because the verdict"
                " belongs to the previous file. Restore that file to see it.",
            )
        try:
            white = self._models.reading(row["model"]).white
        except DataError:
            white = WHITE_OF_16_BITS
        try:
            return decode_image(
                data, name=row["path"], white=white, max_pixels=settings["max_pixels"], frame=settings["frame"]
            )
        except ImageError as error:
            raise RequestError(415, str(error)) from error


def _reduce(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Reduce an image (H, W, 3) to at most `side` pixels per side; smaller images keep their size."""
    height, width = image.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return image
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)


def _encode(image: NDArray[np.uint8], extension: str) -> bytes:
    return cv2.imencode(extension, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()
