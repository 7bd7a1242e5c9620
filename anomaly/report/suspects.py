"""The suspicious training images of a fitted model, for the report."""

from __future__ import annotations

from pathlib import Path

from anomaly.imaging.image_file import read_image
from anomaly.report.pictures import reduce_picture
from anomaly.report.values import SuspectPicture
from anomaly.training.suspects_files import PICTURE_SIDE, read_suspects

MAX_SHOWN = 24
"""Largest number of shown images"""


def suspect_pictures(folder: str | Path) -> tuple[SuspectPicture, ...]:
    """Read the pictures of the suspicious images from the folder of a fitted model, the most suspicious first.

    Raises:
        DataError: a damaged ranking.
        ImageError: a missing or damaged picture.
    """
    return tuple(
        SuspectPicture(
            image=reduce_picture(read_image(suspect.picture, white=255, max_pixels=PICTURE_SIDE**2)),
            name=suspect.name,
            score=suspect.score,
            p_value=suspect.p_value,
        )
        for suspect in read_suspects(folder)[:MAX_SHOWN]
    )
