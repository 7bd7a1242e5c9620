"""Folders and lists of images: a category of any layout, the categories of a data set, a list to score."""

from __future__ import annotations

import glob
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import NoReturn

from anomaly.data.image_files import ENDINGS, Category, Sample, good_samples, image_files, image_paths
from anomaly.data.layouts import find_layouts
from anomaly.errors import DataError

__all__ = ["ENDINGS", "Category", "Sample", "find_categories", "find_category", "image_files", "list_images"]

_PARTS = ("train", "test", "test_public", "ground_truth")
_GOOD = ("good", "ok", "normal")
_MASK_ENDINGS = ("_mask", "_GT")


def find_category(root: Path) -> Category:
    """Find the images of one product.

    The layout is recognised by the folders that it has (`anomaly.data.layouts`); any other folder is a plain one, whose
    images, in it and below it, are all good. Hidden files and folders are passed over, links are followed.

    Raises:
        DataError: the folder is missing, holds no image to learn from, fits several layouts, or holds something
            other than one product.
    """
    _check_folder(root)
    layouts = find_layouts(root)
    if len(layouts) > 1:
        fitting = ", ".join(layout.name for layout in layouts)
        raise DataError(f"{root} fits the layouts of {fitting}; keep the folders of one of them")
    if layouts:
        category, place = layouts[0].read(root), root / layouts[0].train
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
        place = root / "train" / "good" if (root / "train").is_dir() else root
    if not category.train:
        raise DataError(f"{place} holds no image; put files ending in {', '.join(ENDINGS)} there")
    return category


def find_categories(root: Path) -> tuple[Path, ...]:
    """Find the categories of a data set, in the order of their names: the folders in `root` that have a known layout.

    A folder that has one itself is the only category of its data set. Hidden folders are passed over, links followed.

    Raises:
        DataError: the folder is missing, cannot be listed, or holds no category.
    """
    _check_folder(root)
    if find_layouts(root):
        return (root,)
    try:
        folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        raise DataError(f"{root} cannot be listed ({error.strerror}); check its permissions") from error
    found = tuple(folder for folder in folders if find_layouts(folder))
    if not found:
        inside = ", ".join(folder.name for folder in folders[:8]) or "no folders"
        raise DataError(f"{root} holds no category of a known layout but {inside}; give the folder that holds them")
    return found


def _check_folder(root: Path) -> None:
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise DataError(f"{root} {what}; give a folder of good images, or one with train/good")


def _check_plain(root: Path, paths: list[Path]) -> None:
    """Refuse a plain folder in which something may not be good."""
    folders = {path.relative_to(root).parent.parts for path in paths}
    inner = {parts[:i] for parts in folders for i in range(1, len(parts) + 1)}
    categories = sorted("/".join(parts) for parts in inner if find_layouts(root.joinpath(*parts)))
    if categories:
        more = f" and {len(categories) - 8} more" if len(categories) > 8 else ""
        raise DataError(f"{root} holds several products, give one of them: {', '.join(categories[:8])}{more}")
    for word in _PARTS:
        if any(word in parts for parts in folders):
            raise DataError(
                f"{root} has a folder {word!r} but no train/good; put the good images into train/good, "
                "or give their folder alone"
            )
    for parts in sorted(folders):
        for i, word in enumerate(parts):
            beside = (
                {p[i] if len(p) > i else "" for p in folders if p[:i] == parts[:i]} if word.lower() in _GOOD else set()
            )
            if len(beside) > 1:
                others = ", ".join(sorted(kind or "images of its own" for kind in beside - {word}))
                place = root.joinpath(*parts[:i])
                raise DataError(f"{place} has a folder {word!r} beside {others}; give the folder {word!r} alone")
    stems = {path.with_suffix("") for path in paths}
    for path in paths:
        if any(path.stem.endswith(e) and path.with_name(path.stem.removesuffix(e)) in stems for e in _MASK_ENDINGS):
            raise DataError(f"{root} holds masks beside the images, first {path}; give the good images alone")


def list_images(source: str) -> list[str]:
    """List the images to score: a folder and what is below it, a glob, one file, a list, or "-" for standard input.

    A list is a `.txt` file, or standard input, with one path a line; its paths stand as given, readable or not, and in
    its order. Folders and globs give files by their ending, in the order of their paths. A glob has `*`, `?` or `[`;
    `**` stands for any folders.

    Raises:
        DataError: there is nothing under that name, or nothing to score.
    """
    if source == "-":
        return _lines(sys.stdin.read(), name="standard input")
    path = Path(source)
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
        return found or _nothing(source, f"a pattern that fits {len(files)} files, none of them an image,")
    raise DataError(
        f"{source} does not exist; give a folder, a pattern in quotes, an image, a .txt list, or - for stdin"
    )


def folder_images(folder: Path) -> Iterator[str]:
    """List the images of a folder and what is below it, in little memory.

    Raises:
        DataError: there are none.
    """
    paths = image_paths(folder)
    first = next(paths, None)
    return chain([first], paths) if first else iter(_nothing(str(folder), "a folder without images"))


def _lines(text: str, *, name: str) -> list[str]:
    found = [line for line in text.split("\n") if line.strip()]
    return found or _nothing(name, "a list without paths")


def _nothing(source: str, what: str) -> NoReturn:
    raise DataError(f"{source} is {what}; images end in {', '.join(ENDINGS)}")
