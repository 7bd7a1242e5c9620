"""The verdict of one image, with its evidence."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from anomaly.errors import ImageError
from anomaly.imaging.overlay import enlarge_map, overlay
from anomaly.imaging.regions import Region
from anomaly.inference.evidence import Evidence, EvidenceFinder, evidence_sheet
from anomaly.inference.scorer import OnnxScorer
from anomaly.scoring.rows import row_values
from anomaly.scoring.windows import ScoredImage


class Result:
    """Verdict of one image. If `error` is not None, the image was not scored and every figure is None.

    Attributes:
        name: path of the image, or its position in the call.
        status: `ok`, or the code of the error.
        verdict: `good` or `defect`.
        score: calibrated score; 0 is a typical good part, 1 is the threshold.
        threshold: score above which the verdict is `defect`.
        p_value: share of good images that score at least as high, in (0, 1].
        regions: regions of the anomaly map above the threshold, strongest first.
        error: reason why the image was not scored.
    """

    def __init__(self, scored: ScoredImage, scorer: OnnxScorer, finder: EvidenceFinder) -> None:
        row = scored.row
        self.name: str = row.path
        self.score: float | None = row.score
        self.verdict: str | None = row.verdict or None
        self.threshold: float = row.threshold
        self.p_value: float | None = row.p_value
        self.regions: list[Region] = row.regions
        self.error: str | None = row.message or None
        self.status: str = row.status
        self._scored, self._resize, self._finder = scored, scorer.metadata.resize, finder

    @cached_property
    def anomaly_map(self) -> NDArray[np.float32]:
        """Calibrated anomaly map at the size of the image, (H, W) float32; values above 1 are regions.

        Raises:
            ImageError: the image was not scored.
        """
        height, width = self.image.shape[:2]
        return enlarge_map(self._scored.anomaly_map, height=height, width=width, resize=self._resize)

    @property
    def image(self) -> NDArray[np.uint8]:
        """The image as it was scored, (H, W, 3) uint8 RGB.

        Raises:
            ImageError: the image was not scored.
        """
        if self.error is not None:
            raise ImageError(
                "internal", f"{self.name}: not scored, image and map are missing; correct the cause: {self.error}"
            )
        return self._scored.image

    @cached_property
    def evidence(self) -> list[Evidence]:
        """Nearest good patch of each region, from the memory bank of the model; computed when it is read.

        Empty for a good image, and for a detector without a bank. `Evidence.reference` is None where the archive
        `model.references.zip` is not beside the model.

        Raises:
            ImageError: the image was not scored.
        """
        return self._finder.find(self.image, self.regions)

    def evidence_sheet(self) -> NDArray[np.uint8] | None:
        """Draw each region beside its nearest good patch, (h, w, 3) uint8 RGB; None without stored training images.

        Raises:
            ImageError: the image was not scored.
        """
        return evidence_sheet(self.image, self.evidence)

    def overlay(self) -> NDArray[np.uint8]:
        """Draw the anomaly map over the image, (H, W, 3) uint8 RGB: yellow near the threshold, red at twice the threshold.

        Raises:
            ImageError: the image was not scored.
        """
        return overlay(self.image, self.anomaly_map, threshold=self.threshold)

    def to_dict(self) -> dict[str, Any]:
        """Columns of a results table of `anomaly score`, as plain values."""
        return row_values(self._scored.row)

    def __repr__(self) -> str:
        if self.error is not None:
            return f"Result({self.name}: {self.status}, {self.error})"
        return (
            f"Result({self.name}: {self.verdict}, score {self.score:.3f} at threshold {self.threshold:g},"
            f" p-value {self.p_value:.3f}, {len(self.regions)} regions)"
        )

    def _repr_png_(self) -> bytes | None:
        """Overlay as PNG, for notebooks."""
        if self.error is not None:
            return None
        return bytes(cv2.imencode(".png", cv2.cvtColor(self.overlay(), cv2.COLOR_RGB2BGR))[1].tobytes())
