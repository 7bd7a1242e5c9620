"""Shortcuts in a test set: statistics of whole images that separate defective from good images without a detector.

If good and defective test images were taken in different light, the light alone ranks them. The figures of a detector that
depends on light then measure the light.

R. Geirhos et al., "Shortcut Learning in Deep Neural Networks", 2020, arXiv 2004.07780.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from anomaly.metrics.image_level import auroc

CLEAR = 0.9
"""AUROC, of a statistic or of its negative, from which it separates defective from good test images"""
DIFFERENT = 0.75
"""AUROC, in either direction, from which good test images differ from the training images"""
DEFECT_ABOVE_GOOD, TEST_ABOVE_TRAIN = "defect_above_good", "test_above_train"

Statistics = Mapping[str, float]
"""Name of a statistic -> value of one image"""


def measure_shortcuts(
    *, train: Sequence[Statistics], good: Sequence[Statistics], defect: Sequence[Statistics]
) -> dict[str, dict[str, float]]:
    """Rank images by each of their statistics alone.

    Args:
        train: statistics (`anomaly.imaging.statistics`) of good training images.
        good: statistics of good test images.
        defect: statistics of defective test images.

    Returns:
        Two AUROCs in [0, 1] per statistic: `defect_above_good` within the test images, and `test_above_train` of good test
        images above training images; 0.5 means no difference.

    Raises:
        DataError: an empty argument.
    """

    def above(low: Sequence[Statistics], high: Sequence[Statistics], name: str) -> float:
        values = np.array([one[name] for one in (*low, *high)])
        return round(auroc(values, np.arange(len(values)) >= len(low)), 4)

    names = dict.fromkeys(name for one in (*train, *good, *defect) for name in one)
    return {
        name: {DEFECT_ABOVE_GOOD: above(good, defect, name), TEST_ABOVE_TRAIN: above(train, good, name)}
        for name in names
    }


def describe_shortcuts(measured: Mapping[str, Mapping[str, float]]) -> Iterable[str]:
    """Describe each statistic that separates defective from good test images, the clearest first."""
    found = [(name, one[DEFECT_ABOVE_GOOD], one[TEST_ABOVE_TRAIN]) for name, one in measured.items()]
    for name, defect, test in sorted(found, key=lambda one: (-abs(one[1] - 0.5), one[0])):
        if max(defect, 1 - defect) >= CLEAR:
            cause = (
                "The good test images differ from the training images in it, which biases detectors that depend on it."
                if max(test, 1 - test) >= DIFFERENT
                else "The good test images agree with the training images in it, so the defects cause the difference."
            )
            yield (
                f"{name.capitalize()} of the whole image ranks defective above good test images with an AUROC of"
                f" {100 * defect:.1f}. It ranks good test images above training images with {100 * test:.1f}. {cause}"
            )
