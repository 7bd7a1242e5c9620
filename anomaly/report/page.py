"""The report: one page, without a network, that says what a model guarantees, what it catches, and why it rejects a part.

The caller fills a `Report`; what follows from its figures by arithmetic (larger guarantees, smallest caught sizes, words
for rates) is derived here, so that the page cannot contradict itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from anomaly.conformal.calibration import Guarantee, GuaranteeKind, images_needed
from anomaly.data.splits import HELD_OUT_SHARE
from anomaly.errors import DataError, UsageError
from anomaly.metrics import Estimate, Rate
from anomaly.report.charts import Curve, catch_chart, curve_chart, score_chart
from anomaly.report.pictures import data_uri, mark_synthetic, reduce_picture
from anomaly.system.files import atomic_write

Image = NDArray[np.uint8]
Scores = NDArray[np.floating[Any]]

ALPHAS = (0.05, 0.02, 0.01, 0.005, 0.001)
"""False-alarm rates for which the page says how many images they need"""
CAUGHT_RELIABLY = 0.9
PRO_LIMIT = 0.3
_NEVER, _ALWAYS = np.array([252.0, 219.0, 203.0]), np.array([170.0, 214.0, 222.0])


@dataclass(frozen=True)
class Training:
    """What was trained and on which images.

    `reason` says why this detector; `findings` are whole sentences; `excluded` are the names of images left out by
    hand; `num_part_groups` counts the groups of all good images, calibration images included; `seconds` is keyed by step.
    """

    detector: str
    reason: str
    num_train: int
    num_stopping: int
    num_part_groups: int
    excluded: tuple[str, ...]
    findings: tuple[str, ...]
    config: Mapping[str, object]
    seconds: Mapping[str, float]


@dataclass(frozen=True)
class ScoredImage:
    """A image (H, W, 3) uint8 RGB beside its overlay, with its calibrated score.

    `kind` is `good` or the kind of its defect. The page reduces large pictures by `report_pictures.reduce_picture`; an
    overlay keeps its thin line where the map is laid over a image already reduced.
    """

    image: Image
    overlay: Image
    name: str
    kind: str
    score: float


@dataclass(frozen=True)
class Influence:
    """A calibration image and by which share the threshold would move without it, e.g. -0.12: it would fall by 12 %."""

    scored: ScoredImage
    threshold_change: float


@dataclass(frozen=True)
class Metric:
    """A figure of merit in [0, 1] with its 95 % interval; `meaning` is a sentence."""

    name: str
    estimate: Estimate
    meaning: str


@dataclass(frozen=True)
class Labelled:
    """What labelled test images show; the verdict is score > 1.

    `good` and `defect`, keyed by kind, are their scores (n,); `roc` is (false-alarm rate, share of defects found),
    `pro` (false-alarm rate of pixels, mean overlap), arrays of length 0 where there is no such curve. `misses` and
    `false_alarms` are the worst ones, worst first.
    """

    good: Scores
    defect: Mapping[str, Scores]
    metrics: tuple[Metric, ...]
    roc: Curve
    pro: Curve
    misses: tuple[ScoredImage, ...]
    false_alarms: tuple[ScoredImage, ...]


@dataclass(frozen=True)
class Catch:
    """How many drawn defects of one kind, size and contrast were rejected.

    `size` is the longest extent over the shorter side of the image, in (0, 1], `size_px` the same in pixels,
    `contrast` the largest change in hundreds of grey levels.
    """

    kind: str
    size: float
    size_px: float
    contrast: float
    caught: Rate


@dataclass(frozen=True)
class DrawnDefect:
    """A image with a drawn defect; `scored.kind` is the defect's kind, the other fields as in `Catch`."""

    scored: ScoredImage
    size: float
    size_px: float
    contrast: float


@dataclass(frozen=True)
class Speed:
    """A measured speed: `device` names hardware and provider, `includes` is a sentence on what was timed."""

    device: str
    batch_size: int
    images_per_second: float
    includes: str


@dataclass(frozen=True)
class Parity:
    """How far the exported file is from the trained model.

    Differences are the largest |a − b| / max(1, |a|) in calibrated units over `num_images` inputs; above `tolerance`
    the file is refused. `num_flips` counts verdicts that differ.
    """

    num_images: int
    score_difference: float
    map_difference: float
    tolerance: float
    num_flips: int


@dataclass(frozen=True)
class Report:
    """All that the page shows, in the order it is shown.

    Scores are calibrated: 0 = a typical good part, 1 = the threshold. `calibration_images` (n,) are those of the images that
    `guarantee` counts. Sequences and mappings may be empty and `labelled` and `parity` absent: the page then says what
    was not measured. `influential` are the highest-scoring calibration images, highest first.
    """

    category: str
    date: str
    training: Training
    guarantee: Guarantee
    calibration_images: Scores
    labelled: Labelled | None
    influential: tuple[Influence, ...]
    catches: tuple[Catch, ...]
    drawn: tuple[DrawnDefect, ...]
    speed: tuple[Speed, ...]
    parity: Parity | None
    provenance: Mapping[str, str]


@dataclass(frozen=True)
class ScoreRow:
    """Scores of one group of images, at least one; `rejected` are those above 1."""

    name: str
    good: bool
    scores: Scores
    rejected: Rate
    lowest: float
    median: float
    highest: float


@dataclass(frozen=True)
class TighterGuarantee:
    """What a tighter guarantee needs: calibration images in all, how many more, and images to take in all."""

    alpha: float
    guarantee: GuaranteeKind
    num_calibration: int
    num_more: int
    num_images: int


@dataclass(frozen=True)
class CatchTable:
    """The catches of one kind: `cells` is keyed by (contrast, size), `smallest` by contrast."""

    kind: str
    sizes: Mapping[float, float]
    """size -> pixels"""
    contrasts: tuple[float, ...]
    cells: Mapping[tuple[float, float], Catch]
    smallest: Mapping[float, Catch | None]
    chart: Markup


def write_report(path: Path, report: Report) -> None:
    """Write the report as one HTML file that loads nothing; equal reports give equal bytes.

    Raises:
        DataError: a score is NaN.
        UsageError: calibration scores of another number than the guarantee's, or a picture that is no uint8 image.
        OutputError: the file cannot be written.
    """
    if len(report.calibration_images) != report.guarantee.num_images:
        raise UsageError(
            f"{len(report.calibration_images)} calibration scores and a guarantee on {report.guarantee.num_images} images:"
            " give the scores that the threshold was set on"
        )
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "percent": percent, "heat": heat, "reduced": reduce_picture, "labelled": mark_synthetic, "data_uri": data_uri
    }  # fmt: skip
    package = resources.files("anomaly.report")
    template = environment.from_string(package.joinpath("report.html.j2").read_text(encoding="utf-8"))
    rows = score_rows(report)
    labelled = report.labelled
    false_alarms, misses = Rate(0, 0), Rate(0, 0)
    if labelled is not None:
        false_alarms = _rejected(labelled.good)
        found = [_rejected(scores) for scores in labelled.defect.values()]
        misses = Rate(sum(r.num_trials - r.num_hits for r in found), sum(r.num_trials for r in found))
    num_drawn = min((catch.caught.num_trials for catch in report.catches if catch.caught.num_trials), default=0)
    html = template.render(
        report=report,
        rows=rows,
        chart=score_chart([(_title(row), row.scores) for row in rows]),
        false_alarms=false_alarms,
        misses=misses,
        curves=_curves(labelled, false_alarms=false_alarms, misses=misses) if labelled else [],
        tighter=tighter_guarantees(report.guarantee.num_images),
        catch_tables=catch_tables(report.catches),
        caught_reliably=CAUGHT_RELIABLY,
        catch_reading=Rate(math.ceil(CAUGHT_RELIABLY * num_drawn), num_drawn),
        css=Markup(package.joinpath("report.css").read_text(encoding="utf-8")),
        per_thousand=lambda rate: math.ceil(1000 * rate - 1e-9),
    )
    with atomic_write(path) as partial:
        # file names that are not UTF-8 hold lone surrogates, which are shown as \udcXX
        partial.write_bytes(html.encode("utf-8", errors="backslashreplace"))


def tighter_guarantees(num_calibration: int) -> tuple[TighterGuarantee, ...]:
    """List the guarantees of `ALPHAS` that `num_calibration` images cannot keep, and what each of them needs."""
    guarantees: tuple[GuaranteeKind, ...] = ("expected", "bound")
    rows = []
    for alpha in ALPHAS:
        for guarantee in guarantees:
            needed = images_needed(alpha, guarantee=guarantee)
            if needed > num_calibration:
                in_all = math.ceil(needed / HELD_OUT_SHARE - 1e-9)
                rows.append(TighterGuarantee(alpha, guarantee, needed, needed - num_calibration, in_all))
    return tuple(rows)


def score_rows(report: Report) -> list[ScoreRow]:
    """Group the scores as the page shows them, groups without images left out.

    Raises:
        DataError: a score is NaN.
    """
    groups = [("Calibration good", True, report.calibration_images)]
    if report.labelled is not None:
        groups.append(("Test good", True, report.labelled.good))
        groups += [(f"Defect: {kind}", False, scores) for kind, scores in report.labelled.defect.items()]
    for name, _, scores in groups:
        if np.isnan(scores).any():
            raise DataError(f"{name}: {int(np.isnan(scores).sum())} of {len(scores)} scores are NaN; leave them out")
    return [
        ScoreRow(
            name,
            good,
            scores,
            _rejected(scores),
            lowest=float(scores.min()),
            median=float(np.median(scores)),
            highest=float(scores.max()),
        )
        for name, good, scores in groups
        if len(scores)
    ]


def _rejected(scores: Scores) -> Rate:
    return Rate(int((scores > 1).sum()), len(scores))


def _title(row: ScoreRow) -> str:
    count = row.rejected
    verdicts = f"{count.num_hits} rejected" if row.good else f"{count.num_trials - count.num_hits} missed"
    # a folder name that is no UTF-8 has no letters to draw
    name = row.name.encode("utf-8", errors="backslashreplace").decode()
    return f"{name}   ({count.num_trials:,} images, {verdicts})"


def _curves(labelled: Labelled, *, false_alarms: Rate, misses: Rate) -> list[tuple[str, str, Markup]]:
    """Return title, description and drawing of each curve there is."""
    curves = []
    if len(labelled.roc[0]):
        at_threshold = None
        if false_alarms.num_trials and misses.num_trials:
            at_threshold = (false_alarms.value, 1 - misses.value)
        drawing = curve_chart(
            labelled.roc, name="roc", x_label="good parts rejected", y_label="defective parts rejected", x_max=1,
            at_threshold=at_threshold,
        )  # fmt: skip
        words = "What other limits would give: each point of the line is one threshold."
        curves.append(("Parts: ROC curve", words, drawing))
    if len(labelled.pro[0]):
        drawing = curve_chart(
            labelled.pro, name="pro", x_label="normal pixels labelled", y_label="defect area labelled, mean over defects",
            x_max=PRO_LIMIT, at_threshold=None,
        )  # fmt: skip
        words = "How much of each defect the overlay marks, against how much normal surface it marks with it."
        curves.append(("Places: PRO curve", words, drawing))
    return curves


def catch_tables(catches: tuple[Catch, ...]) -> list[CatchTable]:
    """Arrange drawn defects by kind, contrast and size, kinds in their order of appearance; empty trials are left out.

    `smallest` is the smallest size from which on every size tried is caught in at least `CAUGHT_RELIABLY` of the cases.
    """
    tables = []
    for n, kind in enumerate(dict.fromkeys(catch.kind for catch in catches)):
        cells = {(c.contrast, c.size): c for c in catches if c.kind == kind and c.caught.num_trials}
        contrasts = tuple(sorted({contrast for contrast, _ in cells}))
        sizes = {c.size: c.size_px for c in sorted(cells.values(), key=lambda c: c.size)}
        smallest: dict[float, Catch | None] = dict.fromkeys(contrasts)
        lines: dict[float, list[tuple[float, float]]] = {}
        for contrast in contrasts:
            line = [cells[contrast, size] for size in sizes if (contrast, size) in cells]
            lines[contrast] = [(c.size_px, c.caught.value) for c in line]
            for catch in reversed(line):
                if catch.caught.value < CAUGHT_RELIABLY:
                    break
                smallest[contrast] = catch
        if cells:
            tables.append(CatchTable(kind, sizes, contrasts, cells, smallest, catch_chart(lines, name=f"catch {n}")))
    return tables


def percent(share: float) -> str:
    """Write a share in words fit for a table: `1.6 %`, never 0 or 100 % for what is not."""
    value = 100 * share
    if value in (0, 100):
        return f"{value:.0f}\u00a0%"
    if 0 < abs(value) < 0.01:
        return "below 0.01\u00a0%"
    if 99.9 < value < 100:
        return "above 99.9\u00a0%"
    return f"{value:.2f}\u00a0%" if abs(value) < 1 else f"{value:.1f}\u00a0%"


def heat(share: float) -> str:
    """Colour of a table cell from warm (never caught) to cool (always caught), light enough for dark text."""
    red, green, blue = np.rint(_NEVER + (_ALWAYS - _NEVER) * share).astype(int)
    return f"#{red:02x}{green:02x}{blue:02x}"
