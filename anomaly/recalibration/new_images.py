"""New good images for an extension or a calibration: read, checked against the training images of the model."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from anomaly.data.duplicates import duplicate_files
from anomaly.data.folders import Sample
from anomaly.data.splits import find_part_groups
from anomaly.errors import DataError, ImageError
from anomaly.imaging.header import image_header
from anomaly.imaging.image_file import decode_image, read_file, read_image, stored_maximum
from anomaly.imaging.statistics import image_statistics
from anomaly.inference.artifact import HASH_LENGTH, Metadata
from anomaly.inference.bank import BankFile
from anomaly.inference.bank_graph import Rows
from anomaly.system.files import sha256_of
from anomaly.system.progress import progress_bar

MAX_COPY_DISTANCE = 0.02
"""Distance of a copy's patches from the rows of its original, in units of the length of a typical row"""
MIN_COPY_ROWS = 3
"""Smallest number of rows of an image that identify its copy"""


class Candidates(NamedTuple):
    """Patches of one image that may become rows."""

    cells: NDArray[np.intp]
    """(P,) places in the grid"""
    patches: list[Rows]
    """(P, d) for each backbone"""


@dataclass(frozen=True)
class NewImages:
    """Readable new images, without copies."""

    paths: list[str]
    white: int
    max_pixels: int
    hashes: list[str] = field(default_factory=list)
    """first digits of the SHA-256 of each file"""
    sizes: list[tuple[int, int]] = field(default_factory=list)
    """height and width of each image in pixels"""
    statistics: list[dict[str, float]] = field(default_factory=list)
    candidates: list[Candidates] = field(default_factory=list)
    copies: list[tuple[str, str]] = field(default_factory=list)
    """left-out copies: name of the copy, and of its original"""

    def read(self, number: int) -> NDArray[np.uint8]:
        """Read an image, (H, W, 3) uint8 RGB."""
        return read_image(self.paths[number], white=self.white, max_pixels=self.max_pixels)

    def count_sizes(self) -> dict[str, int]:
        """Count the images of each size `width×height`."""
        return dict(Counter(f"{width}×{height}" for height, width in self.sizes))


def training_images_among(paths: Sequence[str], metadata: Metadata) -> list[str]:
    """List the files that are training images of a model, by their SHA-256."""
    known = set(metadata.training_hashes)
    return [path for path in paths if known and Path(path).is_file() and sha256_of(path)[:HASH_LENGTH] in known]


def read_new_images(paths: Sequence[str], bank: BankFile, *, num_patches: int, seed: int, max_pixels: int) -> NewImages:
    """Read new images of a bank; copies of its images and of each other are left out and named.

    A copy has the bytes of its original, or patches equal to the rows of its original at their places.

    Args:
        paths: image files.
        bank: bank to compare with.
        num_patches: largest number of candidates of an image, drawn at random.
        seed: seed of the draws.
        max_pixels: largest width × height that is decoded.

    Raises:
        DataError: images that cannot be read, or with another depth than the training images.
    """
    new = NewImages([], bank.metadata.white, max_pixels)
    names = dict(zip(bank.metadata.training_hashes, bank.bank.images, strict=False))
    errors: list[str] = []
    with progress_bar("read the new images") as report:
        for done, path in enumerate(paths):
            report(done + 1, len(paths))
            try:
                digest, image = sha256_of(path)[:HASH_LENGTH], _read(path, bank.metadata, max_pixels=max_pixels)
                bank.metadata.check_size(image, name=path)
            except (ImageError, OSError) as error:
                errors.append(str(error))
                continue
            patches = [one[0].reshape(-1, one.shape[-1]) for one in bank.embed(image[None])]
            original = names.get(digest) or _original(bank, patches)
            if original is not None:
                new.copies.append((Path(path).name, original))
                continue
            names[digest] = Path(path).name
            usable = np.array(bank.bank.cells, dtype=np.intp) if bank.bank.cells else np.arange(len(patches[0]))
            cells = np.random.default_rng((seed, len(new.paths))).permutation(usable)[:num_patches]
            new.paths.append(path)
            new.hashes.append(digest)
            new.sizes.append((image.shape[0], image.shape[1]))
            new.statistics.append(image_statistics(image))
            new.candidates.append(Candidates(cells, [one[cells] for one in patches]))
    if errors:
        raise DataError(
            f"{len(errors)} of {len(paths)} new images cannot be used, first: {errors[0]}; remove them and try again"
        )
    return new


def part_group_numbers(
    paths: Sequence[str], *, source: str, part_group: str | None, first: int, max_pixels: int
) -> list[int]:
    """Number the part groups of new images; near-duplicates are one group.

    Args:
        paths: image files.
        source: folder, pattern or list of the images.
        part_group: regular expression on the paths, or CSV of path and group; None groups near-duplicates alone.
        first: number of the first group.
        max_pixels: largest width × height that is decoded.
    """
    samples = [Sample(Path(path), "good", False, None) for path in paths]
    parents = {sample.path.parent.absolute().as_posix() for sample in samples}
    root = Path(source) if Path(source).is_dir() else Path(os.path.commonpath(parents))
    if not Path(source).is_dir():
        samples = [Sample(sample.path.absolute(), "good", False, None) for sample in samples]
    duplicates = duplicate_files([sample.path for sample in samples], max_pixels=max_pixels)
    groups = find_part_groups(samples, root=root, part_group=part_group, duplicates=duplicates)
    numbers = {group: first + n for n, group in enumerate(dict.fromkeys(groups[s.path] for s in samples))}
    return [numbers[groups[s.path]] for s in samples]


def _read(path: str, metadata: Metadata, *, max_pixels: int) -> NDArray[np.uint8]:
    """Read an image of the depth of the training images.

    Raises:
        ImageError: an image that cannot be read, or of another depth.
    """
    data, white = read_file(path, max_pixels=max_pixels), metadata.white
    bits = image_header(data, name=path).bits
    if bits > 8 and stored_maximum(path, max_pixels=max_pixels) > white:
        raise ImageError(
            "unsupported_pixels",
            f"{path}: {bits} bits with values above {white}, the white of this model; save it as its training images"
            " were saved",
        )
    if bits <= 8 and white > 255:
        raise ImageError(
            "unsupported_pixels",
            f"{path}: {bits} bits, and the training images had 16 bits with white {white}; save it with 16 bits",
        )
    return decode_image(data, name=path, white=white, max_pixels=max_pixels)


def _original(bank: BankFile, patches: Sequence[Rows]) -> str | None:
    """Name of the image of the bank whose rows are patches of this image at the same places; None if there is none.

    Args:
        bank: opened file.
        patches: patches (P, d) of the image for each backbone.
    """
    worst = np.zeros(len(bank.bank.images))
    num_rows = np.zeros(len(bank.bank.images), dtype=np.int64)
    for part, rows, patch in zip(bank.bank.backbones, bank.rows, patches, strict=True):
        length = float(np.median(np.linalg.norm(rows, axis=1)))
        np.maximum.at(worst, part.image, np.linalg.norm(patch[part.cell] - rows, axis=1) / length)
        np.add.at(num_rows, part.image, 1)
    found = np.flatnonzero((num_rows >= MIN_COPY_ROWS) & (worst <= MAX_COPY_DISTANCE))
    return bank.bank.images[int(found[0])] if len(found) else None
