"""Leaks between the images of a protocol: evidence from the files that were used, not from what a protocol says of itself.

Every image has one or more roles, and some roles must not meet:

    train          its pixels were learned from
    stopping       it gave a signal to stop by
    chosen_by      an epoch, a checkpoint or a recipe was selected by figures on it
    threshold_from     its score helped to set the threshold
    test           figures are measured on it, good or with a defect

Files are the same when their bytes are, whatever their names. Same pixels in files of other bytes, near-duplicates
(`anomaly.data.duplicates`) and groups (`anomaly.data.splits`) are looked for between the same roles.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np

from anomaly.data.duplicates import Fingerprint, find_duplicates, fingerprint
from anomaly.data.folders import Sample
from anomaly.data.splits import find_part_groups
from anomaly.errors import DataError, UsageError
from anomaly.imaging.header import Header, check_header, image_header
from anomaly.imaging.image_file import decode_stored, read_file

Severity = Literal["leak", "note"]
NUM_NAMED = 5

MUST_NOT_MEET = (
    ("threshold_from", "test", "threshold chosen on test"),
    ("stopping", "test", "epoch or stopping on test"),
    ("chosen_by", "test", "checkpoint or recipe chosen on test"),
    ("train", "test", "training images in test"),
    ("stopping", "threshold_from", "stopping = calibrating"),
    ("chosen_by", "threshold_from", "stopping = calibrating"),
    ("train", "threshold_from", "calibrating or stopping on training images"),
    ("train", "stopping", "calibrating or stopping on training images"),
    ("test_good", "test_defect", "one image good and defect"),
)
"""Pairs of roles that must not share an image, and the name of what it is when they do"""
ALL_OF_TEST = "validation = test"
SAME_PIXELS = "same pixels in two roles"
NEAR = "near-duplicates in two roles"
GROUPS = "groups across the split"
MASK_CHECKS = (
    "mask of another size than its image",
    "mask in a lossy format",
    "mask of more than two levels",
    "label or pixels from a resized mask",
)


@dataclass(frozen=True, kw_only=True)
class Roles:
    """The images of one measurement by what they were used for; `stopping` and `chosen_by` are empty for a last epoch."""

    root: Path
    """folder of the category: groups and messages name images below it by their path in it"""
    train: tuple[Path, ...]
    threshold_from: tuple[Path, ...]
    stopping: tuple[Path, ...]
    chosen_by: tuple[Path, ...]
    test_good: tuple[Path, ...]
    test_defect: tuple[Path, ...]
    masks: tuple[tuple[Path, Path], ...]
    """image and mask"""
    group: str
    """as of `anomaly.data.splits.find_part_groups`, "" for none"""
    labels_from: Literal["folder", "mask"]
    """what says that a test image shows a defect: its folder, or a mask that marks a pixel"""
    mask_size: Literal["own", "network"]
    """where masks are compared: at their own size, or reduced to the network's"""

    @property
    def test(self) -> tuple[Path, ...]:
        """Test images, good ones first."""
        return self.test_good + self.test_defect

    def images(self, role: str) -> tuple[Path, ...]:
        """Images of a role."""
        found: tuple[Path, ...] = getattr(self, role)
        return found


@dataclass(frozen=True)
class Leak:
    """One thing found: a "leak" spoils the figures, a "note" is to be known beside them."""

    name: str
    what: str
    paths: tuple[str, ...]
    """the first few, relative to the category where they are in it"""
    num: int
    """images concerned"""
    severity: Severity


@dataclass(frozen=True)
class _File:
    """What the roles are compared by."""

    digest: str
    header: Header
    fingerprint: Fingerprint | None


def num_checks(roles: Roles, *, near_duplicates: bool) -> int:
    """Count the checks that `find_leaks` makes: groups, masks and pixels are checked where there are any to check."""
    by_role = {name for _, _, name in MUST_NOT_MEET} | {ALL_OF_TEST}
    return len(by_role) + 2 * near_duplicates + bool(roles.group) + len(MASK_CHECKS) * bool(roles.masks)


def find_leaks(roles: Roles, *, near_duplicates: bool, max_pixels: int) -> list[Leak]:
    """Look for images that serve in two roles which must not meet, and for masks that cannot be trusted.

    Args:
        roles: what every image was used for.
        near_duplicates: decode every image too, to find same pixels in files of other bytes and nearly equal images;
            without it the bytes alone are compared.
        max_pixels: largest width × height that is decoded.

    Returns:
        What was found, leaks before notes. Nearly equal images are a leak between train, stopping and calibration images,
        which a split has to keep together, and a note between these and good test images, which came so.

    Raises:
        ImageError: a file that cannot be used.
        DataError: groups that cannot be named for the images to learn and to calibrate from.
        UsageError: no images to train, to set the threshold, or to test: an empty role proves nothing.
    """
    for role in ("train", "threshold_from", "test_good", "test_defect"):
        if not roles.images(role):
            raise UsageError(f"{role} holds no image of {roles.root}: leaks are found in the files that were used")
    paths = dict.fromkeys(
        chain(
            roles.train, roles.threshold_from, roles.stopping, roles.chosen_by, roles.test, (i for i, _ in roles.masks)
        )
    )
    files = {path: _read(path, decode=near_duplicates, max_pixels=max_pixels) for path in paths}
    found = [*_shared(roles, files), *_all_of_test(roles, files)]
    if near_duplicates:
        found += [*_same_pixels(roles, files), *_near(roles, files)]
    if roles.group:
        found += _groups(roles)
    found += _masks(roles, files, max_pixels=max_pixels)
    return sorted(found, key=lambda leak: leak.severity)


def stamp(leaks: Iterable[Leak], *, num_checks: int) -> str:
    """Say in one line what was found by so many checks."""

    def told(severity: Severity) -> str:
        return "; ".join(f"{leak.name} ({leak.num} images)" for leak in leaks if leak.severity == severity)

    leaks = list(leaks)
    verdict = f"LEAK: {told('leak')}" if told("leak") else f"no leak found ({num_checks} checks)"
    return f"{verdict}; note: {told('note')}" if told("note") else verdict


def _read(path: Path, *, decode: bool, max_pixels: int) -> _File:
    data = read_file(path, max_pixels=max_pixels)
    header = image_header(data, name=str(path))
    check_header(header, name=str(path), max_pixels=max_pixels, frame="only")
    seen = fingerprint(decode_stored(data, name=str(path), max_pixels=max_pixels)) if decode else None
    return _File(hashlib.sha256(data).hexdigest(), header, seen)


def _found(roles: Roles, name: str, what: str, images: Iterable[Path], severity: Severity = "leak") -> list[Leak]:
    """The leak of some images, none of no image."""
    names = sorted({p.relative_to(roles.root).as_posix() if p.is_relative_to(roles.root) else str(p) for p in images})
    return [Leak(name, what, tuple(names[:NUM_NAMED]), len(names), severity)] if names else []


def _shared(roles: Roles, files: Mapping[Path, _File]) -> list[Leak]:
    """Files of equal bytes in roles that must not meet."""
    found: dict[str, set[Path]] = {}
    told: dict[str, list[str]] = {}
    for role, other, name in MUST_NOT_MEET:
        used = {files[path].digest for path in roles.images(role)}
        files_of_role = {path.resolve() for path in roles.images(role)}
        shared = {path for path in roles.images(other) if files[path].digest in used}
        if shared:
            num_copies = sum(path.resolve() not in files_of_role for path in shared)
            copies = f", {num_copies} of them copied under another name" if num_copies else ""
            found.setdefault(name, set()).update(shared)
            told.setdefault(name, []).append(f"{len(shared)} images of {other} are in {role} too{copies}")
    return [leak for name, shared in found.items() for leak in _found(roles, name, "; ".join(told[name]), shared)]


def _all_of_test(roles: Roles, files: Mapping[Path, _File]) -> list[Leak]:
    """Roles of validation that hold the whole test set."""
    test = {files[path].digest for path in roles.test}
    validating = ("stopping", "chosen_by", "threshold_from")
    whole = [role for role in validating if test <= {files[path].digest for path in roles.images(role)}]
    return _found(roles, ALL_OF_TEST, f"{' and '.join(whole)} hold every test image", roles.test if whole else ())


def _same_pixels(roles: Roles, files: Mapping[Path, _File]) -> list[Leak]:
    """Files of other bytes and the same pixels in roles that must not meet."""
    shared: set[Path] = set()
    told = []
    for role, other, _ in MUST_NOT_MEET:
        digests = {files[path].digest for path in roles.images(role)}
        pixels = {_fingerprint(files[path]).sha256 for path in roles.images(role)}
        copies = {
            path
            for path in roles.images(other)
            if files[path].digest not in digests and _fingerprint(files[path]).sha256 in pixels
        }
        if copies:
            shared |= copies
            told.append(f"{len(copies)} images of {other} have the pixels of one of {role}, saved another way")
    return _found(roles, SAME_PIXELS, "; ".join(told), shared)


def _near(roles: Roles, files: Mapping[Path, _File]) -> list[Leak]:
    """Nearly equal good images across the split, and between it and test."""
    own = set(roles.train + roles.threshold_from + roles.stopping)
    test_good = set(roles.test_good) - own
    meeting = [set(roles.train), set(roles.threshold_from), set(roles.stopping)]
    # Two searches: similarity depends on the mean of all images, and the split was made without those of test.
    across = {
        path
        for pair in _near_pairs(sorted(own), files)
        if not any(set(pair) <= images for images in meeting)
        for path in pair
        if path not in meeting[0]
    }
    in_test = {
        test
        for pair in _near_pairs(sorted(own | test_good), files)
        for one, test in (pair, pair[::-1])
        if one in own and test in test_good
    }
    return [
        *_found(
            roles, NEAR, "calibration or stopping images are nearly equal to another of train or of each other", across
        ),
        *_found(roles, NEAR, "good test images are nearly equal to one to learn or calibrate from", in_test, "note"),
    ]


def _near_pairs(paths: Sequence[Path], files: Mapping[Path, _File]) -> list[tuple[Path, Path]]:
    pairs = find_duplicates([_fingerprint(files[path]) for path in paths])
    return [(paths[pair.first], paths[pair.second]) for pair in pairs if not pair.exact]


def _fingerprint(file: _File) -> Fingerprint:
    if file.fingerprint is None:
        raise ValueError("pixels are compared of decoded files")
    return file.fingerprint


def _groups(roles: Roles) -> list[Leak]:
    """Groups of one name in roles that must not meet; test images count where the pattern or table knows them all."""
    inside = tuple(path for path in roles.chosen_by if path.is_relative_to(roles.root))  # the rest are other products
    groups = _named(roles, roles.train + roles.threshold_from + roles.stopping)
    for part in (roles.test_good, roles.test_defect, inside):
        try:
            groups |= _named(roles, part)
        except DataError:
            continue  # a pattern written for the images to learn from says nothing of others
    shared: set[Path] = set()
    told = []
    for role, other, _ in MUST_NOT_MEET:
        if other == "test_defect":
            continue  # one part may be imaged good and with a defect
        used = {groups[path] for path in roles.images(role) if path in groups}
        members = {path for path in roles.images(other) if groups.get(path) in used}
        if members:
            shared |= members
            num_part_groups = len({groups[path] for path in members})
            told.append(f"{num_part_groups} groups of {role} have {len(members)} images in {other}")
    return _found(roles, GROUPS, "; ".join(told), shared)


def _named(roles: Roles, paths: Iterable[Path]) -> dict[Path, str]:
    samples = [Sample(path, "good", False, None) for path in paths]
    outside = [sample.path for sample in samples if not sample.path.is_relative_to(roles.root)]
    if outside:
        raise UsageError(f"{outside[0]} is not in {roles.root}, where groups are named by path: give paths below it")
    return find_part_groups(samples, root=roles.root, part_group=roles.group or None, duplicates=())


def _masks(roles: Roles, files: Mapping[Path, _File], *, max_pixels: int) -> list[Leak]:
    """Masks that were saved again by something that does not keep them."""
    other_size, lossy, more_levels = set(), set(), set()
    for image, mask in roles.masks:
        data = read_file(mask, max_pixels=max_pixels)
        header = image_header(data, name=str(mask))
        levels = np.flatnonzero(np.bincount(decode_stored(data, name=str(mask), max_pixels=max_pixels).ravel()))
        if (header.width, header.height) != (files[image].header.width, files[image].header.height):
            other_size.add(mask)
        if header.format == "jpeg" or (header.format == "webp" and b"VP8L" not in data):
            lossy.add(mask)
        if len(levels[levels > 0]) > 1:
            more_levels.add(mask)
    resized = [mask for _, mask in roles.masks] if roles.mask_size == "network" else []
    severity: Severity = "leak" if roles.labels_from == "mask" else "note"
    size_name, lossy_name, levels_name, resized_name = MASK_CHECKS
    return [
        *_found(roles, size_name, "masks were resized apart from their images", other_size),
        *_found(roles, lossy_name, "masks were compressed with loss: their edges are not what was drawn", lossy),
        *_found(roles, levels_name, "masks hold more than 0 and one other value: blended or compressed", more_levels),
        *_found(
            roles, resized_name, "masks are reduced to the network's size: small defects vanish", resized, severity
        ),
    ]
