"""The trained model behind the `Scorer` seam, so that evaluation and parity see it as they see the exported file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from anomaly.inference.scorer import Scores
from anomaly.inference.tiles import score_tiled
from anomaly.training.fitted_model import load
from anomaly.training.tiling import window_scorer


class TorchScorer:
    """The detector of a run folder, on the CPU.

    Args:
        run: the run folder.

    Raises:
        ModelError: a folder that holds no detector, or a damaged one.
    """

    def __init__(self, run: Path) -> None:
        self.detector, self.description = load(run)
        self.resize = self.detector.preprocess.resize
        self.white = self.description.white
        self.category = self.description.category

    def score(self, image: NDArray[np.uint8]) -> Scores:
        """Score images (n, H, W, 3) uint8 RGB of one size."""
        if self.description.tiling:
            return Scores(*score_tiled(window_scorer(self.detector), image, tiling=self.description.tiling))
        return Scores(*window_scorer(self.detector)(image))
