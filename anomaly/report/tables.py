"""The tables of the report: everything that follows from its values by arithmetic."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from anomaly.conformal.guarantee import Guarantee, GuaranteeKind, images_needed
from anomaly.data.splits import CALIBRATION_SHARE
from anomaly.errors import DataError
from anomaly.metrics import Rate
from anomaly.report.charts import detection_chart
from anomaly.report.values import DetectionRate, Report, Scores

ALPHAS = (0.05, 0.02, 0.01, 0.005, 0.001)
"""False-alarm rates whose number of images the page lists"""
RELIABLE_SHARE = 0.9
"""Share of detected drawings from which a size counts as detected"""
_NEVER, _ALWAYS = np.array([252.0, 219.0, 203.0]), np.array([170.0, 214.0, 222.0])


@dataclass(frozen=True)
class ScoreRow:
    """Scores of one set of images, at least one."""

    name: str
    good: bool
    scores: Scores
    rejected: Rate
    """images with a score above 1"""
    lowest: float
    median: float
    highest: float


@dataclass(frozen=True)
class TighterGuarantee:
    """Numbers of images that a tighter guarantee needs."""

    alpha: float
    guarantee: GuaranteeKind
    num_calibration: int
    """calibration images of different parts, in total"""
    num_more: int
    """further calibration images of different parts"""
    num_images: int
    """good images of different parts in total, training images included"""


@dataclass(frozen=True)
class DetectionTable:
    """Detection rates of one kind of defect."""

    kind: str
    sizes: Mapping[float, float]
    """size -> pixels"""
    contrasts: tuple[float, ...]
    cells: Mapping[tuple[float, float], DetectionRate]
    """(contrast, size) -> rate"""
    smallest: Mapping[float, DetectionRate | None]
    """contrast -> smallest size from which all sizes are detected reliably; None if there is none"""
    chart: Markup


def score_rows(report: Report) -> list[ScoreRow]:
    """Arrange the scores in the rows of the page; sets without images are left out.

    Raises:
        DataError: a NaN score.
    """
    sets = [("Calibration good", True, report.calibration_scores)]
    if report.labelled is not None:
        sets.append(("Test good", True, report.labelled.good))
        sets += [(f"Defect: {kind}", False, scores) for kind, scores in report.labelled.defect.items()]
    for name, _, scores in sets:
        if np.isnan(scores).any():
            raise DataError(f"{name}: {int(np.isnan(scores).sum())} of {len(scores)} scores are NaN; leave them out")
    return [
        ScoreRow(
            name,
            good,
            scores,
            rejected_rate(scores),
            lowest=float(scores.min()),
            median=float(np.median(scores)),
            highest=float(scores.max()),
        )
        for name, good, scores in sets
        if len(scores)
    ]


def rejected_rate(scores: Scores) -> Rate:
    """Count the scores above the threshold."""
    return Rate(int((scores > 1).sum()), len(scores))


def tighter_guarantees(stated: Guarantee) -> tuple[TighterGuarantee, ...]:
    """List the guarantees of `ALPHAS` that the calibration cannot support, with the images that they need.

    Every image counts as a part group. Only a split calibration has a 95 % bound; otherwise all images calibrate.
    """
    is_split = stated.construction == "split"
    guarantees: tuple[GuaranteeKind, ...] = ("expected", "bound") if is_split else ("expected",)
    rows = []
    for alpha in ALPHAS:
        for guarantee in guarantees:
            needed = images_needed(alpha, guarantee=guarantee)
            if needed > stated.num_groups:
                in_total = math.ceil(needed / CALIBRATION_SHARE - 1e-9) if is_split else needed
                rows.append(TighterGuarantee(alpha, guarantee, needed, needed - stated.num_groups, in_total))
    return tuple(rows)


def detection_tables(rates: tuple[DetectionRate, ...]) -> list[DetectionTable]:
    """Arrange detection rates by kind in their order of appearance; rates of 0 drawings are left out."""
    tables = []
    for n, kind in enumerate(dict.fromkeys(rate.kind for rate in rates)):
        cells = {(r.contrast, r.size): r for r in rates if r.kind == kind and r.detected.num_trials}
        contrasts = tuple(sorted({contrast for contrast, _ in cells}))
        sizes = {r.size: r.size_px for r in sorted(cells.values(), key=lambda r: r.size)}
        smallest: dict[float, DetectionRate | None] = dict.fromkeys(contrasts)
        lines: dict[float, list[tuple[float, float]]] = {}
        for contrast in contrasts:
            line = [cells[contrast, size] for size in sizes if (contrast, size) in cells]
            lines[contrast] = [(r.size_px, r.detected.value) for r in line]
            for rate in reversed(line):
                if rate.detected.value < RELIABLE_SHARE:
                    break
                smallest[contrast] = rate
        if cells:
            chart = detection_chart(lines, name=f"detection {n}")
            tables.append(DetectionTable(kind, sizes, contrasts, cells, smallest, chart))
    return tables


def percent(share: float) -> str:
    """Format a share as a percentage, such as `1.6 %`; only exact shares are written as 0 % and 100 %."""
    value = 100 * share
    if value in (0, 100):
        return f"{value:.0f}\u00a0%"
    if 0 < abs(value) < 0.01:
        return "below 0.01\u00a0%"
    if 99.9 < value < 100:
        return "above 99.9\u00a0%"
    return f"{value:.2f}\u00a0%" if abs(value) < 1 else f"{value:.1f}\u00a0%"


def heat(share: float) -> str:
    """Colour of a table cell from warm (never detected) to cool (always detected), light enough for dark text."""
    red, green, blue = np.rint(_NEVER + (_ALWAYS - _NEVER) * share).astype(int)
    return f"#{red:02x}{green:02x}{blue:02x}"
