"""What a calibration with marks tells: how the limit moved, and what that does to the marked images."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly.recalibration.labelled_images import Marked


def mark_report(
    marked: Marked, *, num_earlier: int, before: NDArray[np.float64], after: NDArray[np.float64]
) -> dict[str, Any]:
    """Give the certificate's entry on the marks, JSON values; names of images without their folders.

    Args:
        marked: the images.
        num_earlier: goods of earlier calibrations that still count.
        before: scores of the images by the file as it was, 1 is its limit.
        after: scores by the new file.
    """
    is_good = np.arange(len(before)) < marked.num_good

    def count(chosen: NDArray[np.bool_]) -> int:
        return int(np.count_nonzero(chosen))

    return {
        "source": marked.source,
        "num_good": marked.num_good,
        "num_good_earlier": num_earlier,
        "num_defect": len(before) - marked.num_good,
        "copies_left_out": [Path(path).name for path in marked.copies],
        "good_like_defect": [[Path(path).name for path in pair] for pair in marked.alike],
        "good_rejected": [count(is_good & (scores > 1)) for scores in (before, after)],
        "defects_accepted": [count(~is_good & (scores <= 1)) for scores in (before, after)],
    }


def tell(marks: dict[str, Any], moved: dict[str, Any]) -> None:
    """Print what the marks did, and warn of what they cost on standard error."""
    earlier = f", {marks['num_good_earlier']} of earlier calibrations" if marks["num_good_earlier"] else ""
    copies = (
        f"; {len(marks['copies_left_out'])} show what another shows and are left out"
        if marks["copies_left_out"]
        else ""
    )
    print(f"marks of {marks['source']}: {marks['num_good']} good count for the limit{earlier}{copies}")
    for part, told in moved.items():
        words = (f"{name} {before:.6g} -> {after:.6g}" for name, (before, after) in told.items())
        print(f"  {part}: {', '.join(words)}")
    (rejected, still), (accepted, now) = marks["good_rejected"], marks["defects_accepted"]
    print(f"  marked goods rejected: {rejected} before, {still} now, of {marks['num_good']}")
    print(f"  marked defects accepted: {accepted} before, {now} now, of {marks['num_defect']}")
    if now > accepted:
        print(
            f"WARNING: the new limit accepts {now - accepted} more of the images that are marked defect: some marked good"
            " score higher than these. Look at both again, or fit the detector on more goods like those",
            file=sys.stderr,
        )
    for good, defect in marks["good_like_defect"]:
        print(f"WARNING: {good} is marked good and {defect} defect, and they look alike: check them", file=sys.stderr)
