"""Pictures of a run's images for a person: reduced, and never those of a file that is not the one that was scored."""

from __future__ import annotations

import base64
import hashlib
import threading
from collections import OrderedDict
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from anomaly.errors import DataError, ImageError, RequestError
from anomaly.imaging.image_file import decode_image
from anomaly.imaging.map_png import MAP_STEP, MAP_ZERO
from anomaly.inference.artifact import GOLDEN_TOLERANCE
from anomaly.inference.scorer import relative_difference
from anomaly.inference.session import SESSION_ERRORS
from anomaly.runs.models import RunModels
from anomaly.runs.relocated import Moved
from anomaly.runs.sinks import Values
from anomaly.scoring.archive_members import located
from anomaly.scoring.sources import read_item
from anomaly.service.score_endpoint import map_values

THUMBNAIL_SIDE, PICTURE_SIDE = 256, 1600
KEPT_THUMBNAILS = 2048
GONE, CHANGED = 404, 409
"""Status of an answer where the image is gone, or its bytes are others"""
WHITE_OF_16_BITS = 65535
"""Where the model, which says what is white, is not there"""


class Picture(NamedTuple):
    """An encoded picture."""

    data: bytes
    media_type: str


class RunPictures:
    """Reads the images of a run from where they lie; used from several threads.

    Args:
        models: of the run.
        images: where images that were moved are found again, by their SHA-256: a folder, glob or list; empty for nowhere.
    """

    def __init__(self, models: RunModels, *, images: str) -> None:
        self._models = models
        self._moved = Moved(images)
        self._has_images = bool(images)
        self._finding = threading.Lock()
        self._scoring = threading.Lock()
        self._thumbnails: OrderedDict[str, Picture] = OrderedDict()
        self._keeping = threading.Lock()

    def thumbnail(self, row: Values) -> Picture:
        """Give a JPEG of at most 256 pixels a side.

        Raises:
            RequestError: 404 the image is gone, 409 its bytes are not those that were scored, 415 it cannot be shown.
        """
        sha256 = row["sha256"]
        with self._keeping:
            kept = self._thumbnails.pop(sha256, None)
            if kept is not None:
                self._thumbnails[sha256] = kept
                return kept
        made = Picture(_encoded(_reduced(self.image(row), THUMBNAIL_SIDE), ".jpg"), "image/jpeg")
        with self._keeping:
            self._thumbnails[sha256] = made
            if len(self._thumbnails) > KEPT_THUMBNAILS:
                self._thumbnails.popitem(last=False)
        return made

    def picture(self, row: Values) -> Picture:
        """Give a PNG of at most 1600 pixels a side; a smaller image is given as it was scored.

        Raises:
            RequestError: as `thumbnail`.
        """
        return Picture(_encoded(_reduced(self.image(row), PICTURE_SIDE), ".png"), "image/png")

    def anomaly_map(self, number: int, row: Values) -> dict[str, Any]:
        """Give the map of an image: that which the run kept, else the image is scored again by the run's own model.

        Args:
            number: of the row.
            row: whose status is `ok`.

        Returns:
            What `map=true` gives beside a score, with `note`: what a person has to know of it, else empty.

        Raises:
            RequestError: as `thumbnail`.
            DataError: the run's copy of the model is not there or was changed.
        """
        model = self._models.of(row["model"])
        kept = self._models.kept_map(number)
        if kept is not None:
            png = base64.b64encode(kept.read_bytes()).decode()
            return {"png": png, "step": MAP_STEP, "zero": MAP_ZERO, "resize": model.metadata.resize, "note": ""}
        image = self.image(row)
        scorer = self._models.scorer(model)
        try:
            with self._scoring:  # a session takes all processors it may
                scores = scorer.score(image[None])
        except SESSION_ERRORS as error:
            raise RequestError(500, f"the model cannot be run on this image here: {error}") from error
        score = float(scores.score[0])
        tolerance = scorer.metadata.golden.tolerance.get(scorer.provider, GOLDEN_TOLERANCE)
        difference = float(relative_difference(np.array(row["score"]), np.array(score)))
        note = ""
        if not difference <= tolerance:
            note = (
                f"Scored again here ({scorer.device}), this image gets {score:.4g}; the run says {row['score']:.4g}. The map"
                " is that of the new score: another device or runtime computed the run."
            )
        return map_values(scores.anomaly_map[0], resize=model.metadata.resize) | {"note": note}

    def image(self, row: Values) -> NDArray[np.uint8]:
        """Read the image of a row as (H, W, 3) uint8 RGB, as it was scored.

        Raises:
            RequestError: as `thumbnail`.
        """
        asked = self._models.asked
        hint = "" if self._has_images else " If it was moved, start the review with --images FOLDER."
        try:
            with self._finding:  # the first that is gone hashes the whole folder of --images
                item = self._moved.of(located(row["path"]), row["sha256"])
            data = read_item(item, max_pixels=asked["max_pixels"])
        except ImageError as error:
            raise RequestError(GONE, f"The image cannot be read: {error}.{hint}") from error
        except DataError as error:
            raise RequestError(GONE, f"The image is not where it was scored, {row['path']}.{hint}") from error
        if hashlib.sha256(data).hexdigest() != row["sha256"]:
            raise RequestError(
                CHANGED,
                f"The file {row['path']} was changed since it was scored: its SHA-256 is another. It is not shown, for the"
                " verdict is not about it.",
            )
        try:
            white = self._models.of(row["model"]).metadata.white
        except DataError:
            white = WHITE_OF_16_BITS
        try:
            return decode_image(
                data, name=row["path"], white=white, max_pixels=asked["max_pixels"], frame=asked["frame"]
            )
        except ImageError as error:
            raise RequestError(415, str(error)) from error


def _reduced(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Reduce an image to at most so many pixels a side; a smaller one stays."""
    height, width = image.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return image
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)


def _encoded(image: NDArray[np.uint8], ending: str) -> bytes:
    return cv2.imencode(ending, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()
