"""`Detector`: the contract of a detector, and `Calibration`, the scale of its scores."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from anomaly.conformal.guarantee import GuaranteeKind
from anomaly.conformal.scale import fit_scale
from anomaly.detectors.tiling_support import TilingSupport, WindowsOnly
from anomaly.errors import UsageError
from anomaly.nn.batch import Batch
from anomaly.nn.preprocess import Preprocess
from anomaly.nn.score_pooling import ScorePooling
from anomaly.nn.trainable import Trainable


class Anomaly(NamedTuple):
    """Scores and anomaly maps of a batch, in the same unit."""

    score: Tensor
    """(N,) float32, higher is more anomalous"""
    anomaly_map: Tensor
    """(N, h, w) float32, at the network's resolution"""


class RawScores(NamedTuple):
    """Uncalibrated outputs of n images."""

    score: NDArray[np.float64]
    """(n,)"""
    peak: NDArray[np.float64]
    """(n,) maxima of the anomaly maps"""


class Calibration(nn.Module):
    """Affine scale with 0 at a typical good part and 1 at the threshold. Values are not clamped, so ranks stay equal.

    The four buffers are initialisers of the exported graph (`calibration.offset_score` …). A serving installation can
    change them without torch.
    """

    offset_score: Tensor
    scale_score: Tensor
    offset_map: Tensor
    scale_map: Tensor

    def __init__(self) -> None:
        super().__init__()
        for part in ("score", "map"):
            self.register_buffer(f"offset_{part}", torch.zeros(()))
            self.register_buffer(f"scale_{part}", torch.ones(()))

    def forward(self, raw: Anomaly) -> Anomaly:
        """Scale raw scores and maps: `(raw - offset) / scale`."""
        return Anomaly(
            (raw.score - self.offset_score) / self.scale_score, (raw.anomaly_map - self.offset_map) / self.scale_map
        )

    def fit(
        self,
        score: NDArray[np.float64],
        peak: NDArray[np.float64],
        *,
        alpha: float,
        guarantee: GuaranteeKind,
        group_sizes: Sequence[int] = (),
    ) -> NDArray[np.float64]:
        """Fit offset and scale on the raw scores of calibration images.

        Args:
            score: raw scores (n,).
            peak: maxima of the raw anomaly maps (n,).
            alpha: largest share of good parts above the threshold.
            guarantee: whether alpha bounds the expected share or its 95 % upper bound.
            group_sizes: calibration images in the part group of each image (n,); empty where every image is its own group.

        Returns:
            The calibrated scores (n,).

        Raises:
            CalibrationError: too few part groups for alpha, or equal scores.
        """
        for part, values in (("score", score), ("map", peak)):
            scale = fit_scale(values, alpha=alpha, guarantee=guarantee, group_sizes=group_sizes)
            getattr(self, f"offset_{part}").fill_(scale.offset)
            getattr(self, f"scale_{part}").fill_(scale.scale)
        return (score - float(self.offset_score)) / float(self.scale_score)


class Detector(Trainable):
    """Base of all detectors.

    A subclass writes `training_step`, `configure_optimizers` and `anomaly`. It inherits `calibrate` and `forward`, the
    function that is evaluated, exported and served. The constructor's arguments are the whole configuration.

    Args:
        preprocess: conversion of uint8 images into the network's input.
        epochs: passes over the training images.
        batch_size: images per optimisation step.
    """

    export_reason: str | None = None
    """Reason why the graph cannot be exported, where one is known"""
    pooling: ScorePooling = ScorePooling()
    """Pooling of maps in `pooled_score`"""
    tiling: TilingSupport = WindowsOnly("its class declares no stride, and only an equivariant map can be stitched")
    """Support for images larger than the network's input"""
    supports_leave_one_out = False
    """Whether `anomaly_without` scores a training image as if it were not a training image"""

    def __init__(self, *, preprocess: Preprocess, epochs: int, batch_size: int) -> None:
        super().__init__(preprocess=preprocess, epochs=epochs, batch_size=batch_size)
        self.calibration = Calibration()

    def anomaly(self, x: Tensor) -> Anomaly:
        """Compute raw scores and raw anomaly maps.

        Args:
            x: the network's input (N, 3, h, w) float32, from `preprocess`.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define anomaly(x): write it")

    @property
    def leave_one_out_is_exact(self) -> bool:
        """Whether the score without an image never falls when other images are left out, so that a theorem holds."""
        return False

    def anomaly_without(self, x: Tensor, images: Collection[int]) -> Anomaly:
        """Compute raw scores and maps as if some training images were not in the training set.

        Args:
            x: the network's input (N, 3, h, w) float32, from `preprocess`.
            images: numbers of the left-out training images, in the order of their paths.

        Raises:
            UsageError: the detector is trained as a whole and cannot leave images out.
        """
        raise UsageError(
            f"{type(self).__name__} is trained on all images at once and cannot leave one out:"
            " calibrate with --calibration split or cross"
        )

    def dependence(self, x: Tensor) -> Tensor:
        """Map x to (N, h, w) with the receptive field of the anomaly map; works before training."""
        return self.anomaly(x).anomaly_map

    def forward(self, image: Tensor | list[Tensor]) -> Anomaly:
        """Score images: preprocess, network, calibration. This is the exported graph.

        Args:
            image: (N, H, W, 3) uint8 RGB, or a list of images (H, W, 3) of different sizes.
        """
        return self.calibration(self.anomaly(self.preprocess(image)))  # type: ignore[no-any-return]

    def pooled_score(self, anomaly_map: Tensor) -> Tensor:
        """Pool maps (N, h, w) at the network's resolution to scores (N,); only the region of interest counts."""
        return self.pooling(anomaly_map, inside=self.preprocess.roi if self.preprocess.has_roi else None)

    def inside_roi(self, anomaly_map: Tensor) -> Tensor:
        """Set pixels outside the region of interest to the map's minimum, so that they never raise a score.

        Args:
            anomaly_map: (N, h, w) float, at the network's resolution.
        """
        if not self.preprocess.has_roi:
            return anomaly_map
        return torch.where(self.preprocess.roi, anomaly_map, anomaly_map.amin(dim=(1, 2), keepdim=True))

    def calibrate(self, good: Iterable[Batch], *, alpha: float, guarantee: GuaranteeKind) -> NDArray[np.float64]:
        """Fit offset and scale of scores and maps on calibration images, by split conformal prediction.

        Args:
            good: batches of good images that are not training images.
            alpha: largest share of good parts above the threshold.
            guarantee: whether alpha bounds the expected share or its 95 % upper bound.

        Returns:
            The calibrated scores of the calibration images, (n,) float64 in the given order.

        Raises:
            CalibrationError: too few images for alpha, or equal scores.
        """
        return self.calibration.fit(*self.raw_scores(good), alpha=alpha, guarantee=guarantee)

    @torch.no_grad()
    def raw_scores(self, batches: Iterable[Batch]) -> RawScores:
        """Score batches of images without the calibration, in eval mode."""
        self.eval()
        score, peak = [], []
        for batch in batches:
            raw = self.anomaly(self.preprocessed(batch))
            score.append(raw.score.double().cpu().numpy())
            peak.append(raw.anomaly_map.amax(dim=(1, 2)).double().cpu().numpy())
        return RawScores(np.concatenate(score), np.concatenate(peak))
