"""The verb `replay`: check a finished run against its manifest and score its images again."""

from __future__ import annotations

import sys

from anomaly.runs.replay import TOLERANCE, ReplayReport, replay

__all__ = ["replay", "show"]


def show(report: ReplayReport) -> int:
    """Print the result; exit code 0 for equal rows, 1 for a row that differs."""
    if report.mismatch:
        print(f"{report.mismatch.path}: {report.mismatch.text}; this is the first row that differs")
        return 1
    equality = "identical"
    if not report.is_exact:
        equality = f"within {TOLERANCE:g}, the largest difference is {report.largest_difference:.2g}"
    print(
        f"{report.run}: {report.num_scored} of {report.num_images} images scored again, {equality};"
        " every file matches the manifest",
        file=sys.stderr,
    )
    return 0
