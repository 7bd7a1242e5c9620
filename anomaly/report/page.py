"""The report: one self-contained page about the guarantee, the detected defects, and the reasons of a verdict.

The caller fills a `Report`. Everything that follows from its values is derived in `anomaly.report.tables`.
"""

from __future__ import annotations

import math
from importlib import resources
from pathlib import Path

import jinja2
from markupsafe import Markup

from anomaly.errors import UsageError
from anomaly.metrics import Rate
from anomaly.report.charts import curve_chart, score_chart
from anomaly.report.pictures import data_uri, label_synthetic, reduce_picture
from anomaly.report.tables import (
    RELIABLE_SHARE,
    ScoreRow,
    detection_tables,
    heat,
    percent,
    rejected_rate,
    score_rows,
    tighter_guarantees,
)
from anomaly.report.values import LabelledResults, Report
from anomaly.system.files import atomic_write

PRO_MAX_FPR = 0.3
"""False-alarm rate of pixels at the right end of the PRO curve"""


def write_report(path: str | Path, report: Report) -> None:
    """Write the report as one HTML file that loads nothing; equal reports give equal bytes.

    Args:
        path: file to write.
        report: values of the page.

    Raises:
        DataError: a NaN score.
        UsageError: numbers of calibration scores and guaranteed images that differ, or a picture that is not uint8 RGB.
        OutputError: the file cannot be written.
    """
    if len(report.calibration_scores) != report.guarantee.num_images:
        raise UsageError(
            f"{len(report.calibration_scores)} calibration scores and a guarantee on {report.guarantee.num_images} images:"
            " give the scores that set the threshold"
        )
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "percent": percent, "heat": heat, "reduced": reduce_picture, "synthetic": label_synthetic, "data_uri": data_uri
    }  # fmt: skip
    package = resources.files("anomaly.report")
    template = environment.from_string(package.joinpath("report.html.j2").read_text(encoding="utf-8"))
    rows = score_rows(report)
    labelled = report.labelled
    false_alarms, misses = Rate(0, 0), Rate(0, 0)
    if labelled is not None:
        false_alarms = rejected_rate(labelled.good)
        rejected = [rejected_rate(scores) for scores in labelled.defect.values()]
        misses = Rate(sum(r.num_trials - r.num_hits for r in rejected), sum(r.num_trials for r in rejected))
    num_drawn = min((r.detected.num_trials for r in report.detection_rates if r.detected.num_trials), default=0)
    html = template.render(
        report=report,
        rows=rows,
        chart=score_chart([(_title(row), row.scores) for row in rows]),
        false_alarms=false_alarms,
        misses=misses,
        curves=_curves(labelled, false_alarms=false_alarms, misses=misses) if labelled else [],
        tighter=tighter_guarantees(report.guarantee),
        detection_tables=detection_tables(report.detection_rates),
        reliable_share=RELIABLE_SHARE,
        example_rate=Rate(math.ceil(RELIABLE_SHARE * num_drawn), num_drawn),
        css=Markup(package.joinpath("report.css").read_text(encoding="utf-8")),
        per_thousand=lambda rate: math.ceil(1000 * rate - 1e-9),
    )
    with atomic_write(path) as partial:
        # file names that are not UTF-8 hold lone surrogates, which are shown as \udcXX
        partial.write_bytes(html.encode("utf-8", errors="backslashreplace"))


def _title(row: ScoreRow) -> str:
    count = row.rejected
    verdicts = f"{count.num_hits} rejected" if row.good else f"{count.num_trials - count.num_hits} missed"
    # a folder name that is not UTF-8 has characters that cannot be drawn
    name = row.name.encode("utf-8", errors="backslashreplace").decode()
    return f"{name}   ({count.num_trials:,} images, {verdicts})"


def _curves(labelled: LabelledResults, *, false_alarms: Rate, misses: Rate) -> list[tuple[str, str, Markup]]:
    """Give title, description and drawing of each curve."""
    curves = []
    if len(labelled.roc[0]):
        at_threshold = None
        if false_alarms.num_trials and misses.num_trials:
            at_threshold = (false_alarms.value, 1 - misses.value)
        drawing = curve_chart(
            labelled.roc, name="roc", x_label="good parts rejected", y_label="defective parts rejected", x_max=1,
            at_threshold=at_threshold,
        )  # fmt: skip
        curves.append(("Parts: ROC curve", "Each point of the line is one threshold.", drawing))
    if len(labelled.pro[0]):
        drawing = curve_chart(
            labelled.pro, name="pro", x_label="normal pixels above the threshold",
            y_label="defect area above the threshold, mean over defects", x_max=PRO_MAX_FPR, at_threshold=None,
        )  # fmt: skip
        text = "Share of each defect above a threshold, over the share of the normal surface above it."
        curves.append(("Places: PRO curve", text, drawing))
    return curves
