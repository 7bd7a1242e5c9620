"""Leaks between the images of a protocol, found in the used files, not in the protocol's description.

Two files are equal if their bytes are, whatever their names. Equal pixels in different files, near-duplicates
(`anomaly.data.duplicates`) and part groups (`anomaly.data.splits`) are searched between the same roles.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

from anomaly.benchmark._leak_checks import (
    ALL_OF_TEST,
    MASK_CHECKS,
    find_near_duplicates,
    find_part_group_leaks,
    find_same_pixels,
    find_shared,
    find_unreliable_masks,
    find_whole_test,
)
from anomaly.benchmark.roles import MUST_NOT_MEET, ImageFile, Leak, Roles, Severity
from anomaly.data.duplicates import fingerprint
from anomaly.errors import UsageError
from anomaly.imaging.header import check_header, image_header
from anomaly.imaging.image_file import decode_stored, read_file


def num_checks(roles: Roles, *, near_duplicates: bool) -> int:
    """Count the checks of `find_leaks`; part groups, masks and pixels are checked where there are any."""
    by_role = {name for _, _, name in MUST_NOT_MEET} | {ALL_OF_TEST}
    by_group = roles.part_group is not None
    return len(by_role) + 2 * near_duplicates + by_group + len(MASK_CHECKS) * bool(roles.masks)


def find_leaks(roles: Roles, *, near_duplicates: bool, max_pixels: int) -> list[Leak]:
    """Find images in two roles that must not share any, and masks that are not reliable.

    Args:
        roles: images by their roles.
        near_duplicates: decode every image too, to find equal pixels in different files, and near-duplicates.
        max_pixels: largest width × height that is decoded.

    Returns:
        Leaks before notes. Near-duplicates are a leak between training, stopping and calibration images, which the split
        must keep together. They are a note between these and good test images, which the data set contains.

    Raises:
        ImageError: a file that cannot be used.
        DataError: training or calibration images without a part group.
        UsageError: no training, calibration or test images.
    """
    for role in ("train", "calibration", "test_good", "test_defect"):
        if not roles.images(role):
            raise UsageError(f"role {role} has no image of {roles.root}: give the files that were used")
    paths = dict.fromkeys(
        chain(roles.train, roles.calibration, roles.stopping, roles.selection, roles.test, (i for i, _ in roles.masks))
    )
    files = {path: _read(path, decode=near_duplicates, max_pixels=max_pixels) for path in paths}
    found = [*find_shared(roles, files), *find_whole_test(roles, files)]
    if near_duplicates:
        found += [*find_same_pixels(roles, files), *find_near_duplicates(roles, files)]
    if roles.part_group is not None:
        found += find_part_group_leaks(roles)
    found += find_unreliable_masks(roles, files, max_pixels=max_pixels)
    return sorted(found, key=lambda leak: leak.severity)


def stamp(leaks: Iterable[Leak], *, num_checks: int) -> str:
    """Summarise the leaks of a number of checks in one line."""
    leaks = list(leaks)

    def listed(severity: Severity) -> str:
        return "; ".join(f"{leak.name} ({leak.num} images)" for leak in leaks if leak.severity == severity)

    verdict = f"LEAK: {listed('leak')}" if listed("leak") else f"no leak found ({num_checks} checks)"
    return f"{verdict}; note: {listed('note')}" if listed("note") else verdict


def _read(path: Path, *, decode: bool, max_pixels: int) -> ImageFile:
    data = read_file(path, max_pixels=max_pixels)
    header = image_header(data, name=str(path))
    check_header(header, name=str(path), max_pixels=max_pixels, frame="only")
    pixels = fingerprint(decode_stored(data, name=str(path), max_pixels=max_pixels)) if decode else None
    return ImageFile(hashlib.sha256(data).hexdigest(), header, pixels)
