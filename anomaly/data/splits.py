"""Good images to learn from, to calibrate on, and to stop by: whole groups, the same for the same seed."""

from __future__ import annotations

import csv
import difflib
import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from anomaly.data.folders import Sample
from anomaly.errors import DataError, UsageError

HELD_OUT_SHARE = 0.2
STOPPING_SHARE = 0.1
MIN_HELD_OUT = 10
MIN_TRAIN = 10


@dataclass(frozen=True)
class Split:
    """Good images in three parts, each in the order of their paths; `stopping` is empty unless asked for."""

    train: tuple[Sample, ...]
    calibration_images: tuple[Sample, ...]
    stopping: tuple[Sample, ...]


def find_part_groups(
    samples: Sequence[Sample], *, root: Path, part_group: str | None, duplicates: Iterable[tuple[Path, Path]]
) -> dict[Path, str]:
    """Name the group of every image; a split keeps a group on one side.

    `group` is a regular expression, searched in the path relative to `root` (its first capture group names the group,
    or all that it matches), or the path of a CSV file with the columns `path` (relative to `root`) and `group`, or ""
    for images that each stand alone. Groups that share a pair of `duplicates` become one.

    Returns:
        The group of each image by its path. The names depend on the paths below `root` and on nothing else.

    Raises:
        UsageError: an invalid regular expression.
        DataError: a CSV file that cannot be read, or images that the expression or the file leaves out.
    """
    names = {sample.path: sample.path.relative_to(root).as_posix() for sample in samples}
    if not part_group:
        groups = dict(names)
    elif part_group.lower().endswith(".csv"):
        table = _read_table(Path(part_group))
        groups = {path: table.get(name, "") for path, name in names.items()}
    else:
        try:
            pattern = re.compile(part_group)
        except re.error as error:
            raise UsageError(
                f"--part-group {part_group!r} is no regular expression ({error}), nor a path that ends in .csv"
            ) from error
        groups = {path: _matched(pattern, name) for path, name in names.items()}
    left_out = [names[path] for path, found in groups.items() if not found]
    if left_out:
        raise DataError(
            f"--part-group {part_group} gives no group to {len(left_out)} of {len(names)} images, first "
            f"{', '.join(sorted(left_out)[:5])}; make it name a group for every path relative to {root}"
        )
    return _joined(groups, duplicates)


def _matched(pattern: re.Pattern[str], name: str) -> str:
    match = pattern.search(name)
    if match is None:
        return ""
    return (match[1] if pattern.groups else match[0]) or ""


def _read_table(path: Path) -> dict[str, str]:
    """Read a CSV of path and group."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            if not {"path", "group"} <= set(rows.fieldnames or ()):
                raise DataError(f"{path} has the columns {rows.fieldnames}; the columns path and group are needed")
            table: dict[str, str] = {}
            for row in rows:
                name, group = Path(row["path"] or "").as_posix(), row["group"] or ""
                if table.setdefault(name, group) != group:
                    raise DataError(f"{path} puts {name} into the groups {table[name]} and {group}; leave one of them")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as CSV ({error}); give a UTF-8 file with path and group") from error
    return table


def _joined(groups: Mapping[Path, str], pairs: Iterable[tuple[Path, Path]]) -> dict[Path, str]:
    """Join the groups of every pair; a joined group has the first of its names."""
    parent = {group: group for group in groups.values()}

    def first(group: str) -> str:
        while parent[group] != group:
            parent[group] = group = parent[parent[group]]
        return group

    for one, other in pairs:
        low, high = sorted((first(groups[one]), first(groups[other])))
        parent[high] = low
    return {path: first(group) for path, group in groups.items()}


def split(
    samples: Sequence[Sample],
    groups: Mapping[Path, str],
    *,
    seed: int,
    stopping: bool,
    given: Sequence[Sample] = (),
) -> Split:
    """Split good images into those to learn from, those held out to calibrate on, and those to stop by.

    Where the data set itself holds images out (`given`), these are the calibration part, and a image of one of
    their groups does not train.

    20 %, at least 10, are held out; if `stopping`, 10 % of the rest are to stop by.
    Whole groups go to one part, in an order drawn from the seed and the groups' names, not from the order of `samples`;
    a image that comes or goes moves few of the others. Large groups make the shares approximate.

    Raises:
        DataError: images or groups too few, with the number that is needed.
        UsageError: a image with a defect.
    """
    defects = [sample.path for sample in samples if sample.label]
    if defects:
        raise UsageError(f"{defects[0]} shows a defect; only good images are split")
    sizes = Counter(groups[sample.path] for sample in samples)
    order = sorted(sizes, key=lambda group: hashlib.sha256(f"{seed}:{group}".encode(errors="surrogateescape")).digest())
    target = max(MIN_HELD_OUT, math.ceil(HELD_OUT_SHARE * len(samples)))
    calibration_images = {groups[s.path] for s in given} or _take(order, sizes, target=target, least=MIN_HELD_OUT)
    rest = [group for group in order if group not in calibration_images]
    target = max(1, round(STOPPING_SHARE * sum(sizes[group] for group in rest)))
    stop = _take(rest, sizes, target=target, least=1) if stopping else set()
    train = set(rest) - stop

    in_order = sorted(samples, key=lambda sample: sample.path.as_posix())
    parts = [tuple(s for s in in_order if groups[s.path] in part) for part in (train, calibration_images, stop)]
    if given:
        parts[1] = tuple(sorted(given, key=lambda sample: sample.path.as_posix()))
    if len(parts[0]) < MIN_TRAIN or len(parts[1]) < MIN_HELD_OUT:
        needed = MIN_TRAIN + MIN_HELD_OUT + stopping
        if given:
            raise DataError(
                f"{len(parts[0])} good images to train and {len(given)} that the data set holds out; "
                f"at least {MIN_TRAIN + stopping} and {MIN_HELD_OUT} are needed"
            )
        raise DataError(
            f"{len(samples)} good images in {len(order)} groups, the largest of {max(sizes.values(), default=0)}, "
            f"cannot be split into {MIN_TRAIN} or more to train{', 1 or more to stop by' if stopping else ''} and "
            f"{MIN_HELD_OUT} or more held out; at least {needed} images are needed, in groups small enough"
        )
    return Split(*parts)


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
    """Take out the images of these names; a name is a file's name or the end of its path, as `lot 2/007.png`.

    Returns:
        The images that are kept and those that are dropped, each in the order given.

    Raises:
        DataError: a name that fits no image, or several.
    """
    paths = [sample.path.as_posix() for sample in samples]
    dropped: set[str] = set()
    for name in names:
        found = [path for path in paths if f"/{path}".endswith(f"/{Path(name).as_posix()}")]
        if not found:
            files = sorted({sample.path.name for sample in samples})
            near = difflib.get_close_matches(Path(name).name, files, n=1, cutoff=0)
            raise DataError(f"{name} is to be left out but is none of {len(paths)} images; nearest: {', '.join(near)}")
        if len(found) > 1:
            raise DataError(f"{name} is to be left out but fits {', '.join(found[:5])}; give more of the path")
        dropped.update(found)
    kept = tuple(sample for sample in samples if sample.path.as_posix() not in dropped)
    return kept, tuple(sample for sample in samples if sample.path.as_posix() in dropped)
