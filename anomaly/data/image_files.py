"""What is known of images before they are opened: samples, categories, and the image files of a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from anomaly.errors import DataError

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
NAMES_AT_ONCE = 4096
"""Names of files held as text at a time"""


@dataclass(frozen=True)
class Sample:
    """One image: where it lies, its kind ("good" or the name of a defect), and whether it shows a defect."""

    path: Path
    kind: str
    label: bool
    mask_path: Path | None
    """None for a good image, and for a defect whose mask is not there"""


@dataclass(frozen=True, kw_only=True)
class Category:
    """The images of one product, each part in the order of its paths; a plain folder has `train` alone."""

    root: Path
    name: str
    train: tuple[Sample, ...]
    """good ones to learn from"""
    calibration_images: tuple[Sample, ...]
    """good ones that the data set itself keeps for calibration; empty where `train` is to be split"""
    test: tuple[Sample, ...]
    stray_masks: tuple[Path, ...]
    """masks of no image"""
    ignored: tuple[Path, ...]
    """images that the layout holds and that are no sample: masks of good images, defects among the training
    images, tests whose truth is not published"""


def image_files(root: Path) -> list[Path]:
    """Return the image files in a folder and below it, by ending, in the order of their paths as POSIX strings.

    Hidden files and folders are passed over, links are followed, each folder once. A missing folder holds none.

    Raises:
        DataError: a folder cannot be listed.
    """
    return [Path(path) for path in image_paths(root)]


def image_paths(root: Path) -> Iterator[str]:
    """Give the paths of `image_files`, listed when this is called, some ten bytes each: a night has a million of them.

    Raises:
        DataError: a folder cannot be listed.
    """
    some: list[bytes] = []
    parts: list[NDArray[np.bytes_]] = []
    for name in _names_below(str(root), "", set()):
        some.append(os.fsencode(name))
        if len(some) == NAMES_AT_ONCE:
            parts.append(np.array(some))
            some = []
    ordered = np.concatenate([*parts, np.array(some, dtype=np.bytes_)])
    ordered.sort()  # UTF-8 sorts as its text does
    blocks = (ordered[at : at + NAMES_AT_ONCE].tolist() for at in range(0, len(ordered), NAMES_AT_ONCE))
    return (str(root / os.fsdecode(name)) for block in blocks for name in block)


def _names_below(folder: str, prefix: str, seen: set[str]) -> Iterator[str]:
    """Names of images below a folder, relative and with slashes, in no order."""
    real = os.path.realpath(folder)
    if real in seen:
        return
    seen.add(real)
    inner: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if _is_folder(entry):
                    inner.append(entry.name)
                elif entry.name.lower().endswith(ENDINGS):
                    yield f"{prefix}{entry.name}"
    except FileNotFoundError:
        return
    except OSError as error:
        raise DataError(f"{error.filename} cannot be listed ({error.strerror}); check its permissions") from error
    for name in sorted(inner):
        yield from _names_below(os.path.join(folder, name), f"{prefix}{name}/", seen)  # noqa: PTH118 - bytes need not be text


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def good_samples(root: Path) -> tuple[Sample, ...]:
    """Return the image files of a folder as good images; as `image_files`."""
    return tuple(Sample(path, "good", False, None) for path in image_files(root))
