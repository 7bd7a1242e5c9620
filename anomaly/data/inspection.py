"""Inspection of a folder of images before training: counts, invalid files, duplicates, and the split."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from anomaly.data._survey import Survey
from anomaly.data.duplicates import find_duplicates
from anomaly.data.findings import Finding, find_problems
from anomaly.data.folders import Category, Sample, find_category, image_files
from anomaly.data.splits import find_part_groups, split
from anomaly.errors import DataError, ErrorCode, ImageError
from anomaly.imaging.header import Header
from anomaly.imaging.image_file import white_level

Counts = dict[str, dict[str, int]]


@dataclass(frozen=True)
class BadFile:
    """An invalid image or mask, with the code and the message of its `ImageError`."""

    path: str
    code: ErrorCode
    message: str


@dataclass(frozen=True)
class DuplicatePair:
    """Two training images of equal (`exact`) or nearly equal pixels; see `anomaly.data.duplicates`."""

    first: str
    second: str
    similarity: float
    exact: bool


@dataclass(frozen=True, kw_only=True)
class SplitPlan:
    """The planned split, in images and in part groups; after an `error` the numbers of its sides are 0."""

    num_part_groups: int
    largest_group: int
    num_train: int = 0
    num_calibration: int = 0
    num_calibration_groups: int = 0
    error: str | None = None
    """reason why the images cannot be split"""


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """Result of `inspect`; paths are relative to `root`.

    Counts have the keys "train" and "test", and "calibration_images" if the data set has its own calibration images.
    """

    root: str
    name: str
    part_group: str | None
    seed: int
    kinds: Counts
    """images by kind, "good" or a defect"""
    sizes: Counts
    """images with a valid header by "width×height", orientation applied"""
    pixels: Counts
    """images with a valid header by bits and channels, e.g. "16-bit grey\""""
    formats: Counts
    """images with a valid header by format"""
    bad_files: tuple[BadFile, ...]
    unused: tuple[str, ...]
    """images outside the folders of the layout"""
    defects_without_mask: tuple[str, ...]
    masks_without_image: tuple[str, ...]
    masks_of_other_size: tuple[str, ...]
    empty_masks: tuple[str, ...]
    equal_files: tuple[tuple[str, ...], ...]
    """files of equal bytes in two splits, or of two kinds"""
    shared_files: tuple[tuple[str, ...], ...]
    """`equal_files` in two splits"""
    duplicates: tuple[DuplicatePair, ...]
    split: SplitPlan
    white: int
    """stored value that would become 255 in 16-bit images; 255 without such images"""

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Findings, the worst first."""
        return find_problems(self)

    def to_dict(self) -> dict[str, Any]:
        """Convert the fields and the findings to dictionaries, sequences, strings and numbers for JSON."""
        return asdict(self) | {"findings": [asdict(finding) for finding in self.findings]}


def inspect(
    data: str | Path,
    *,
    part_group: str | None = None,
    seed: int = 0,
    max_pixels: int = 100_000_000,
    progress: Callable[[int, int], None] | None = None,
) -> Inspection:
    """Inspect every file of a category and plan its split; nothing is written.

    Training images and masks are decoded; of test images only the bytes and the header are read. An invalid file
    becomes a finding and does not stop the inspection.

    Args:
        data: folder of a category in a known layout, or a plain folder of good images.
        part_group: regular expression on the paths, or CSV of path and group, that joins the images of one part.
        seed: random seed of the split.
        max_pixels: largest width × height that is decoded.
        progress: function called after each file with the number of files read and their total.

    Returns:
        Counts, invalid files, duplicates, the planned split, and the findings.

    Raises:
        DataError: a missing or empty folder, or several products.
        UsageError: an invalid regular expression, or a path of another type.
    """
    category = find_category(data)
    data = category.root
    images = category.train + category.calibration_images + category.test
    masks = {s.mask_path: s.path for s in category.test if s.mask_path is not None}
    survey = Survey(max_pixels)
    steps: list[tuple[Path, Callable[[], object]]] = [
        *((s.path, partial(survey.read_train, s.path)) for s in category.train),
        *((s.path, partial(survey.read_calibration, s.path)) for s in category.calibration_images),
        *((s.path, partial(survey.read_test, s.path)) for s in category.test),
        *((mask, partial(survey.read_mask, mask, path)) for mask, path in masks.items()),
    ]
    bad_files = []
    unusable: set[Path] = set()
    for num_done, (path, read) in enumerate(steps, start=1):
        try:
            read()
        except ImageError as error:
            bad_files.append(BadFile(_name(path, data), error.code, str(error)))
            unusable.add(path)
        if progress is not None:
            progress(num_done, len(steps))

    paths = list(survey.fingerprints)
    duplicates = find_duplicates(list(survey.fingerprints.values()))
    pairs = [(paths[pair.first], paths[pair.second]) for pair in duplicates]
    known = {*(s.path for s in images), *masks, *category.stray_masks, *category.ignored}
    equal_files = _equal_files(category, survey.digests)
    return Inspection(
        root=str(data),
        name=category.name,
        part_group=part_group,
        seed=seed,
        kinds=_counts(category, {s.path: s.kind for s in images}),
        sizes=_counts(category, {path: f"{h.width}×{h.height}" for path, h in survey.headers.items()}),
        pixels=_counts(category, {path: _pixels(h) for path, h in survey.headers.items()}),
        formats=_counts(category, {path: h.format for path, h in survey.headers.items()}),
        bad_files=tuple(bad_files),
        unused=_names(set(image_files(data)) - known, data),
        defects_without_mask=_names((s.path for s in category.test if s.label and s.mask_path is None), data),
        masks_without_image=_names(category.stray_masks, data),
        masks_of_other_size=_names(survey.masks_of_other_size, data),
        empty_masks=_names(survey.empty_masks, data),
        equal_files=tuple(equal_files),
        shared_files=tuple(names for names, num_splits in equal_files.items() if num_splits > 1),
        duplicates=tuple(
            DuplicatePair(_name(first, data), _name(second, data), pair.similarity, pair.exact)
            for (first, second), pair in zip(pairs, duplicates, strict=True)
        ),
        split=_plan(category, unusable, part_group=part_group, seed=seed, duplicates=pairs),
        white=white_level(survey.maximum),
    )


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _names(paths: Iterable[Path], root: Path) -> tuple[str, ...]:
    return tuple(sorted(_name(path, root) for path in paths))


def _counts(category: Category, values: Mapping[Path, str]) -> Counts:
    return {
        name: dict(Counter(values[s.path] for s in samples if s.path in values).most_common())
        for name, samples in _splits(category).items()
    }


def _splits(category: Category) -> dict[str, tuple[Sample, ...]]:
    calibration = {"calibration_images": category.calibration_images} if category.calibration_images else {}
    return {"train": category.train, **calibration, "test": category.test}


def _pixels(header: Header) -> str:
    channels = {1: "grey", 2: "grey with alpha", 3: "colour", 4: "colour with alpha"}
    return f"{header.bits}-bit {channels[header.channels]}"


def _equal_files(category: Category, digests: Mapping[Path, str]) -> dict[tuple[str, ...], int]:
    """Names of the equal files in two splits or of two kinds -> the number of their splits."""
    by_digest: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
    for split_name, samples in _splits(category).items():
        for sample in samples:
            if sample.path in digests:
                place = (split_name, sample.kind, _name(sample.path, category.root))
                by_digest[digests[sample.path]].append(place)
    across = [places for places in by_digest.values() if len({place[:2] for place in places}) > 1]
    found = {tuple(name for _, _, name in places): len({name for name, _, _ in places}) for places in across}
    return dict(sorted(found.items()))


def _plan(
    category: Category,
    unusable: set[Path],
    *,
    part_group: str | None,
    seed: int,
    duplicates: Sequence[tuple[Path, Path]],
) -> SplitPlan:
    samples, calibration_images = (
        [sample for sample in side if sample.path not in unusable]
        for side in (category.train, category.calibration_images)
    )
    try:
        groups = find_part_groups(
            [*samples, *calibration_images], root=category.root, part_group=part_group, duplicates=duplicates
        )
    except DataError as error:
        return SplitPlan(num_part_groups=0, largest_group=0, error=str(error))
    sizes = Counter(groups.values())
    num_part_groups, largest_group = len(sizes), max(sizes.values(), default=0)
    try:
        sides = split(samples, groups, seed=seed, stopping=False, calibration_images=calibration_images)
    except DataError as error:
        return SplitPlan(num_part_groups=num_part_groups, largest_group=largest_group, error=str(error))
    return SplitPlan(
        num_part_groups=num_part_groups,
        largest_group=largest_group,
        num_train=len(sides.train),
        num_calibration=len(sides.calibration_images),
        num_calibration_groups=len({groups[sample.path] for sample in sides.calibration_images}),
    )
