"""`TorchScorer`: a fitted detector behind the `Scorer` interface, for evaluation and parity."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from anomaly.detectors.base import Detector
from anomaly.errors import ModelError
from anomaly.inference.scorer import Scorer, Scores
from anomaly.inference.tiles import score_tiled
from anomaly.training.fitted_model import FittedModel, load_fitted_model
from anomaly.training.tiling import window_scorer


class TorchScorer:
    """The detector of a fitted model, on the CPU.

    Args:
        fitted: the fitted model, or its folder.

    Raises:
        ModelError: the folder is not a fitted model, is damaged, or holds a sampler that cannot score.
    """

    def __init__(self, fitted: FittedModel | str | Path) -> None:
        if not isinstance(fitted, FittedModel):
            fitted = load_fitted_model(fitted)
        if fitted.detector is None:
            raise ModelError(f"{fitted.folder} holds a {type(fitted.model).__name__}, which draws and does not score")
        self.detector, self.description = fitted.detector, fitted.description
        self.resize = self.detector.preprocess.resize
        self.white = self.description.white
        self.category = self.description.category

    def score(self, image: NDArray[np.uint8]) -> Scores:
        """Score images (n, H, W, 3) uint8 RGB of one size."""
        if self.description.tiling:
            return Scores(*score_tiled(window_scorer(self.detector), image, tiling=self.description.tiling))
        return Scores(*window_scorer(self.detector)(image))

    def calibration_scorers(self, images: Sequence[int]) -> list[Scorer]:
        """Give the scorer of each calibration image: without its part group, for a model with leave-one-out calibration.

        Args:
            images: numbers of calibration images, in the order of their paths.
        """
        if self.description.calibration.construction != "leave_one_out":
            return [self] * len(images)
        groups = self.description.train_part_groups
        return [
            _WithoutImages(self.detector, [n for n, group in enumerate(groups) if group == groups[image]])
            for image in images
        ]


class _WithoutImages:
    """A detector without some of its training images."""

    def __init__(self, detector: Detector, images: Sequence[int]) -> None:
        self._detector, self._images = detector, images

    @torch.no_grad()
    def score(self, image: NDArray[np.uint8]) -> Scores:
        """Score images (n, H, W, 3) uint8 RGB of one size."""
        x = self._detector.preprocess(torch.from_numpy(image))
        scored = self._detector.calibration(self._detector.anomaly_without(x, self._images))
        return Scores(scored.score.numpy(), scored.anomaly_map.numpy())
