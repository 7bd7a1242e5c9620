"""`BankRecord`: the part of the metadata that describes a bank of patches."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class BankRows:
    """Rows of the bank of one backbone."""

    rows: str
    """initialiser of the graph with the rows, (M, d)"""
    image: list[int]
    """(M,) number of the training image of each row"""
    cell: list[int] = field(default_factory=list)
    """(M,) place of each row in the grid, row by row; empty where the places are not known"""
    embedding: str | None = None
    """tensor of the graph with the patch embeddings of the images, (n, h, w, d); None where the graph has no such tensor"""
    usual: str | None = None
    """initialiser with the usual distance at each place, (h, w); None without such a scale"""


@dataclass(frozen=True)
class BankRecord:
    """A bank of patches whose rows come from single training images."""

    images: list[str]
    """names of the training images, without folders where they stay unique"""
    part_groups: list[int]
    """number of the part group of each training image"""
    sizes: list[list[int]]
    """height and width of each training image in pixels"""
    backbones: list[BankRows]
    grid: list[int]
    """height and width of the grid of patches; empty where it is not known"""
    cells: list[int]
    """cells of the grid in the region of interest; empty for all"""
    raw_scores: list[float]
    """uncalibrated score of each training image without its part group; empty for another construction than leave-one-out"""
    raw_peaks: list[float]
    """maximum of the uncalibrated map of each training image without its part group, as `raw_scores`"""

    def members(self, image: int) -> list[int]:
        """List the images in the part group of a training image, itself included."""
        group = self.part_groups[image]
        return [n for n, other in enumerate(self.part_groups) if other == group]

    @property
    def supports_extension(self) -> bool:
        """Whether rows of new images can be chosen and added."""
        return bool(self.grid) and all(part.embedding is not None and part.cell for part in self.backbones)


def read_bank_record(values: dict[str, Any]) -> BankRecord:
    """Build a record from its JSON values."""
    return BankRecord(**values | {"backbones": [BankRows(**part) for part in values["backbones"]]})


def short_names(paths: Collection[str]) -> list[str]:
    """Shorten paths to file names; equal names keep as many folders as make them unique.

    Args:
        paths: different paths.
    """
    parts = [path.replace("\\", "/").split("/") for path in paths]
    depth = [1] * len(parts)
    while True:
        names = ["/".join(part[-num:]) for part, num in zip(parts, depth, strict=True)]
        seen: dict[str, list[int]] = {}
        for n, name in enumerate(names):
            seen.setdefault(name, []).append(n)
        longer = [n for group in seen.values() if len(group) > 1 for n in group if depth[n] < len(parts[n])]
        if not longer:
            return names
        for n in longer:
            depth[n] += 1
