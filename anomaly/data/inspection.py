"""What a folder of images holds and what stands against learning from it, before anything is trained."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly.data.duplicates import Fingerprint, find_duplicates, fingerprint
from anomaly.data.findings import findings, listed
from anomaly.data.folders import Category, Sample, find_category, image_files
from anomaly.data.splits import find_part_groups, split
from anomaly.errors import DataError, ErrorCode, ImageError
from anomaly.imaging.header import Header, check_header, image_header
from anomaly.imaging.image_file import decode_stored, read_file, read_mask, white_level

Counts = dict[str, dict[str, int]]


@dataclass(frozen=True)
class BadFile:
    """A image or mask that cannot be used, with the code and the message of its `ImageError`."""

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
    """The split that would be used, in images and in groups; beside an `error` the numbers of its parts are 0."""

    num_part_groups: int
    largest_group: int
    num_train: int = 0
    num_calibration: int = 0
    num_calibration_groups: int = 0
    error: str = ""
    """why the images cannot be split, "" when they can"""


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """All that `inspect` found; paths are relative to `root`.

    Counts are by "train" and "test", and by "calibration_images" where the data set keeps images for calibration.
    """

    root: str
    name: str
    part_group: str | None
    seed: int
    kinds: Counts
    """images by kind, "good" or a defect"""
    sizes: Counts
    """images with a good header by "width×height", orientation applied"""
    pixels: Counts
    """images with a good header by bits and channels, as "16-bit grey\""""
    formats: Counts
    """images with a good header by format"""
    bad_files: tuple[BadFile, ...]
    unused: tuple[str, ...]
    """images that lie in none of the folders that are read"""
    defects_without_mask: tuple[str, ...]
    masks_without_image: tuple[str, ...]
    masks_of_other_size: tuple[str, ...]
    empty_masks: tuple[str, ...]
    equal_files: tuple[tuple[str, ...], ...]
    """files of equal bytes that stand in two parts, or under two kinds"""
    shared_files: tuple[tuple[str, ...], ...]
    """those of them that stand in two parts"""
    duplicates: tuple[DuplicatePair, ...]
    split: SplitPlan
    white: int
    """the stored value that would become 255 in 16-bit images; 255 when there are none"""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and the `findings` as dictionaries, sequences, strings and numbers, ready for JSON."""
        return asdict(self) | {"findings": [asdict(finding) for finding in findings(self)]}


class _Survey:
    """What is gathered while every file is read once."""

    def __init__(self, max_pixels: int) -> None:
        self.headers: dict[Path, Header] = {}
        self.digests: dict[Path, str] = {}
        self.fingerprints: dict[Path, Fingerprint] = {}
        self.maximum = 0
        self.masks_of_other_size: list[Path] = []
        self.empty_masks: list[Path] = []
        self._max_pixels = max_pixels

    def read_test(self, path: Path) -> bytes:
        """Note the bytes and the header of a image."""
        data = read_file(path, max_pixels=self._max_pixels)
        self.digests[path] = hashlib.sha256(data).hexdigest()
        header = image_header(data, name=str(path))
        check_header(header, name=str(path), max_pixels=self._max_pixels, frame="only")
        self.headers[path] = header
        return data

    def read_calibration_images(self, path: Path) -> NDArray[Any]:
        """Note the same, of a image whose pixels must be readable."""
        return decode_stored(self.read_test(path), name=str(path), max_pixels=self._max_pixels)

    def read_train(self, path: Path) -> None:
        """Note the pixels of a image too."""
        stored = self.read_calibration_images(path)
        self.fingerprints[path] = fingerprint(stored)
        if stored.dtype == np.uint16:
            self.maximum = max(self.maximum, int(stored.max()))

    def read_mask(self, path: Path, image: Path) -> None:
        """Note what is wrong with the mask of a image."""
        mask = read_mask(path, max_pixels=self._max_pixels)
        header = self.headers.get(image)
        if header is not None and mask.shape != (header.height, header.width):
            self.masks_of_other_size.append(path)
        if not mask.any():
            self.empty_masks.append(path)


def inspect(
    data: Path, *, part_group: str | None, seed: int, max_pixels: int, progress: Callable[[int, int], None]
) -> Inspection:
    """Look at every file of a category and at the split that `part_group` and `seed` make of it; nothing is written.

    Training images and masks are decoded; of test images only the bytes and the header are read. A bad file
    is noted and the inspection goes on. `progress` is called with the number of files read and their total.

    Raises:
        DataError: the folder is missing, empty, or no single product.
        UsageError: `part_group` is no regular expression.
    """
    category = find_category(data)
    images = category.train + category.calibration_images + category.test
    masks = {s.mask_path: s.path for s in category.test if s.mask_path is not None}
    survey = _Survey(max_pixels)
    steps: list[tuple[Path, Callable[[], object]]] = [
        *((s.path, partial(survey.read_train, s.path)) for s in category.train),
        *((s.path, partial(survey.read_calibration_images, s.path)) for s in category.calibration_images),
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
        shared_files=tuple(names for names, num_parts in equal_files.items() if num_parts > 1),
        duplicates=tuple(
            DuplicatePair(_name(one, data), _name(other, data), pair.similarity, pair.exact)
            for (one, other), pair in zip(pairs, duplicates, strict=True)
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
        part: dict(Counter(values[s.path] for s in samples if s.path in values).most_common())
        for part, samples in _parts(category).items()
    }


def _parts(category: Category) -> dict[str, tuple[Sample, ...]]:
    calibration_images = {"calibration_images": category.calibration_images} if category.calibration_images else {}
    return {"train": category.train, **calibration_images, "test": category.test}


def _pixels(header: Header) -> str:
    channels = {1: "grey", 2: "grey with alpha", 3: "colour", 4: "colour with alpha"}
    return f"{header.bits}-bit {channels[header.channels]}"


def _equal_files(category: Category, digests: Mapping[Path, str]) -> dict[tuple[str, ...], int]:
    """Return the names of equal files that stand in two parts or under two kinds, and the number of parts of each."""
    by_digest: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
    for part, samples in _parts(category).items():
        for sample in samples:
            if sample.path in digests:
                place = (part, sample.kind, _name(sample.path, category.root))
                by_digest[digests[sample.path]].append(place)
    across = [places for places in by_digest.values() if len({place[:2] for place in places}) > 1]
    found = {tuple(name for _, _, name in places): len({part for part, _, _ in places}) for places in across}
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
        [sample for sample in part if sample.path not in unusable]
        for part in (category.train, category.calibration_images)
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
        parts = split(samples, groups, seed=seed, stopping=False, given=calibration_images)
    except DataError as error:
        return SplitPlan(num_part_groups=num_part_groups, largest_group=largest_group, error=str(error))
    return SplitPlan(
        num_part_groups=num_part_groups,
        largest_group=largest_group,
        num_train=len(parts.train),
        num_calibration=len(parts.calibration_images),
        num_calibration_groups=len({groups[sample.path] for sample in parts.calibration_images}),
    )


def format_inspection(inspection: Inspection) -> str:
    """Return an inspection as text for the terminal: a table of counts, the split, and the findings."""
    plan = inspection.split
    parts = list(inspection.kinds)
    rows = [
        ["", *(part.replace("_", " ") for part in parts)],
        *(
            [name, *(_counted(counts, part) for part in parts)]
            for name, counts in (
                ("images", inspection.kinds),
                ("size", inspection.sizes),
                ("pixels", inspection.pixels),
                ("format", inspection.formats),
            )
        ),
    ]
    widths = [12, *(max(len(row[i]) for row in rows) for i in range(1, len(parts) + 1))]
    lines = [f"{inspection.name}  ({inspection.root})"]
    lines += ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.append(f"{'groups':<12}  {plan.num_part_groups}, the largest of {plan.largest_group}")
    if not plan.error:
        calibration_images = f"{plan.num_calibration} held out to calibrate, in {plan.num_calibration_groups} groups"
        lines.append(f"{'split':<12}  {plan.num_train} to train, {calibration_images}")
    if any(value.startswith("16-bit") for value in inspection.pixels["train"]):
        lines.append(f"{'white':<12}  {inspection.white}")
    found = findings(inspection)
    lines += ["", *(f"{finding.severity:<8}  {finding.text}" for finding in found)]
    if not any(finding.severity == "error" for finding in found):
        lines.append("nothing stands against training")
    return "\n".join(lines)


def _counted(counts: Counts, part: str) -> str:
    return listed([f"{num} {value}" for value, num in counts[part].items()]) or "none"
