"""One object of VisA as published: images and masks below `Data`, splits and labels in a table of the data set.

    <set>/split_csv/1cls.csv             object,split,label,image,mask: train or test, normal or anomaly, paths below <set>
    <set>/<object>/Data/Images/…         images
    <set>/<object>/Data/Masks/…          masks: small numbers, above 0 on a defect

Source: Zou et al., "SPot-the-Difference Self-supervised Pre-training for Anomaly Detection and Segmentation", ECCV 2022.
"""

from __future__ import annotations

import csv
from pathlib import Path, PurePosixPath

from anomaly.data.image_files import Category, Sample, image_files_if_any
from anomaly.errors import DataError

TABLE = Path("split_csv", "1cls.csv")
_COLUMNS = ("object", "split", "label", "image", "mask")


def read_visa(root: Path) -> Category:
    """Read one object; images missing from the table are not used.

    Raises:
        DataError: a missing or unreadable table, no training image, an invalid row, or a missing file.
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
            raise DataError(f"{where}: split {split!r} and label {label!r}; write train or test, and normal or anomaly")
        if label == "normal" and row["mask"]:
            raise DataError(f"{where}: a normal image with the mask {row['mask']}; write anomaly, or empty the mask")
        path = _file(root, row["image"], name=folder.name, where=where)
        mask = _file(root, row["mask"], name=folder.name, where=where) if row["mask"] else None
        if path in images:
            raise DataError(f"{where}: {row['image']} is in an earlier row too; delete one of the rows")
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
        raise DataError(f"{table} has no normal training image of {folder.name}; check its rows")
    return Category(
        root=root,
        name=folder.name,
        train=_in_order(samples["train"]),
        calibration_images=(),
        test=_in_order(samples["test"]),
        stray_masks=tuple(mask for mask in image_files_if_any(root / "Data" / "Masks") if mask not in masks),
        ignored=tuple(ignored),
    )


def _find_table(root: Path) -> tuple[Path, Path]:
    """Find the table beside the folder, as given or with links resolved; return that folder and the table."""
    for folder in (root.absolute(), root.resolve()):
        if (folder.parent / TABLE).is_file():
            return folder, folder.parent / TABLE
    raise DataError(
        f"{root} has the layout of VisA but no {TABLE.as_posix()} beside it; put the table of the data set there, "
        "or give the folder of the good images"
    )


def _rows(table: Path, *, name: str) -> list[tuple[int, dict[str, str]]]:
    """Read the rows of one object, each with its line number."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restval="")
            if not set(_COLUMNS) <= set(reader.fieldnames or ()):
                raise DataError(f"{table} has the columns {reader.fieldnames}; {', '.join(_COLUMNS)} are required")
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table} cannot be read as CSV ({error}); copy it again from the data set") from error
    found = [(line, row) for line, row in rows if row["object"] == name]
    if not found:
        objects = ", ".join(sorted({row["object"] for _, row in rows})) or "no rows"
        raise DataError(
            f"{table} has no row of the object {name}, only {objects}; rename the folder to an object of the table"
        )
    return found


def _file(root: Path, value: str, *, name: str, where: str) -> Path:
    parts = PurePosixPath(value).parts
    if parts[:1] != (name,) or ".." in parts:
        raise DataError(f"{where}: {value!r} is not below {name}; write a path below the folder of the data set")
    path = root.joinpath(*parts[1:])
    if not path.is_file():
        raise DataError(f"{where}: {path} is missing; restore the file or delete the row")
    return path


def _in_order(samples: list[Sample]) -> tuple[Sample, ...]:
    return tuple(sorted(samples, key=lambda sample: sample.path.as_posix()))
