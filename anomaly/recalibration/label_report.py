"""What a calibration with labels tells: how the threshold moved, and what that does to the labelled images."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly.recalibration.labelled_images import Labelled


def label_report(
    labelled: Labelled, *, num_earlier: int, before: NDArray[np.float64], after: NDArray[np.float64]
) -> dict[str, Any]:
    """Give the certificate's entry on the labels, JSON values; names of images without their folders.

    Args:
        labelled: the images.
        num_earlier: good images of earlier calibrations that still count.
        before: scores of the images by the file as it was, 1 is its threshold.
        after: scores by the new file.
    """
    is_good = np.arange(len(before)) < labelled.num_good

    def count(chosen: NDArray[np.bool_]) -> int:
        return int(np.count_nonzero(chosen))

    return {
        "source": labelled.source,
        "num_good": labelled.num_good,
        "num_good_earlier": num_earlier,
        "num_defect": len(before) - labelled.num_good,
        "copies_left_out": [Path(path).name for path in labelled.copies],
        "good_like_defect": [[Path(path).name for path in pair] for pair in labelled.alike],
        "good_rejected": [count(is_good & (scores > 1)) for scores in (before, after)],
        "defects_accepted": [count(~is_good & (scores <= 1)) for scores in (before, after)],
    }


def tell(labels: dict[str, Any], moved: dict[str, Any]) -> None:
    """Print what the labels did, and warn of what they cost on standard error."""
    earlier = f", {labels['num_good_earlier']} of earlier calibrations" if labels["num_good_earlier"] else ""
    copies = (
        f"; {len(labels['copies_left_out'])} show what another shows and are left out"
        if labels["copies_left_out"]
        else ""
    )
    print(f"labels of {labels['source']}: {labels['num_good']} good count for the threshold{earlier}{copies}")
    for part, told in moved.items():
        words = (f"{name} {before:.6g} -> {after:.6g}" for name, (before, after) in told.items())
        print(f"  {part}: {', '.join(words)}")
    (rejected, still), (accepted, now) = labels["good_rejected"], labels["defects_accepted"]
    print(f"  labelled good images rejected: {rejected} before, {still} now, of {labels['num_good']}")
    print(f"  labelled defects accepted: {accepted} before, {now} now, of {labels['num_defect']}")
    if now > accepted:
        print(
            f"WARNING: the new threshold accepts {now - accepted} more of the images that are labelled defect: some labelled good"
            " score higher than these. Look at both again, or fit the detector on more good images like those",
            file=sys.stderr,
        )
    for good, defect in labels["good_like_defect"]:
        print(f"WARNING: {good} is labelled good and {defect} defect, and they look alike: check them", file=sys.stderr)
