"""Folders and lists of images: one category of any layout, all categories of a data set, images to score."""

from __future__ import annotations

import glob
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import NoReturn

from anomaly.data._path_arguments import folder_argument
from anomaly.data.image_files import ENDINGS, Category, Sample, good_samples, image_files, image_paths
from anomaly.data.layouts import find_layouts
from anomaly.errors import DataError
from anomaly.system.files import as_path

__all__ = ["ENDINGS", "Category", "Sample", "find_categories", "find_category", "image_files", "list_images"]

_WAY_OUT = "give a folder of good images, or one with train/good"
_SPLIT_FOLDERS = ("train", "test", "test_public", "ground_truth")
_GOOD_FOLDERS = ("good", "ok", "normal")
_MASK_ENDINGS = ("_mask", "_GT")
_NUM_NAMED = 8


def find_category(root: str | Path) -> Category:
    """Find the images of one product.

    The subfolders identify the layout (`anomaly.data.layouts`). Any other folder is plain: all images in it and its
    subfolders are good. Hidden files and folders are skipped, links are followed.

    Args:
        root: folder of the product.

    Raises:
        DataError: a missing folder, a file, no training image, several layouts, or several products.
        UsageError: a path of another type.
    """
    root = folder_argument(root, name="root", way_out=_WAY_OUT)
    layouts = find_layouts(root)
    if len(layouts) > 1:
        names = ", ".join(layout.name for layout in layouts)
        raise DataError(f"{root} fits the layouts of {names}; keep the folders of one of them")
    if layouts:
        category, train_folder = layouts[0].read(root), root / layouts[0].train
    else:
        train = good_samples(root)
        _check_plain(root, [sample.path for sample in train])
        category = Category(
            root=root,
            name=root.resolve().name,
            train=train,
            calibration_images=(),
            test=(),
            stray_masks=(),
            ignored=(),
        )
        train_folder = root / "train" / "good" if (root / "train").is_dir() else root
    if not category.train:
        raise DataError(f"{train_folder} holds no image; put files ending in {', '.join(ENDINGS)} there")
    return category


def find_categories(root: str | Path) -> tuple[Path, ...]:
    """Find the categories of a data set: the folders in `root` with a known layout, ordered by name.

    If `root` itself has a known layout, it is the only category. Hidden folders are skipped, links are followed.

    Args:
        root: folder of the data set.

    Raises:
        DataError: a missing folder, a file, a folder that cannot be listed, or no category.
        UsageError: a path of another type.
    """
    root = folder_argument(root, name="root", way_out=_WAY_OUT)
    if find_layouts(root):
        return (root,)
    try:
        folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        raise DataError(f"{root} cannot be listed ({error.strerror}); check its permissions") from error
    found = tuple(folder for folder in folders if find_layouts(folder))
    if not found:
        names = ", ".join(folder.name for folder in folders[:_NUM_NAMED]) or "none"
        raise DataError(
            f"{root} holds no category of a known layout (folders: {names}); give the folder of the categories"
        )
    return found


def _check_plain(root: Path, paths: list[Path]) -> None:
    """Refuse a plain folder with signs of several products, of defects, or of masks."""
    folders = {path.relative_to(root).parent.parts for path in paths}
    inner = {parts[:i] for parts in folders for i in range(1, len(parts) + 1)}
    categories = sorted("/".join(parts) for parts in inner if find_layouts(root.joinpath(*parts)))
    if categories:
        more = f" and {len(categories) - _NUM_NAMED} more" if len(categories) > _NUM_NAMED else ""
        raise DataError(f"{root} holds several products; give one of them: {', '.join(categories[:_NUM_NAMED])}{more}")
    for word in _SPLIT_FOLDERS:
        if any(word in parts for parts in folders):
            raise DataError(
                f"{root} has a folder {word!r} but no train/good; put the good images into train/good, "
                "or give the folder of the good images"
            )
    for parts in sorted(folders):
        for depth, word in enumerate(parts):
            if word.lower() in _GOOD_FOLDERS:
                _check_siblings(root, parts[:depth], word, folders)
    stems = {path.with_suffix("") for path in paths}
    for path in paths:
        if any(path.stem.endswith(e) and path.with_name(path.stem.removesuffix(e)) in stems for e in _MASK_ENDINGS):
            raise DataError(f"{root} holds masks beside the images, first {path}; give a folder of good images only")


def _check_siblings(root: Path, parent: tuple[str, ...], good: str, folders: set[tuple[str, ...]]) -> None:
    """Refuse a folder of good images with other images beside it."""
    depth = len(parent)
    names = {parts[depth] if len(parts) > depth else "" for parts in folders if parts[:depth] == parent}
    if len(names) > 1:
        others = ", ".join(sorted(name or "loose images" for name in names - {good}))
        raise DataError(f"{root.joinpath(*parent)} has a folder {good!r} beside {others}; give the folder {good!r}")


def list_images(source: str | Path) -> list[str]:
    """List the images to score.

    A list is a `.txt` file, or standard input, with one path per line. Its paths are neither checked nor sorted.
    Folders and globs give files by their ending, in the order of their paths. A glob has `*`, `?` or `[`; `**` stands
    for any folders.

    Args:
        source: folder with its subfolders, glob, image file, list, or "-" for standard input.

    Raises:
        DataError: a missing source, or a source without images.
        UsageError: a source of another type.
    """
    path = as_path(source, name="source")
    source = str(source)
    if source == "-":
        return _lines(sys.stdin.read(), name="standard input")
    if path.is_dir():
        return list(folder_images(path))
    if path.is_file():
        if path.suffix.lower() != ".txt":
            return [source]
        try:
            text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
        except OSError as error:
            raise DataError(f"the list {source} cannot be read ({error.strerror}); check its permissions") from error
        return _lines(text, name=source)
    if glob.has_magic(source):
        files = [file for file in glob.glob(source, recursive=True) if Path(file).is_file()]  # noqa: PTH207
        found = sorted(file for file in files if file.lower().endswith(ENDINGS))
        return found or _no_image(source, f"fits {len(files)} files, but no image")
    raise DataError(
        f"{source} does not exist; give a folder, a pattern in quotes, an image, a .txt list, or - for stdin"
    )


def folder_images(folder: str | Path) -> Iterator[str]:
    """Iterate over the images of a folder and its subfolders, in little memory.

    Raises:
        DataError: a missing folder, a file, or a folder without images.
        UsageError: a path of another type.
    """
    folder = folder_argument(folder, name="folder", way_out="give a folder of images")
    paths = image_paths(folder)
    first = next(paths, None)
    return chain([first], paths) if first else iter(_no_image(str(folder), "is a folder without images"))


def _lines(text: str, *, name: str) -> list[str]:
    found = [line for line in text.split("\n") if line.strip()]
    return found or _no_image(name, "is a list without paths")


def _no_image(source: str, reason: str) -> NoReturn:
    raise DataError(f"{source} {reason}; images end in {', '.join(ENDINGS)}")
