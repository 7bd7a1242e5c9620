"""The roles of images in a protocol, and the leaks between them.

* train: images for learning
* stopping: images that gave the stopping signal
* selection: images whose figures selected an epoch, a checkpoint or a recipe
* calibration: images whose scores set the threshold
* test: images of the figures, good or with a defect
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from anomaly.data.duplicates import Fingerprint
from anomaly.imaging.header import Header

Severity = Literal["leak", "note"]

MUST_NOT_MEET = (
    ("calibration", "test", "threshold chosen on test"),
    ("stopping", "test", "stopping epoch chosen on test"),
    ("selection", "test", "checkpoint or recipe chosen on test"),
    ("train", "test", "training images in test"),
    ("stopping", "calibration", "stopping or selection images in calibration"),
    ("selection", "calibration", "stopping or selection images in calibration"),
    ("train", "calibration", "training images in calibration or stopping"),
    ("train", "stopping", "training images in calibration or stopping"),
    ("test_good", "test_defect", "one image labelled good and defective"),
)
"""Pairs of roles that must not share an image, with the name of the leak"""


@dataclass(frozen=True, kw_only=True)
class Roles:
    """The images of one measurement by their roles."""

    root: Path
    """folder of the category; part groups and messages use paths relative to it"""
    train: tuple[Path, ...]
    calibration: tuple[Path, ...]
    stopping: tuple[Path, ...]
    """empty where the last epoch was taken"""
    selection: tuple[Path, ...]
    """empty where nothing was selected by figures"""
    test_good: tuple[Path, ...]
    test_defect: tuple[Path, ...]
    masks: tuple[tuple[Path, Path], ...]
    """image and mask"""
    part_group: str | None
    """as in `anomaly.data.splits.find_part_groups`; None for no part groups"""
    labels_from: Literal["folder", "mask"]
    """source of a test image's label: its folder, or a mask with a defect pixel"""
    mask_size: Literal["own", "network"]
    """size at which masks are compared: their own, or the network's"""
    left_out: Mapping[Path, int] | None = None
    """part group that was left out when an image was scored that trains and calibrates; None where no image does both"""

    @property
    def pairs(self) -> tuple[tuple[str, str, str], ...]:
        """Pairs of roles that must not share an image; training and calibration may, where each image was left out."""
        return tuple(p for p in MUST_NOT_MEET if self.left_out is None or p[:2] != ("train", "calibration"))

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
    """One finding: a "leak" biases the figures, a "note" must be stated beside them."""

    name: str
    description: str
    paths: tuple[str, ...]
    """the first few, relative to the category where they lie below it"""
    num: int
    """number of images"""
    severity: Severity


@dataclass(frozen=True)
class ImageFile:
    """The facts by which the files of two roles are compared."""

    digest: str
    header: Header
    fingerprint: Fingerprint | None
    """None where the image was not decoded"""
