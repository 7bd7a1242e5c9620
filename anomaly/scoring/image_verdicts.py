"""Result rows of single images: the verdict on a scored image, or the error of a failed one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from anomaly.errors import ImageError
from anomaly.imaging.overlay import enlarge_map
from anomaly.imaging.regions import find_regions
from anomaly.inference.scorer import OnnxScorer, Scores
from anomaly.scoring.rows import Row
from anomaly.scoring.settings import Settings
from anomaly.scoring.sources import Item


def error_row(item: Item, error: ImageError, *, sha256: str, model: str, settings: Settings) -> Row:
    """Build the row of an image without a score.

    Args:
        item: failed image.
        error: reason of the failure.
        sha256: SHA-256 of the image file; empty for a file that cannot be read.
        model: first 16 hex digits of the model's SHA-256; empty without a model.
        settings: settings of the run.
    """
    return Row(
        path=item.path, sha256=sha256, status=error.code, verdict="", score=None, threshold=settings.threshold,
        p_value=None, width=None, height=None, regions=[], model=model, message=str(error), extra=item.extra,
    )  # fmt: skip


def scored_row(
    item: Item, scores: Scores, *, sha256: str, image: NDArray[np.uint8], scorer: OnnxScorer, settings: Settings
) -> Row:
    """Build the row of a scored image: verdict, p-value and the regions above the threshold.

    Args:
        item: scored image.
        scores: scores of this image alone, score () and anomaly_map (h, w), both finite.
        sha256: SHA-256 of the image file.
        image: (H, W, 3) uint8 RGB, the scored pixels.
        scorer: model that scored the image.
        settings: settings of the run.
    """
    score, anomaly_map = float(scores.score), scores.anomaly_map
    height, width = image.shape[:2]
    rejected = score > settings.threshold
    regions = []
    if rejected or float(anomaly_map.max()) > settings.threshold:
        enlarged = enlarge_map(anomaly_map, height=height, width=width, resize=scorer.metadata.resize)
        regions = find_regions(enlarged, threshold=settings.threshold, rejected=rejected)
    p_value = float(scorer.calibration.p_values(np.array([score]))[0])
    return Row(
        path=item.path, sha256=sha256, status="ok", verdict=settings.verdict(score), score=score,
        threshold=settings.threshold, p_value=p_value, width=width, height=height, regions=regions,
        model=scorer.sha256[:16], message="", extra=item.extra,
    )  # fmt: skip
