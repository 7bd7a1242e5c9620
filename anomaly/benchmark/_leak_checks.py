"""The checks of `anomaly.benchmark.leaks`, one function each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from anomaly.benchmark.roles import ImageFile, Leak, Roles, Severity
from anomaly.data.duplicates import Fingerprint, find_duplicates
from anomaly.data.folders import Sample
from anomaly.data.splits import find_part_groups
from anomaly.errors import DataError, UsageError
from anomaly.imaging.header import image_header
from anomaly.imaging.image_file import decode_stored, read_file

NUM_NAMED = 5
"""Largest number of paths that a leak names"""
ALL_OF_TEST = "validation set equals test set"
SAME_PIXELS = "same pixels in two roles"
NEAR = "near-duplicates in two roles"
PART_GROUPS = "part groups across the split"
MASK_CHECKS = (
    "mask of another size than its image",
    "mask in a lossy format",
    "mask of more than two levels",
    "label or pixels from a resized mask",
)

Files = Mapping[Path, ImageFile]


def find_shared(roles: Roles, files: Files) -> list[Leak]:
    """Find files with equal bytes in roles that must not share an image."""
    found: dict[str, set[Path]] = {}
    texts: dict[str, list[str]] = {}
    for role, other, name in roles.pairs:
        used = {files[path].digest for path in roles.images(role)}
        files_of_role = {path.resolve() for path in roles.images(role)}
        shared = {path for path in roles.images(other) if files[path].digest in used}
        if shared:
            num_copies = sum(path.resolve() not in files_of_role for path in shared)
            copies = f", {num_copies} of them copied under another name" if num_copies else ""
            found.setdefault(name, set()).update(shared)
            texts.setdefault(name, []).append(f"{len(shared)} images of {other} are in {role} too{copies}")
    return [leak for name, shared in found.items() for leak in _leak(roles, name, "; ".join(texts[name]), shared)]


def find_whole_test(roles: Roles, files: Files) -> list[Leak]:
    """Find validation roles that hold the whole test set."""
    test = {files[path].digest for path in roles.test}
    validating = ("stopping", "selection", "calibration")
    whole = [role for role in validating if test <= {files[path].digest for path in roles.images(role)}]
    return _leak(roles, ALL_OF_TEST, f"every test image is in {' and '.join(whole)}", roles.test if whole else ())


def find_same_pixels(roles: Roles, files: Files) -> list[Leak]:
    """Find files with equal pixels and different bytes in roles that must not share an image."""
    shared: set[Path] = set()
    texts = []
    for role, other, _ in roles.pairs:
        digests = {files[path].digest for path in roles.images(role)}
        pixels = {_fingerprint(files[path]).sha256 for path in roles.images(role)}
        copies = {
            path
            for path in roles.images(other)
            if files[path].digest not in digests and _fingerprint(files[path]).sha256 in pixels
        }
        if copies:
            shared |= copies
            texts.append(f"{len(copies)} images of {other} have the pixels of an image of {role}, in another encoding")
    return _leak(roles, SAME_PIXELS, "; ".join(texts), shared)


def find_near_duplicates(roles: Roles, files: Files) -> list[Leak]:
    """Find nearly equal good images across the split, and between the split and the test set."""
    own = set(roles.train + roles.calibration + roles.stopping)
    test_good = set(roles.test_good) - own
    parts = [set(roles.train), set(roles.calibration), set(roles.stopping)]
    # two searches: similarity depends on the mean of all images, and the split was made without the test images
    near = _near_pairs(sorted(own), files)
    if roles.left_out is not None:
        across = {path for one, two in near if roles.left_out[one] != roles.left_out[two] for path in (one, two)}
    else:
        across = {
            path
            for pair in near
            if not any(set(pair) <= images for images in parts)
            for path in pair
            if path not in parts[0]
        }
    in_test = {
        test
        for pair in _near_pairs(sorted(own | test_good), files)
        for one, test in (pair, pair[::-1])
        if one in own and test in test_good
    }
    return [
        *_leak(roles, NEAR, "calibration or stopping images are nearly equal to training images or each other", across),
        *_leak(roles, NEAR, "good test images are nearly equal to training or calibration images", in_test, "note"),
    ]


def find_part_group_leaks(roles: Roles) -> list[Leak]:
    """Find part groups in roles that must not share any; test images count where the pattern or table covers all of them."""
    inside = tuple(path for path in roles.selection if path.is_relative_to(roles.root))  # the rest are other products
    groups = _part_groups(roles, roles.train + roles.calibration + roles.stopping)
    for part in (roles.test_good, roles.test_defect, inside):
        try:
            groups |= _part_groups(roles, part)
        except DataError:
            continue  # a pattern for the training images may not cover others
    shared: set[Path] = set()
    texts = []
    for role, other, _ in roles.pairs:
        if other == "test_defect":
            continue  # one part may have good and defective images
        used = {groups[path] for path in roles.images(role) if path in groups}
        members = {path for path in roles.images(other) if groups.get(path) in used}
        if members:
            shared |= members
            num_part_groups = len({groups[path] for path in members})
            texts.append(f"{num_part_groups} part groups of {role} have {len(members)} images in {other}")
    if roles.left_out is not None:
        parts = defaultdict(set)
        for path in roles.train:
            parts[groups[path]].add(roles.left_out[path])
        torn = {path for path in roles.train if len(parts[groups[path]]) > 1}
        if torn:
            shared |= torn
            texts.append(f"{len(torn)} images were scored with an image of their part group in the training set")
    return _leak(roles, PART_GROUPS, "; ".join(texts), shared)


def find_unreliable_masks(roles: Roles, files: Files, *, max_pixels: int) -> list[Leak]:
    """Find masks that were resized, compressed with loss, or blended."""
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
        *_leak(roles, size_name, "masks were resized independently of their images", other_size),
        *_leak(roles, lossy_name, "masks were compressed with loss, which changes their edges", lossy),
        *_leak(roles, levels_name, "masks hold 0 and more than one other value: blended or compressed", more_levels),
        *_leak(roles, resized_name, "masks are reduced to the network's size: small defects vanish", resized, severity),
    ]


def _leak(roles: Roles, name: str, description: str, images: Iterable[Path], severity: Severity = "leak") -> list[Leak]:
    """Give the leak of some images; nothing for no image."""
    names = sorted({p.relative_to(roles.root).as_posix() if p.is_relative_to(roles.root) else str(p) for p in images})
    return [Leak(name, description, tuple(names[:NUM_NAMED]), len(names), severity)] if names else []


def _near_pairs(paths: Sequence[Path], files: Files) -> list[tuple[Path, Path]]:
    pairs = find_duplicates([_fingerprint(files[path]) for path in paths])
    return [(paths[pair.first], paths[pair.second]) for pair in pairs if not pair.exact]


def _fingerprint(file: ImageFile) -> Fingerprint:
    if file.fingerprint is None:
        raise ValueError("pixels of a file that was not decoded")
    return file.fingerprint


def _part_groups(roles: Roles, paths: Iterable[Path]) -> dict[Path, str]:
    samples = [Sample(path, "good", False, None) for path in paths]
    outside = [sample.path for sample in samples if not sample.path.is_relative_to(roles.root)]
    if outside:
        raise UsageError(f"{outside[0]} is not in {roles.root}, and part groups are named by path: give paths below it")
    return find_part_groups(samples, root=roles.root, part_group=roles.part_group, duplicates=())
