"""What a test set tells without a detector: statistics of whole images that alone rank defective above good ones, or below.

Where good and defective test images were taken in another light, a detector that sees the light is measured by it: far above
its worth, or far below chance where the good test images are the odd ones. Geirhos et al., "Shortcut Learning in Deep Neural
Networks", 2020, arXiv 2004.07780.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from anomaly.metrics.image_level import auroc

CLEAR = 0.9
"""AUROC, of a statistic or of its negative, from which it tells defective from good test images"""
OTHER = 0.75
"""AUROC, either way, from which good test images count as taken otherwise than those of training"""
DEFECT_ABOVE_GOOD, TEST_ABOVE_TRAIN = "defect_above_good", "test_above_train"

Statistics = Mapping[str, float]


def measure_shortcuts(
    *, train: Sequence[Statistics], good: Sequence[Statistics], defect: Sequence[Statistics]
) -> dict[str, dict[str, float]]:
    """Rank images by each of their statistics alone.

    Args:
        train: statistics by name (`anomaly.imaging.statistics`) of good training images.
        good: of good test images.
        defect: of defective test images.

    Returns:
        By statistic two AUROCs in [0, 1]: `defect_above_good` among the test images, and `test_above_train` of the good
        test images above those of training, 0.5 where both look alike.

    Raises:
        DataError: one of the three is empty.
    """

    def above(low: Sequence[Statistics], high: Sequence[Statistics], name: str) -> float:
        values = np.array([one[name] for one in (*low, *high)])
        return round(auroc(values, np.arange(len(values)) >= len(low)), 4)

    names = dict.fromkeys(name for one in (*train, *good, *defect) for name in one)
    return {
        name: {DEFECT_ABOVE_GOOD: above(good, defect, name), TEST_ABOVE_TRAIN: above(train, good, name)}
        for name in names
    }


def tell_shortcuts(measured: Mapping[str, Mapping[str, float]]) -> Iterable[str]:
    """Say in a sentence each which statistics tell defective from good test images, the clearest first."""
    found = [(name, one[DEFECT_ABOVE_GOOD], one[TEST_ABOVE_TRAIN]) for name, one in measured.items()]
    for name, defect, test in sorted(found, key=lambda one: (-abs(one[1] - 0.5), one[0])):
        if max(defect, 1 - defect) >= CLEAR:
            yield (
                f"{name.capitalize()} of the whole image ranks defective above good test images with an AUROC of"
                f" {100 * defect:.1f}. Good test images stand above those of training with {100 * test:.1f}: "
                + (
                    "they were taken otherwise, and a detector that sees it is measured by that"
                    if max(test, 1 - test) >= OTHER
                    else "they are alike in it, and it is the defects that show"
                )
            )
