"""One object of VisA as it is published: images and masks below `Data`, parts and labels in a table of the set.

    <set>/split_csv/1cls.csv             object,split,label,image,mask: train or test, normal or anomaly, paths below <set>
    <set>/<object>/Data/Images/…         images
    <set>/<object>/Data/Masks/…          masks whose values are small numbers, above 0 where there is a defect

Source: Zou et al., "SPot-the-Difference Self-supervised Pre-training for Anomaly Detection and Segmentation", ECCV 2022.
"""

from __future__ import annotations

import csv
from pathlib import Path, PurePosixPath

from anomaly.data.image_files import Category, Sample, image_files
from anomaly.errors import DataError

TABLE = Path("split_csv", "1cls.csv")
_COLUMNS = ("object", "split", "label", "image", "mask")


def read_visa(root: Path) -> Category:
    """Read one object; images that the table does not name are not used.

    Raises:
        DataError: the table is missing or cannot be read, names nothing to learn from, or has a row that is wrong or
            whose files are missing.
    """
    folder, table = _find_table(root)
    samples: dict[str, list[Sample]] = {"train": [], "test": []}
    ignored: list[Path] = []
    images: set[Path] = set()
    masks: set[Path] = set()
    for line, row in _rows(table, name=folder.name):
        where = f"{table}, line {line}"
        split, label = row["split"], row["label"]
        if split not in samples or label not in ("normal", "anomaly"):
            raise DataError(f"{where}: split {split!r}, label {label!r}; write train or test, and normal or anomaly")
        if label == "normal" and row["mask"]:
            raise DataError(f"{where}: a normal image with the mask {row['mask']}; write anomaly, or empty the mask")
        path = _file(root, row["image"], name=folder.name, where=where)
        mask = _file(root, row["mask"], name=folder.name, where=where) if row["mask"] else None
        if path in images:
            raise DataError(f"{where}: {row['image']} stands in an earlier row too; take out one of them")
        images.add(path)
        if mask is not None:
            masks.add(mask)
        if label == "normal":
            samples[split].append(Sample(path, "good", False, None))
        elif split == "test":
            samples[split].append(Sample(path, "anomaly", True, mask))
        else:
            ignored += [path] if mask is None else [path, mask]
    if not samples["train"]:
        raise DataError(f"{table} names no normal image of {folder.name} to train on; check its rows")
    return Category(
        root=root,
        name=folder.name,
        train=_in_order(samples["train"]),
        calibration_images=(),
        test=_in_order(samples["test"]),
        stray_masks=tuple(mask for mask in image_files(root / "Data" / "Masks") if mask not in masks),
        ignored=tuple(ignored),
    )


def _find_table(root: Path) -> tuple[Path, Path]:
    """Return the folder of the object, as given or with links resolved, that has the table beside it, and the table."""
    for folder in (root.absolute(), root.resolve()):
        if (folder.parent / TABLE).is_file():
            return folder, folder.parent / TABLE
    raise DataError(
        f"{root} has the layout of VisA but no {TABLE.as_posix()} beside it; put the table of the data set there, "
        "or give the folder of the good images alone"
    )


def _rows(table: Path, *, name: str) -> list[tuple[int, dict[str, str]]]:
    """Read the rows of one object, each with the number of its line."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restval="")
            if not set(_COLUMNS) <= set(reader.fieldnames or ()):
                raise DataError(f"{table} has the columns {reader.fieldnames}; {', '.join(_COLUMNS)} are needed")
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table} cannot be read as CSV ({error}); take it from the data set again") from error
    found = [(line, row) for line, row in rows if row["object"] == name]
    if not found:
        objects = ", ".join(sorted({row["object"] for _, row in rows})) or "no rows"
        raise DataError(f"{table} has no row of the object {name}; it has {objects}; name the folder as the table does")
    return found


def _file(root: Path, value: str, *, name: str, where: str) -> Path:
    parts = PurePosixPath(value).parts
    if parts[:1] != (name,) or ".." in parts:
        raise DataError(f"{where}: {value!r} does not lie below {name}; write a path below the data set's folder")
    path = root.joinpath(*parts[1:])
    if not path.is_file():
        raise DataError(f"{where}: {path} is missing; put the file back or take out the row")
    return path


def _in_order(samples: list[Sample]) -> tuple[Sample, ...]:
    return tuple(sorted(samples, key=lambda sample: sample.path.as_posix()))
