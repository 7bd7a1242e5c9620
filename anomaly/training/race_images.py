"""Images of a race: a held-out part of the good images, and defects drawn onto it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from anomaly.data.folders import Sample
from anomaly.data.synthetic import DEFECTS, PASTED, draw_any_defect, estimate_foreground
from anomaly.errors import UsageError

MOST_TRAIN, MOST_HELD_OUT = 100, 40
"""Largest numbers of images that train the candidates and of held-out images"""
HELD_OUT_SHARE = 0.3
SIZES = (0.03, 0.06, 0.12, 0.24)
"""Longest extent of a drawn defect over the shorter side of the image"""
CONTRASTS = (0.1, 0.2, 0.4, 0.8)
"""Largest change of a drawn defect in hundreds of grey levels"""
NUM_DRAWN = 112
"""Number of drawn defects: one of each kind, size and contrast"""
LONGEST_SIDE = 1024
"""Side in pixels to which larger images are reduced before drawing"""

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class RaceSplit:
    """Good images of a race, each tuple ordered by path."""

    train: tuple[Sample, ...]
    held_out: tuple[Sample, ...]


@dataclass(frozen=True)
class DrawnImages:
    """Images with one drawn defect each."""

    images: tuple[Image, ...]
    """(H, W, 3) uint8 RGB"""
    bases: tuple[int, ...]
    """number of the held-out image under each defect"""


def split_for_race(samples: Sequence[Sample], part_groups: Mapping[Path, str], *, seed: int) -> RaceSplit:
    """Split good images for a race, whole part groups, bounded in number.

    Args:
        samples: good images.
        part_groups: group of each image by its path.
        seed: seed of the split.
    """

    def key(group: str) -> bytes:
        return hashlib.sha256(f"race:{seed}:{group}".encode(errors="surrogateescape")).digest()

    members: dict[str, list[Sample]] = {}
    for sample in samples:
        members.setdefault(part_groups[sample.path], []).append(sample)
    groups = sorted(members, key=key)
    target = min(MOST_HELD_OUT, HELD_OUT_SHARE * len(samples))
    held_out: list[Sample] = []
    train: list[Sample] = []
    for group in groups:
        if len(held_out) < target:
            held_out += members[group]
        elif len(train) < MOST_TRAIN:
            train += members[group]
    order = {sample.path: n for n, sample in enumerate(sorted(samples, key=lambda s: s.path.as_posix()))}
    return RaceSplit(
        *(
            tuple(sorted(part[:most], key=lambda s: order[s.path]))
            for part, most in ((train, MOST_TRAIN), (held_out, MOST_HELD_OUT))
        )
    )


def reduced(image: Image) -> Image:
    """Reduce an image (H, W, 3) with a side longer than `LONGEST_SIDE`."""
    scale = LONGEST_SIDE / max(image.shape[:2])
    if scale >= 1:
        return image
    size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def draw_defects(images: Sequence[Image], *, seed: int) -> DrawnImages:
    """Draw defects of every kind, size and contrast onto images in turn; invisible ones are left out.

    Args:
        images: good images (H, W, 3) uint8 RGB.
        seed: seed of kinds, places and shapes.
    """
    plan = [(kind, size, contrast) for kind in (*DEFECTS, *PASTED) for size in SIZES for contrast in CONTRASTS]
    order = np.random.default_rng(seed).permutation(len(plan))
    foregrounds = [estimate_foreground(image) for image in images]
    drawn, bases = [], []
    for number, at in enumerate(order[:NUM_DRAWN]):
        kind, size, contrast = plan[at]
        base, rng = number % len(images), np.random.default_rng((seed, number))
        try:
            image, _ = draw_any_defect(
                images[base],
                kind,
                size=size,
                contrast=contrast,
                foreground=foregrounds[base],
                sources=[images[int(rng.integers(len(images)))]],
                rng=rng,
            )
        except UsageError:  # too faint at its place
            continue
        drawn.append(image)
        bases.append(base)
    return DrawnImages(tuple(drawn), tuple(bases))
