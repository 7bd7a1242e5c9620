"""The effect of labels on a calibration, for its certificate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly.recalibration.labelled_images import LabelledImages


def label_report(
    labelled: LabelledImages, *, num_earlier: int, before: NDArray[np.float64], after: NDArray[np.float64]
) -> dict[str, Any]:
    """Build the certificate's entry on the labels, as JSON values; images are named without their folders.

    Args:
        labelled: images of the file of labels.
        num_earlier: number of labelled good images of earlier calibrations.
        before: scores of the images by the old file; 1 is the threshold of that file.
        after: scores of the images by the new file; 1 is the threshold of that file.
    """
    is_good = np.arange(len(before)) < labelled.num_good

    def count(selected: NDArray[np.bool_]) -> int:
        return int(np.count_nonzero(selected))

    return {
        "source": labelled.source,
        "num_good": labelled.num_good,
        "num_good_earlier": num_earlier,
        "num_defect": len(before) - labelled.num_good,
        "copies_left_out": [Path(path).name for path in labelled.copies],
        "good_like_defect": [[Path(path).name for path in pair] for pair in labelled.lookalikes],
        "good_rejected": [count(is_good & (scores > 1)) for scores in (before, after)],
        "defects_accepted": [count(~is_good & (scores <= 1)) for scores in (before, after)],
    }
