"""`Race`: the stored result of a race between detectors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class RaceRow:
    """Results of one candidate on held-out good images and on defects drawn onto them."""

    candidate: str
    """name in the table"""
    auroc: float
    """probability that a drawn defect scores higher than a held-out good image"""
    difference_error: float
    """standard error of the AUROC's difference from the best candidate's; 0 for the best one"""
    detected: float
    """share of drawn defects above 95 % of the held-out good images"""
    threshold_spread: float
    """standard deviation of this threshold over resampled good images, in distances from the median score"""
    milliseconds: float
    """time to score an image on one processor core"""
    seconds: float
    """duration of the candidate's training and scoring; candidates with a shared fit share it"""


@dataclass(frozen=True)
class LeftOut:
    """A candidate that did not race."""

    candidate: str
    reason: str
    """one sentence without its full stop"""


@dataclass(frozen=True)
class Race:
    """A race between detectors on good images alone."""

    winner: str
    """name of the chosen candidate"""
    reason: str
    """reason for the choice"""
    rows: tuple[RaceRow, ...]
    """results, in the order of preference between equal candidates"""
    left_out: tuple[LeftOut, ...]
    num_train: int
    """images that trained the candidates"""
    num_held_out: int
    """good images that the candidates scored without training on them"""
    num_drawn: int
    """defects drawn onto the held-out images"""
    budget_ms: float | None
    """largest permitted time to score an image in milliseconds; None for any"""
    seconds: float

    def lines(self) -> list[str]:
        """Write the race as the lines of a text table, followed by the candidates left out and the reason."""
        width = max([len(row.candidate) for row in self.rows], default=0)
        head = f"{'candidate':{width}}  AUROC  detected  threshold spread  ms/image  seconds"
        rows = [
            f"{row.candidate:{width}}  {100 * row.auroc:5.1f}  {100 * row.detected:6.1f} %"
            f"  {100 * row.threshold_spread:14.0f} %  {row.milliseconds:8.1f}  {row.seconds:7.1f}"
            + ("  <- chosen" if row.candidate == self.winner else "")
            for row in self.rows
        ]
        skipped = [f"left out: {out.candidate}: {out.reason}" for out in self.left_out]
        counts = (
            f"race: {len(self.rows)} candidates trained on {self.num_train} good images, scored on {self.num_held_out}"
            f" others and on {self.num_drawn} drawn defects, in {self.seconds:.0f} s"
        )
        table = [counts, head, *rows] if rows else ["no race"]
        return [*table, *skipped, f"chosen: {self.winner}: {self.reason}"]


def race_of(values: Mapping[str, Any]) -> Race:
    """Read a race from its JSON object.

    Raises:
        TypeError: missing or unknown fields.
    """
    rows = tuple(RaceRow(**row) for row in values["rows"])
    left_out = tuple(LeftOut(**out) for out in values["left_out"])
    return Race(**{**values, "rows": rows, "left_out": left_out})
