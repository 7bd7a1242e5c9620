"""The files of a ranking in the folder of a fitted model.

The files are:

    suspects.json     every ranked image with score and p-value, and the change of the threshold
    suspects.csv      the same images as a table
    suspects.txt      names of the suspicious images, one per line: edit it, and give it to `fit --exclude`
    suspects.html     page with the pictures of the suspicious images
    suspects/         pictures; rows and maps of all ranked images in the format of a run, for `anomaly review`
"""

from __future__ import annotations

import html
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from anomaly.data.folders import Sample
from anomaly.errors import DataError
from anomaly.imaging.image_file import write_png
from anomaly.imaging.map_png import MAP_STEP, MAP_ZERO, map_levels
from anomaly.imaging.overlay import enlarge_map, overlay
from anomaly.runs.run_files import MAPS
from anomaly.runs.training_review import EXCLUDE_FILE, FOLDER, LABELS_FILE, RANKING, THRESHOLD
from anomaly.scoring.rows import Row, csv_line, json_row, row_values
from anomaly.system.files import atomic_write, sha256_of, write_json
from anomaly.training.fitted_model import Description
from anomaly.training.suspects import RankedImage, Suspects

TABLE_FILE, LIST_FILE, PAGE_FILE, ROWS = "suspects.csv", "suspects.txt", "suspects.html", "rows.jsonl"
FILES = (RANKING, TABLE_FILE, LIST_FILE, PAGE_FILE, LABELS_FILE, EXCLUDE_FILE)
PICTURE_SIDE = 480
"""Longest side of a picture in pixels"""


@dataclass(frozen=True)
class Suspect:
    """A suspicious training image of a fitted model."""

    name: str
    """name in the list for --exclude"""
    path: Path
    score: float
    """distance to the other images; images above 1 are suspicious"""
    p_value: float
    """chance that a good image of this folder has such a distance"""
    picture: Path
    """image with its map drawn over it"""


def write_suspects(
    suspects: Suspects | None,
    folder: Path,
    *,
    description: Description,
    data: Path,
    excluded: Sequence[str],
    read: Callable[[Sample], NDArray[np.uint8]],
) -> None:
    """Write the files of a ranking; those of an earlier fit are removed.

    Args:
        suspects: ranking; None only removes.
        folder: folder of the fitted model.
        description: description of the fitted model.
        data: folder of the training images.
        excluded: names that this fit excluded; the lists begin with them.
        read: function that reads an image.

    Raises:
        OutputError: a file cannot be written.
    """
    for name in FILES:
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / FOLDER, ignore_errors=True)
    if suspects is None:
        return
    place = folder / FOLDER
    place.mkdir()
    rows: list[dict[str, Any]] = []
    for number, ranked in enumerate(suspects.ranked):
        image = read(Sample(ranked.path, "good", False, None))
        rows.append(_row(ranked, image))
        if ranked.anomaly_map is not None:
            text = {"anomaly": f"calibrated map: value = level * {MAP_STEP} - {MAP_ZERO}"}
            write_png(place / MAPS / f"{number:08d}.png", map_levels(ranked.anomaly_map), text=text)
        if ranked.suspicious:
            write_png(place / _picture_name(number), _picture(image, ranked.anomaly_map))
    values = [_values(number, ranked) for number, ranked in enumerate(suspects.ranked)]
    write_json(
        folder / RANKING,
        {
            "data": str(data),
            "detector": description.detector,
            "excluded": list(excluded),
            "white": description.white,
            "max_pixels": description.max_pixels,
            "reason": suspects.reason,
            "threshold_without": suspects.threshold_without,
            "images": values,
        },
    )
    _write_text(place / ROWS, "".join(json_row(row) for row in rows))
    columns = ("name", "path", "score", "p_value", "suspicious")
    lines = [csv_line(columns), *(csv_line(value[name] for name in columns) for value in values)]
    _write_text(folder / TABLE_FILE, "".join(lines))
    named = [*excluded, *(ranked.name for ranked in suspects.named)]
    _write_text(folder / LIST_FILE, "".join(f"{name}\n" for name in named if name == name.strip() and "\n" not in name))
    _write_text(folder / PAGE_FILE, _page(suspects, values, data=data))


def read_suspects(folder: str | Path) -> list[Suspect]:
    """Read the suspicious images of a fitted model, the most suspicious first; empty without a ranking.

    Raises:
        DataError: the file is damaged.
    """
    folder = Path(folder)
    try:
        values = json.loads((folder / RANKING).read_text(encoding="utf-8"))
        return [
            Suspect(one["name"], Path(one["path"]), one["score"], one["p_value"], folder / FOLDER / one["picture"])
            for one in values["images"]
            if one["suspicious"]
        ]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder / RANKING} is damaged ({error}): fit again") from error


def _write_text(path: Path, text: str) -> None:
    # file names that are not UTF-8 hold lone surrogates
    with atomic_write(path) as partial:
        partial.write_bytes(text.encode("utf-8", errors="surrogateescape"))


def _picture_name(number: int) -> str:
    return f"{number:05d}.png"


def _values(number: int, ranked: RankedImage) -> dict[str, Any]:
    return {
        "name": ranked.name,
        "path": str(ranked.path),
        "score": ranked.score,
        "p_value": ranked.p_value,
        "suspicious": ranked.suspicious,
        "picture": _picture_name(number) if ranked.suspicious else None,
    }


def _row(ranked: RankedImage, image: NDArray[np.uint8]) -> dict[str, Any]:
    return row_values(
        Row(
            path=str(ranked.path),
            sha256=sha256_of(ranked.path),
            status="ok",
            verdict="defect" if ranked.suspicious else "good",
            score=ranked.score,
            threshold=THRESHOLD,
            p_value=ranked.p_value,
            width=image.shape[1],
            height=image.shape[0],
            regions=[],
            model="",
            message="",
        )
    )


def _picture(image: NDArray[np.uint8], anomaly_map: NDArray[np.float32] | None) -> NDArray[np.uint8]:
    """Reduced image (h, w, 3) with the map drawn over it."""
    height, width = image.shape[:2]
    scale = min(1.0, PICTURE_SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    reduced = cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
    if anomaly_map is None:
        return reduced
    enlarged = enlarge_map(anomaly_map, height=size[1], width=size[0], resize="stretch")
    return overlay(reduced, enlarged, threshold=THRESHOLD)


def _page(suspects: Suspects, values: Sequence[dict[str, Any]], *, data: Path) -> str:
    """Page with the pictures; it loads them from the folder beside it."""
    cards = "".join(
        f'<figure><img src="{FOLDER}/{one["picture"]}" alt="">'
        f"<figcaption>{html.escape(one['name'])}<br>score {one['score']:.2f}, p {one['p_value']:.2g}</figcaption></figure>"
        for one in values
        if one["suspicious"]
    )
    lines = "".join(f"<p>{html.escape(line)}</p>" for line in describe_suspects(suspects))
    page = (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Suspicious training images</title><style>'
        "body{font:16px system-ui;margin:2rem;max-width:80rem}main{display:flex;flex-wrap:wrap;gap:1rem}"
        "figure{margin:0;width:15rem}img{width:100%}figcaption{overflow-wrap:anywhere}</style>"
        f"<h1>Suspicious training images</h1><p>Folder: {html.escape(str(data))}</p>{lines}"
        f"<p>No image was excluded. Delete the good images from {LIST_FILE}, then give it to"
        f" <code>anomaly fit --exclude</code>.</p><main>{cards}</main></html>"
    )
    return page.encode("utf-8", errors="backslashreplace").decode()


def describe_suspects(suspects: Suspects) -> list[str]:
    """Say in sentences how many images are suspicious, and how the threshold would move without them."""
    if suspects.reason is not None:
        return [f"suspicious images: not named; {suspects.reason}. Look at the images with the highest scores."]
    num = len(suspects.named)
    if not num:
        return [
            f"suspicious images: none of {len(suspects.ranked)}; faint defects may stand among the first images of"
            " `anomaly review` on this folder"
        ]
    lines = [f"suspicious images: {num} of {len(suspects.ranked)} look unlike the others"]
    if suspects.threshold_without is not None:
        lines.append(
            f"without them, the threshold would be about {suspects.threshold_without:.2f} times the present one"
        )
    return lines
