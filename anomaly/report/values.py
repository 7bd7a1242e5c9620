"""The values that a report shows. Scores are calibrated: 0 is a typical good part, 1 is the threshold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly.conformal.calibration import Guarantee
from anomaly.metrics import Estimate, Rate

Image = NDArray[np.uint8]
Scores = NDArray[np.floating[Any]]
Curve = tuple[Scores, Scores]
"""x and y, (n,) each"""


@dataclass(frozen=True)
class Training:
    """The training and its images."""

    detector: str
    reason: str
    """reason for the choice of this detector"""
    num_train: int
    num_stopping: int
    num_part_groups: int
    """part groups of all good images, calibration images included"""
    excluded: tuple[str, ...]
    """names of images that were excluded by hand"""
    findings: tuple[str, ...]
    """whole sentences"""
    config: Mapping[str, object]
    seconds: Mapping[str, float]
    """step -> duration"""


@dataclass(frozen=True)
class ScoredImage:
    """An image beside its overlay; the page reduces large ones.

    An overlay keeps its thin line where the map is drawn onto a reduced image.
    """

    image: Image
    """(H, W, 3) RGB"""
    overlay: Image
    """(H, W, 3) RGB"""
    name: str
    kind: str
    """`good`, or the kind of defect"""
    score: float


@dataclass(frozen=True)
class Influence:
    """A calibration image and the threshold without it."""

    scored: ScoredImage
    threshold_change: float
    """relative change of the threshold; -0.12 is a fall by 12 %"""


@dataclass(frozen=True)
class Metric:
    """A figure of merit in [0, 1] with its 95 % interval."""

    name: str
    estimate: Estimate
    meaning: str
    """one sentence"""


@dataclass(frozen=True)
class LabelledResults:
    """Results on labelled test images; the verdict is score > 1."""

    good: Scores
    """(n,)"""
    defect: Mapping[str, Scores]
    """kind of defect -> (n,)"""
    metrics: tuple[Metric, ...]
    roc: Curve
    """false-alarm rate and share of detected defects; length 0 if there is none"""
    pro: Curve
    """false-alarm rate of pixels and mean overlap; length 0 if there is none"""
    misses: tuple[ScoredImage, ...]
    """missed defects, lowest score first"""
    false_alarms: tuple[ScoredImage, ...]
    """rejected good images, highest score first"""


@dataclass(frozen=True)
class DetectionRate:
    """Detection rate of drawn defects of one kind, size and contrast."""

    kind: str
    size: float
    """longest extent over the shorter side of the image, in (0, 1]"""
    size_px: float
    """longest extent in pixels"""
    contrast: float
    """largest change in hundreds of grey levels"""
    detected: Rate


@dataclass(frozen=True)
class DefectExample:
    """An image with a drawn defect; sizes and contrast as in `DetectionRate`."""

    scored: ScoredImage
    size: float
    size_px: float
    contrast: float


@dataclass(frozen=True)
class Speed:
    """A measured speed."""

    device: str
    """hardware and provider"""
    batch_size: int
    images_per_second: float
    includes: str
    """one sentence about the timed steps"""


@dataclass(frozen=True)
class Parity:
    """Differences between the exported file and the trained model, `|a − b| / max(1, |a|)` in calibrated units."""

    num_images: int
    score_difference: float
    map_difference: float
    tolerance: float
    """difference above which the file is refused"""
    num_flips: int
    """verdicts that differ"""


@dataclass(frozen=True)
class Report:
    """All values of the page in their order; empty and absent ones are reported as not measured."""

    category: str
    date: str
    training: Training
    guarantee: Guarantee
    calibration_scores: Scores
    """(n,) scores of the images that `guarantee` counts"""
    labelled: LabelledResults | None
    influential: tuple[Influence, ...]
    """highest-scoring calibration images, highest first"""
    detection_rates: tuple[DetectionRate, ...]
    defect_examples: tuple[DefectExample, ...]
    speed: tuple[Speed, ...]
    parity: Parity | None
    provenance: Mapping[str, str]
