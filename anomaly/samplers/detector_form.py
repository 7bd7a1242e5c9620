"""`SamplerDetector`: a sampler with a likelihood or a reconstruction as a detector."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from anomaly.detectors.base import Anomaly, Detector
from anomaly.detectors.tiling_support import WholeImages
from anomaly.nn.score_pooling import ScorePooling

if TYPE_CHECKING:
    from anomaly.samplers.base import Sampler

TOP, CELL = 0.02, 2
"""Share of the cells that the score `top` averages, and their side in pixels"""


class SamplerDetector(Detector):
    """Scores images by a sampler's anomaly map, smoothed and standardised; `Sampler.as_detector` builds it.

    It shares network and preprocessing with the sampler, and adds the calibration. It is not trained itself.

    Args:
        sampler: sampler with an `anomaly_map`.
    """

    tiling = WholeImages("a sampler draws and reconstructs whole images")

    def __init__(self, sampler: Sampler) -> None:
        super().__init__(preprocess=sampler.preprocess, epochs=sampler.epochs, batch_size=sampler.batch_size)
        self.sampler = sampler
        self.provenance = sampler.provenance
        self.pooling = ScorePooling("top" if sampler.score == "top" else "maximum", top=TOP, cell=CELL)

    def anomaly(self, x: Tensor) -> Anomaly:
        """Score by the `mean`, the `peak` or the `top` of the scaled map inside the region of interest."""
        raw = self.sampler.scale(self.sampler.smoothed_map(x))
        anomaly_map = self.inside_roi(raw)
        if self.sampler.score != "mean":
            return Anomaly(self.pooled_score(anomaly_map), anomaly_map)
        if not self.preprocess.has_roi:
            return Anomaly(anomaly_map.mean(dim=2).mean(dim=1), anomaly_map)
        roi = self.preprocess.roi.to(raw.dtype)
        return Anomaly((raw * roi).sum(dim=(1, 2)) / roi.sum(), anomaly_map)
