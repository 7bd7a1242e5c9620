"""Image files before they are opened: samples, categories, and the image files of a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from anomaly.data._path_arguments import folder_argument
from anomaly.errors import DataError

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
BLOCK_SIZE = 4096
"""Number of file names held as text at a time"""


@dataclass(frozen=True)
class Sample:
    """One image: its path, its kind ("good" or the name of a defect), and whether it shows a defect."""

    path: Path
    kind: str
    label: bool
    mask_path: Path | None
    """mask file; None for a good image, and for a defect without a mask"""


@dataclass(frozen=True, kw_only=True)
class Category:
    """The images of one product; each split is ordered by path, and a plain folder has `train` only."""

    root: Path
    name: str
    train: tuple[Sample, ...]
    """good images for training"""
    calibration_images: tuple[Sample, ...]
    """good images of the data set's own validation split; empty if `train` is to be split"""
    test: tuple[Sample, ...]
    stray_masks: tuple[Path, ...]
    """masks without an image"""
    ignored: tuple[Path, ...]
    """images of the layout that are not samples: masks of good images, defects in the training split, unlabelled
    test images"""


def image_files(folder: str | Path) -> list[Path]:
    """List the image files of a folder and its subfolders, in the order of their paths as POSIX strings.

    The ending identifies an image file. Hidden files and folders are skipped. Links are followed, each folder once.

    Raises:
        DataError: a missing folder, a file, or a folder that cannot be listed.
        UsageError: a path of another type.
    """
    return image_files_if_any(folder_argument(folder, name="folder", way_out="give a folder of images"))


def image_files_if_any(folder: Path) -> list[Path]:
    """List image files like `image_files`; a missing folder gives an empty list.

    Raises:
        DataError: a folder that cannot be listed.
    """
    return [Path(path) for path in image_paths(folder)]


def image_paths(folder: Path) -> Iterator[str]:
    """Iterate over the paths of `image_files_if_any` in little memory, for folders of a million images.

    The folder is listed at the call, in about ten bytes per name.

    Raises:
        DataError: a folder that cannot be listed.
    """
    block: list[bytes] = []
    arrays: list[NDArray[np.bytes_]] = []
    for name in _names_below(str(folder), "", set()):
        block.append(os.fsencode(name))
        if len(block) == BLOCK_SIZE:
            arrays.append(np.array(block))
            block = []
    ordered = np.concatenate([*arrays, np.array(block, dtype=np.bytes_)])
    ordered.sort()  # UTF-8 bytes sort like their text
    blocks = (ordered[start : start + BLOCK_SIZE].tolist() for start in range(0, len(ordered), BLOCK_SIZE))
    return (str(folder / os.fsdecode(name)) for names in blocks for name in names)


def _names_below(folder: str, prefix: str, visited: set[str]) -> Iterator[str]:
    """Names of the images below a folder, relative and with slashes, unordered."""
    real = os.path.realpath(folder)
    if real in visited:
        return
    visited.add(real)
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
        yield from _names_below(os.path.join(folder, name), f"{prefix}{name}/", visited)  # noqa: PTH118 - bytes need not be text


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def good_samples(folder: Path) -> tuple[Sample, ...]:
    """List the image files of a folder as good samples; a missing folder gives no samples."""
    return tuple(Sample(path, "good", False, None) for path in image_files_if_any(folder))
