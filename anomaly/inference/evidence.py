"""Evidence for a verdict: the nearest good patch of each region, from the bank of the model."""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly.imaging.pair_sheet import FRAME_LEFT, FRAME_RIGHT, Frame, sheet, tile
from anomaly.imaging.regions import Region
from anomaly.inference.artifact import Metadata
from anomaly.inference.bank import BankFile
from anomaly.inference.bank_graph import Rows
from anomaly.inference.grid import Box, Grid
from anomaly.inference.references import References
from anomaly.inference.scorer import OnnxScorer

MAX_PAIRS = 4
"""Largest number of regions on a sheet"""
LEAST_SHARE = 0.2
"""Side of the shown surroundings over the shorter side of the image"""


@dataclass(frozen=True)
class Evidence:
    """The nearest good patch of one region."""

    region: Region
    place: Box
    """patch of the region with the largest distance, in pixels of the scored image"""
    image: str
    """name of the training image with the nearest patch"""
    number: int
    """number of that training image"""
    box: Box
    """nearest patch, in pixels of the training image"""
    size: tuple[int, int]
    """height and width of the training image"""
    distance: float
    """distance of the two patches, in units of the usual distance at the place; 1 is usual"""
    reference: NDArray[np.uint8] | None = field(repr=False)
    """reduced training image, (h, w, 3) uint8 RGB; None where it is not stored"""

    def to_dict(self) -> dict[str, Any]:
        """Evidence as JSON values, without pictures."""
        return {
            "region": {name: getattr(self.region, name) for name in ("x", "y", "width", "height")},
            "place": self.place._asdict(),
            "image": self.image,
            "box": self.box._asdict(),
            "distance": round(self.distance, 4),
        }


class EvidenceFinder:
    """Finds the nearest good patches of a model with a bank. The second session opens at the first call of `find`.

    Args:
        scorer: exported model.
    """

    def __init__(self, scorer: OnnxScorer) -> None:
        self.metadata: Metadata = scorer.metadata
        self._path, self._device = Path(scorer.path), scorer.device
        self._lock = threading.Lock()

    @property
    def reason(self) -> str | None:
        """Reason why the model gives no evidence; None if it does."""
        bank = self.metadata.bank
        if bank is None:
            return f"{self._path.name} holds {self.metadata.detector!r} and no bank of patches, so it gives no evidence"
        if self.metadata.tiling is not None or not bank.supports_extension or not bank.grid:
            return f"{self._path.name} does not record the places of its patches, so it gives no evidence"
        return None

    @cached_property
    def references(self) -> References:
        """Stored training images beside the model."""
        return References(self._path, self.metadata)

    @cached_property
    def _bank(self) -> BankFile:
        return BankFile.open(self._path, device=self._device)  # type: ignore[arg-type]  # the session's own device

    def find(
        self, image: NDArray[np.uint8], regions: Sequence[Region], *, without: Collection[int] = ()
    ) -> list[Evidence]:
        """Find the nearest good patch of each region; empty for a model without evidence.

        Args:
            image: the scored image, (H, W, 3) uint8 RGB.
            regions: its regions.
            without: numbers of training images that do not count.
        """
        if self.reason is not None or not regions:
            return []
        with self._lock:
            patches = self._bank.embed(image[None])
        return [self._evidence(region, patches, image.shape[:2], set(without)) for region in regions]

    def _evidence(
        self, region: Region, patches: Sequence[Rows], size: Sequence[int], without: Collection[int]
    ) -> Evidence:
        bank = self._bank.bank
        grid = Grid((bank.grid[0], bank.grid[1]), (self.metadata.size[0], self.metadata.size[1]), self.metadata.resize)
        cells = grid.cells_in(Box(region.x, region.y, region.width, region.height), size)
        usable = np.intersect1d(cells, bank.cells) if bank.cells else cells
        cells = usable if len(usable) else cells
        scaled, nearest = [], []
        for part, rows, usual, patch in zip(bank.backbones, self._bank.rows, self._bank.usual, patches, strict=True):
            kept = np.flatnonzero(~np.isin(part.image, sorted(without)))
            y = patch[0].reshape(-1, patch.shape[-1])[cells]
            closest, distance = _nearest(y, rows[kept])
            scaled.append(distance if usual is None else distance / usual.ravel()[cells])
            nearest.append(kept[closest])
        at = int(np.sum(scaled, axis=0).argmax())
        backbone = int(np.argmax([each[at] for each in scaled]))
        part, row = bank.backbones[backbone], int(nearest[backbone][at])
        number = part.image[row]
        height, width = bank.sizes[number]
        return Evidence(
            region=region,
            place=grid.box(int(cells[at]), size),
            image=bank.images[number],
            number=number,
            box=grid.box(part.cell[row], (height, width)),
            size=(height, width),
            distance=float(scaled[backbone][at]),
            reference=self.references.picture(number),
        )


def _nearest(y: Rows, rows: Rows) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Nearest row of each patch (P, d), (P,), and its distance, (P,)."""
    at = (np.einsum("md,md->m", rows, rows) - 2 * y @ rows.T).argmin(axis=1)
    return at, np.linalg.norm(y - rows[at], axis=1)


def evidence_sheet(image: NDArray[np.uint8], found: Sequence[Evidence]) -> NDArray[np.uint8] | None:
    """Draw each region beside its nearest good patch, (h, w, 3) uint8 RGB; None without stored training images.

    Args:
        image: the scored image, (H, W, 3) uint8 RGB.
        found: evidence of its regions; the first `MAX_PAIRS` with a picture are drawn.
    """
    pairs: list[tuple[NDArray[np.uint8], NDArray[np.uint8], str]] = []
    for one in found:
        if one.reference is None or len(pairs) == MAX_PAIRS:
            continue
        shorter = min(image.shape[:2])
        share = min(1.0, max(LEAST_SHARE, 1.5 * max(one.region.width, one.region.height) / shorter))
        region = Frame(one.region.x, one.region.y, one.region.width, one.region.height)
        left = tile(image, region, share=share, colour=FRAME_LEFT)
        factors = one.reference.shape[1] / one.size[1], one.reference.shape[0] / one.size[0]
        right = tile(one.reference, Frame(*one.box).scaled(*factors), share=share, colour=FRAME_RIGHT)
        pairs.append((left, right, f"distance {one.distance:.2f} to {one.image}"))
    return sheet(pairs) if pairs else None
