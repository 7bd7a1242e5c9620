"""Splits of good images into training, calibration and early-stopping images: whole part groups, fixed by a seed."""

from __future__ import annotations

import csv
import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from anomaly.data.folders import Sample
from anomaly.errors import DataError, UsageError
from anomaly.system.files import as_path
from anomaly.system.suggestions import nearest

CALIBRATION_SHARE = 0.2
STOPPING_SHARE = 0.1
MIN_CALIBRATION = 10
MIN_TRAIN = 10
_NUM_NAMED = 5


@dataclass(frozen=True)
class Split:
    """Good images, each tuple ordered by path; `stopping` holds the early-stopping images, if requested."""

    train: tuple[Sample, ...]
    calibration_images: tuple[Sample, ...]
    stopping: tuple[Sample, ...]


def find_part_groups(
    samples: Sequence[Sample],
    *,
    root: str | Path,
    part_group: str | None = None,
    duplicates: Iterable[tuple[Path, Path]] = (),
) -> dict[Path, str]:
    """Name the part group of every image; a split never separates the images of one group.

    Args:
        samples: images below `root`.
        root: folder of the category.
        part_group: regular expression, searched in the path relative to `root`, or a CSV file. The first capture
            group of the expression, or else the whole match, names the group. The CSV file has the columns `path`
            (relative to `root`) and `group`. None gives every image its own group.
        duplicates: pairs of images whose groups become one.

    Returns:
        The group of each image by its path. The names depend only on the paths relative to `root`.

    Raises:
        UsageError: an invalid regular expression.
        DataError: an unreadable CSV file, or images without a group.
    """
    root = as_path(root, name="root")
    names = {sample.path: sample.path.relative_to(root).as_posix() for sample in samples}
    if part_group is None:
        groups = dict(names)
    elif not isinstance(part_group, str):
        raise UsageError(
            f"part_group is {part_group!r:.60}; give a regular expression or the path of a .csv file as str"
        )
    elif part_group.lower().endswith(".csv"):
        table = _read_table(Path(part_group))
        groups = {path: table.get(name, "") for path, name in names.items()}
    else:
        pattern = _compile(part_group)
        groups = {path: _matched(pattern, name) for path, name in names.items()}
    without = [names[path] for path, group in groups.items() if not group]
    if without:
        raise DataError(
            f"--part-group {part_group} gives no group to {len(without)} of {len(names)} images, first "
            f"{', '.join(sorted(without)[:_NUM_NAMED])}; cover every path relative to {root}"
        )
    return _joined(groups, duplicates)


def _compile(part_group: str) -> re.Pattern[str]:
    try:
        return re.compile(part_group)
    except re.error as error:
        raise UsageError(
            f"--part-group {part_group!r} is an invalid regular expression ({error}); correct it, or give a .csv file"
        ) from error


def _matched(pattern: re.Pattern[str], name: str) -> str:
    match = pattern.search(name)
    if match is None:
        return ""
    return (match[1] if pattern.groups else match[0]) or ""


def _read_table(path: Path) -> dict[str, str]:
    """Read a CSV file with the columns path and group."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            if not {"path", "group"} <= set(rows.fieldnames or ()):
                raise DataError(f"{path} has the columns {rows.fieldnames}; the columns path and group are required")
            table: dict[str, str] = {}
            for row in rows:
                name, group = Path(row["path"] or "").as_posix(), row["group"] or ""
                if table.setdefault(name, group) != group:
                    raise DataError(f"{path} puts {name} into the groups {table[name]} and {group}; keep one of them")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as CSV ({error}); give a UTF-8 file with path and group") from error
    return table


def _joined(groups: Mapping[Path, str], pairs: Iterable[tuple[Path, Path]]) -> dict[Path, str]:
    """Join the groups of every pair; the alphabetically first name remains."""
    parent = {group: group for group in groups.values()}

    def root_of(group: str) -> str:
        while parent[group] != group:
            parent[group] = group = parent[parent[group]]
        return group

    for first, second in pairs:
        low, high = sorted((root_of(groups[first]), root_of(groups[second])))
        parent[high] = low
    return {path: root_of(group) for path, group in groups.items()}


def split(
    samples: Sequence[Sample],
    groups: Mapping[Path, str],
    *,
    seed: int,
    stopping: bool,
    calibration_images: Sequence[Sample] = (),
) -> Split:
    """Split good images into training, calibration and early-stopping images.

    20 % of the images, at least 10, become the calibration set. With `stopping`, 10 % of the others are for early
    stopping. Whole groups go to one side, so large groups make the shares approximate. The seed and the names of the
    groups decide the order of the groups, not the order of `samples`. Adding or removing one image therefore moves few
    others.

    Args:
        samples: good images to split.
        groups: part group of each image by its path, of `find_part_groups`.
        seed: random seed.
        stopping: whether early-stopping images are split off.
        calibration_images: the data set's own calibration images; empty without them. They replace the 20 %, and images
            of their groups are not used for training.

    Raises:
        DataError: too few images or groups; the message gives the required number.
        UsageError: an image with a defect.
    """
    defects = [sample.path for sample in samples if sample.label]
    if defects:
        raise UsageError(f"{defects[0]} shows a defect; give good images only")
    sizes = Counter(groups[sample.path] for sample in samples)
    order = sorted(sizes, key=lambda group: hashlib.sha256(f"{seed}:{group}".encode(errors="surrogateescape")).digest())
    target = max(MIN_CALIBRATION, math.ceil(CALIBRATION_SHARE * len(samples)))
    calibration = {groups[s.path] for s in calibration_images} or _take(
        order, sizes, target=target, least=MIN_CALIBRATION
    )
    rest = [group for group in order if group not in calibration]
    target = max(1, round(STOPPING_SHARE * sum(sizes[group] for group in rest)))
    stop = _take(rest, sizes, target=target, least=1) if stopping else set()
    train = set(rest) - stop

    ordered = sorted(samples, key=lambda sample: sample.path.as_posix())
    result = Split(*(tuple(s for s in ordered if groups[s.path] in side) for side in (train, calibration, stop)))
    if calibration_images:
        own = tuple(sorted(calibration_images, key=lambda sample: sample.path.as_posix()))
        result = Split(result.train, own, result.stopping)
    if len(result.train) >= MIN_TRAIN and len(result.calibration_images) >= MIN_CALIBRATION:
        return result
    if calibration_images:
        raise DataError(
            f"{len(result.train)} good images for training and {len(calibration_images)} calibration images of the "
            f"data set are too few; at least {MIN_TRAIN + stopping} and {MIN_CALIBRATION} are needed"
        )
    raise DataError(
        f"{len(samples)} good images in {len(order)} groups, the largest of {max(sizes.values(), default=0)}, cannot be "
        f"split: training needs {MIN_TRAIN}{', early stopping 1' if stopping else ''} and calibration "
        f"{MIN_CALIBRATION}; at least {MIN_TRAIN + MIN_CALIBRATION + stopping} images are needed, in "
        "small enough groups"
    )


def _take(order: Sequence[str], sizes: Mapping[str, int], *, target: int, least: int) -> set[str]:
    """Take the groups that fit below `target`, then the smallest while they bring it nearer or `least` needs them."""
    taken: set[str] = set()
    num_taken = 0
    for group in order:
        if num_taken + sizes[group] <= target:
            taken.add(group)
            num_taken += sizes[group]
    for group in sorted((group for group in order if group not in taken), key=lambda group: sizes[group]):
        if num_taken >= least and num_taken + sizes[group] - target >= target - num_taken:
            break
        taken.add(group)
        num_taken += sizes[group]
    return taken


def drop_excluded(samples: Sequence[Sample], names: Sequence[str]) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """Drop images by name.

    Args:
        samples: images of the category.
        names: file names or ends of paths, e.g. `lot 2/007.png`.

    Returns:
        The kept and the dropped images, each in the given order.

    Raises:
        DataError: a name that fits no image, or several.
    """
    paths = [sample.path.as_posix() for sample in samples]
    dropped: set[str] = set()
    for name in names:
        found = [path for path in paths if f"/{path}".endswith(f"/{Path(name).as_posix()}")]
        if not found:
            similar = nearest(Path(name).name, sorted({sample.path.name for sample in samples})) or "none"
            raise DataError(f"excluded name {name} fits none of {len(paths)} images; nearest: {similar}")
        if len(found) > 1:
            raise DataError(f"excluded name {name} fits {', '.join(found[:_NUM_NAMED])}; give more of the path")
        dropped.update(found)
    kept = tuple(sample for sample in samples if sample.path.as_posix() not in dropped)
    return kept, tuple(sample for sample in samples if sample.path.as_posix() in dropped)
