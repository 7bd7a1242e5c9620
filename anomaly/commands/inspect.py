"""The verb `inspect`: inspect a folder of images before training."""

from __future__ import annotations

from pathlib import Path

from anomaly.conformal.guarantee import tightest_alpha
from anomaly.data.findings import listed
from anomaly.data.inspection import Counts, Inspection
from anomaly.data.inspection import inspect as inspect_folder
from anomaly.system.progress import progress_bar
from anomaly.system.run_card import RunCard


def inspect(
    data: Path,
    *,
    part_group: str | None = None,
    seed: int = 0,
    max_pixels: int = 100_000_000,
    out: Path | None = None,
) -> Inspection:
    """Count and check the images of a category, and plan its part groups and its split.

    Args:
        data: folder of a category in a known layout, or a plain folder of good images.
        part_group: regular expression on the paths, or CSV of path and group, that joins the images of one part.
        seed: random seed of the split.
        max_pixels: largest width × height that is decoded.
        out: JSON file for the inspection; not written by default.

    Raises:
        DataError: a missing or empty folder, or several products.
    """
    card = RunCard("inspect", config=dict(locals()))
    with progress_bar("inspect the files") as report:
        inspection = inspect_folder(data, part_group=part_group, seed=seed, max_pixels=max_pixels, progress=report)
    if out is not None:
        card.facts["result"] = inspection.to_dict()
        card.write(out)
    return inspection


def show(inspection: Inspection) -> None:
    """Print an inspection."""
    print(format_inspection(inspection))


def format_inspection(inspection: Inspection) -> str:
    """Format an inspection for the terminal: a table of counts, the split, and the findings."""
    plan = inspection.split
    splits = list(inspection.kinds)
    rows = [
        ["", *(name.replace("_", " ") for name in splits)],
        *(
            [title, *(_counted(counts, name) for name in splits)]
            for title, counts in (
                ("images", inspection.kinds),
                ("size", inspection.sizes),
                ("pixels", inspection.pixels),
                ("format", inspection.formats),
            )
        ),
    ]
    widths = [12, *(max(len(row[i]) for row in rows) for i in range(1, len(splits) + 1))]
    lines = [f"{inspection.name}  ({inspection.root})"]
    lines += ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.append(f"{'part groups':<12}  {plan.num_part_groups}, the largest of {plan.largest_group}")
    if plan.error is None:
        calibration = f"{plan.num_calibration} for calibration, in {plan.num_calibration_groups} groups"
        lines.append(f"{'split':<12}  {plan.num_train} for training, {calibration}")
        best = [
            f"{tightest_alpha(num, guarantee='expected'):.2%} with --calibration {construction}"
            for construction, num in (("split", plan.num_calibration_groups), ("leave_one_out", plan.num_part_groups))
        ]
        lines.append(f"{'guarantee':<12}  smallest expected rate of false alarms: {', '.join(best)}")
    if any(value.startswith("16-bit") for value in inspection.pixels["train"]):
        lines.append(f"{'white':<12}  {inspection.white}")
    findings = inspection.findings
    lines += ["", *(f"{finding.severity:<8}  {finding.text}" for finding in findings)]
    if not any(finding.severity == "error" for finding in findings):
        lines.append("ready for training")
    return "\n".join(lines)


def _counted(counts: Counts, split: str) -> str:
    return listed([f"{num} {value}" for value, num in counts[split].items()]) or "none"
