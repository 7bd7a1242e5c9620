"""Photographs on disk as samples: a category in the layout of MVTec AD, a plain folder of good ones, a list to score.

    <category>/train/good/…                    good photographs to learn from
    <category>/test/good/…, test/<kind>/…      test photographs, good and with defects of a kind
    <category>/ground_truth/<kind>/…           masks, `<stem>_mask.png` or `<stem>.png` beside the same sub-folders

Source of the layout: Bergmann et al., "MVTec AD", CVPR 2019.
"""

from __future__ import annotations

import glob
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

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


@dataclass(frozen=True)
class Category:
    """The photographs of one product; `test` is empty for a plain folder."""

    root: Path
    name: str
    train: tuple[Sample, ...]
    test: tuple[Sample, ...]


def find_category(root: Path) -> Category:
    """Find the photographs of one product, in the order of their paths.

    A folder with `train/good` is read in the layout of MVTec AD; any other is a plain folder whose photographs, in it
    and below it, are all good. Hidden files and folders are passed over, links are followed.

    Raises:
        DataError: the folder is missing, holds no photograph to learn from, or holds something other than one product.
    """
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise DataError(f"{root} {what}; give a folder of good photographs, or one with train/good")
    name = root.resolve().name
    if (root / "train" / "good").is_dir():
        train = tuple(Sample(path, "good", False, None) for path in image_files(root / "train" / "good"))
        test = tuple(_test_sample(root, path) for path in image_files(root / "test") if path.parent != root / "test")
    else:
        paths = image_files(root)
        _check_plain(root, paths)
        train, test = tuple(Sample(path, "good", False, None) for path in paths), ()
    if not train:
        place = root / "train" / "good" if (root / "train").is_dir() else root
        raise DataError(f"{place} holds no photograph; put files ending in {', '.join(ENDINGS)} there")
    return Category(root, name, train, test)


def _test_sample(root: Path, path: Path) -> Sample:
    inner = path.relative_to(root / "test")
    if inner.parts[0] == "good":
        return Sample(path, "good", False, None)
    folder = (root / "ground_truth" / inner).parent
    masks = (folder / f"{path.stem}_mask.png", folder / f"{path.stem}.png")
    return Sample(path, inner.parts[0], True, next((mask for mask in masks if mask.is_file()), None))


def _check_plain(root: Path, paths: list[Path]) -> None:
    """Refuse a plain folder in which something may not be good."""
    folders = [path.relative_to(root).parent.parts for path in paths]
    categories = sorted(
        {"/".join(p[:i]) for p in folders for i in range(1, len(p)) if p[i : i + 2] == ("train", "good")}
    )
    if categories:
        more = f" and {len(categories) - 8} more" if len(categories) > 8 else ""
        raise DataError(f"{root} holds several products, give one of them: {', '.join(categories[:8])}{more}")
    for word in ("train", "test", "ground_truth"):
        if any(word in parts for parts in folders):
            raise DataError(
                f"{root} has a folder {word!r} but no train/good; put the good photographs into train/good, "
                "or give their folder alone"
            )
    kinds = {parts[0] if parts else "" for parts in folders}
    if "good" in kinds and len(kinds) > 1:
        others = ", ".join(sorted(kind or "photographs of its own" for kind in kinds - {"good"}))
        raise DataError(f"{root} has a folder 'good' beside {others}; give the folder 'good' alone")


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


def _cannot_list(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise DataError(f"{error.filename} cannot be listed ({error.strerror}); check its permissions") from error


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
        found = [str(file) for file in image_files(path)]
        return found or _nothing(source, "a folder without images")
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


def _lines(text: str, *, name: str) -> list[str]:
    found = [line for line in text.split("\n") if line.strip()]
    return found or _nothing(name, "a list without paths")


def _nothing(source: str, what: str) -> NoReturn:
    raise DataError(f"{source} is {what}; images end in {', '.join(ENDINGS)}")
