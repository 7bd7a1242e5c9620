"""The values that a report shows. Scores are calibrated: 0 is a typical good part, 1 is the threshold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly.conformal.calibration import OperatingPoint
from anomaly.conformal.guarantee import Guarantee
from anomaly.conformal.outliers import Outliers
from anomaly.metrics import Estimate, Rate
from anomaly.training.race_record import Race

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
    race: Race | None = None
    """race that chose the detector; None for a detector by name"""


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
    evidence: Image | None = None
    """(h, w, 3) RGB, strongest region beside its nearest good patch; None without a memory bank or its stored images"""


@dataclass(frozen=True)
class OperatingResult:
    """Threshold of one alpha with its results; a rate of 0 trials was not measured."""

    point: OperatingPoint
    """threshold and guarantee"""
    false_alarms: Rate
    """good test images that are rejected"""
    misses: Rate
    """defective test images that are accepted"""
    drawn_misses: Rate
    """drawn defects that are accepted"""


@dataclass(frozen=True)
class Influence:
    """A calibration image and the threshold without it."""

    scored: ScoredImage
    threshold_change: float
    """relative change of the threshold; -0.12 is a fall by 12 %"""


@dataclass(frozen=True)
class SuspectPicture:
    """A training image that looks unlike the others."""

    image: Image
    """picture with its map drawn over it, (H, W, 3) uint8 RGB"""
    name: str
    score: float
    """distance to the other images; images above 1 are suspicious"""
    p_value: float


@dataclass(frozen=True)
class Metric:
    """A figure of merit in [0, 1] with its 95 % interval."""

    name: str
    estimate: Estimate
    meaning: str
    """one sentence"""


@dataclass(frozen=True)
class DefectSizes:
    """Size and contrast of the labelled defects with a mask, of the missed or of the detected ones."""

    detected: bool
    sizes: Scores
    """(n,) longest extent over the shorter side of the image"""
    contrasts: Scores
    """(n,) difference of the mean grey level from the surroundings, 0 to 255"""

    @property
    def median_size(self) -> float:
        """Median of the sizes."""
        return float(np.median(self.sizes))

    @property
    def median_contrast(self) -> float:
        """Median of the contrasts."""
        return float(np.median(self.contrasts))


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
    defect_sizes: tuple[DefectSizes, ...] = ()
    """the missed and the detected defects; empty without masks"""


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
    operating: tuple[OperatingResult, ...] = ()
    """results at 1, 2 and 5 %, where the calibration supports them"""
    outliers: Outliers | None = None
    """calibration images with scores far above the rest; None without such images"""
    suspects: tuple[SuspectPicture, ...] = ()
    """training images that look unlike the others, the most suspicious first"""
