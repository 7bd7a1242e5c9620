"""Overlays of scored images: their choice, file names and files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from anomaly.imaging.image_file import write_png
from anomaly.imaging.overlay import Resize, enlarge_map, overlay
from anomaly.scoring.sources import Item
from anomaly.scoring.windows import ScoredImage

OverlaysOf = Literal["defect", "all", "none"]


def has_overlay(scored: ScoredImage, overlays_of: OverlaysOf) -> bool:
    """Whether an overlay of the image is drawn."""
    return scored.row.status == "ok" and overlays_of in ("all", scored.row.verdict)


def overlay_name(number: int, item: Item) -> str:
    """File name of an overlay that is valid on every system.

    Args:
        number: position of the image in the input.
        item: image of the overlay.
    """
    stem = re.sub(r'[\x00-\x1f"*:<>?|\\]', "_", Path(item.path).stem[:60])
    return f"{number:06d}_{stem}.png"


def write_overlay(scored: ScoredImage, path: Path, *, resize: Resize) -> None:
    """Write an image with its map laid over, on a colour scale fixed by the threshold.

    Args:
        scored: image with a score.
        path: PNG file to write.
        resize: resizing of the model that scored the image.
    """
    height, width = scored.image.shape[:2]
    enlarged = enlarge_map(scored.anomaly_map, height=height, width=width, resize=resize)
    write_png(path, overlay(scored.image, enlarged, threshold=scored.row.threshold))
