"""The verb `inspect`: look at a folder of images before anything is trained."""

from __future__ import annotations

from pathlib import Path

from anomaly.data.inspection import Inspection, format_inspection
from anomaly.data.inspection import inspect as inspect_folder
from anomaly.system.progress import progress_bar
from anomaly.system.run_card import RunCard


def inspect(data: Path, *, part_group: str | None = None, seed: int = 0, max_pixels: int = 100_000_000, out: str = "") -> Inspection:
    """Count and check the images of a category, and show the groups and the split that would be used.

    Args:
        data: a category in MVTec layout, or a plain folder of good images.
        part_group: regular expression on the paths, or CSV of path and group, that joins the images of one part.
        seed: of the split.
        max_pixels: largest width × height that is decoded.
        out: JSON file to write the findings to; none by default.

    Raises:
        DataError: a folder that is missing, empty, or no single category.
    """
    card = RunCard("inspect", config=dict(locals()))
    with progress_bar("look at the files") as report:
        found = inspect_folder(data, part_group=part_group, seed=seed, max_pixels=max_pixels, progress=report)
    print(format_inspection(found))
    if out:
        card.facts["result"] = found.to_dict()
        card.write(Path(out))
    return found
