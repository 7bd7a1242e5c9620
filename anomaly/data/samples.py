"""What is known of photographs before they are opened: samples, categories, and the image files of a folder."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from anomaly.errors import DataError

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class Sample:
    """One photograph: where it lies, its kind ("good" or the name of a defect), and whether it shows a defect."""

    path: Path
    kind: str
    label: bool
    mask_path: Path | None
    """None for a good photograph, and for a defect whose mask is not there"""


@dataclass(frozen=True, kw_only=True)
class Category:
    """The photographs of one product, each part in the order of its paths; a plain folder has `train` alone."""

    root: Path
    name: str
    train: tuple[Sample, ...]
    """good ones to learn from"""
    held_out: tuple[Sample, ...]
    """good ones that the data set itself keeps for calibration; empty where `train` is to be split"""
    test: tuple[Sample, ...]
    stray_masks: tuple[Path, ...]
    """masks of no photograph"""
    ignored: tuple[Path, ...]
    """images that the layout holds and that are no sample: masks of good photographs, defects among the training
    photographs, tests whose truth is not published"""


def image_files(root: Path) -> list[Path]:
    """Return the image files in a folder and below it, by ending, in the order of their paths as POSIX strings.

    Hidden files and folders are passed over, links are followed, each folder once. A missing folder holds none.

    Raises:
        DataError: a folder cannot be listed.
    """
    found: list[tuple[str, Path]] = []
    seen: set[str] = set()
    for folder, inner, names in os.walk(root, followlinks=True, onerror=_cannot_list):
        if (real := os.path.realpath(folder)) in seen:
            inner.clear()
            continue
        seen.add(real)
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        for name in names:
            if name.lower().endswith(ENDINGS) and not name.startswith("."):
                path = Path(folder, name)
                found.append((path.relative_to(root).as_posix(), path))
    return [path for _, path in sorted(found)]


def good_samples(root: Path) -> tuple[Sample, ...]:
    """Return the image files of a folder as good photographs; as `image_files`."""
    return tuple(Sample(path, "good", False, None) for path in image_files(root))


def _cannot_list(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise DataError(f"{error.filename} cannot be listed ({error.strerror}); check its permissions") from error
