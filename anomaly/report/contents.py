"""The contents of a report, gathered from a fitted model, its exported file, its evaluation and its drawn defects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly.conformal.calibration import Guarantee, fit_scale, guarantee_for, tightest_alpha
from anomaly.data.folders import Sample
from anomaly.data.inspection import Inspection
from anomaly.evaluation.detectability import DrawnDefect, detection_rates
from anomaly.evaluation.evaluate import THRESHOLD, Evaluation, score_samples
from anomaly.imaging.image_file import read_image
from anomaly.imaging.overlay import enlarge_map, overlay
from anomaly.inference.scorer import OnnxScorer
from anomaly.metrics import roc_curve
from anomaly.report.page import PRO_MAX_FPR
from anomaly.report.pictures import reduce_picture
from anomaly.report.values import (
    DefectExample,
    DetectionRate,
    Influence,
    LabelledResults,
    Metric,
    Parity,
    ScoredImage,
    Training,
)
from anomaly.training.fitted_model import Description

NUM_PICTURES = 12
"""Largest number of shown misses, and of shown false alarms"""
NUM_INFLUENTIAL = 16
"""Largest number of shown calibration images"""

_MEANINGS = {
    "Image AUROC": "Probability that a defective part scores higher than a good part.",
    "Image average precision": "Purity of the list of images sorted by score, highest first.",
    "Image F1, best threshold": "Balance of detected defects and false alarms, at the best threshold for these test images.",
    "Pixel AUROC": "Probability that a defect pixel has a higher map value than a normal pixel.",
    "Pixel average precision": "Purity of the list of pixels sorted by map value, highest first.",
    "AUPRO 30 %": "Mean share of each defect's area above a threshold, up to 30 % of normal pixels above it.",
    "AUPRO 5 %": "The same up to 5 %, the range that matters in production.",
}


def training_of(
    description: Description, inspection: Inspection, detector: str, *, reason: str, seconds: Mapping[str, float]
) -> Training:
    """Collect the facts of the training.

    Args:
        description: description of the fitted model.
        inspection: inspection of the training folder.
        detector: name of the detector.
        reason: reason for the choice of the detector.
        seconds: duration of each step.
    """
    return Training(
        detector=detector,
        reason=reason,
        num_train=len(description.train),
        num_stopping=len(description.stopping),
        num_part_groups=inspection.split.num_part_groups,
        excluded=tuple(description.calibration.excluded),
        findings=tuple(finding.text for finding in inspection.findings),
        config=description.config,
        seconds=dict(seconds),
    )


def guarantee_of(description: Description) -> Guarantee:
    """State the guarantee of a fitted model."""
    return guarantee_for(description.calibration.num_images, alpha=description.alpha, guarantee=description.guarantee)


def parity_of(certificate: Mapping[str, Any]) -> Parity:
    """Collect the parity from a certificate of `anomaly verify`."""
    return Parity(
        num_images=certificate["num_images"],
        score_difference=certificate["score"]["max"],
        map_difference=certificate["map"]["max"],
        tolerance=certificate["refused_above"],
        num_flips=certificate["num_flips"],
    )


def provenance_of(scorer: OnnxScorer, *, hardware: Mapping[str, Any]) -> dict[str, str]:
    """Collect hashes, versions and hardware, by the names that the page shows."""
    metadata = scorer.metadata
    weights = {k: str(v) for k, v in metadata.config.items() if k in ("backbone_weights", "backbone_sha256")}
    return {
        "Model file, SHA-256": scorer.sha256,
        "Graph, SHA-256": metadata.sha256,
        "Contract": str(metadata.contract),
        "Seed": str(metadata.seed),
        "Commit": metadata.commit or "outside a checkout",
        "Provider": scorer.provider,
        "Hardware": ", ".join(str(v) for v in hardware.values()),
        **{f"Version of {name}": version for name, version in metadata.versions.items()},
        **weights,
    }


def influential(
    calibration_images: Sequence[Sample], description: Description, scorer: OnnxScorer, *, batch_size: int
) -> tuple[Influence, ...]:
    """Find the highest-scoring calibration images, and the change of the threshold without each of them."""
    scores, maps, _ = score_samples(
        calibration_images,
        scorer=scorer,
        white=description.white,
        max_pixels=description.max_pixels,
        batch_size=batch_size,
    )
    alpha = max(description.alpha, tightest_alpha(len(scores) - 1, guarantee=description.guarantee))
    found = []
    for n in np.argsort(-scores)[:NUM_INFLUENTIAL]:
        scale = fit_scale(np.delete(scores, n), alpha=alpha, guarantee=description.guarantee)
        picture = _picture(calibration_images[n], maps[n], float(scores[n]), scorer, max_pixels=description.max_pixels)
        found.append(Influence(picture, scale.offset + scale.scale - 1))
    return tuple(found)


def labelled(evaluation: Evaluation | None, scorer: OnnxScorer, *, max_pixels: int) -> LabelledResults | None:
    """Collect figures, curves and the worst mistakes of an evaluation; None without one."""
    if evaluation is None:
        return None
    samples, scores = evaluation.samples, evaluation.scores
    figures = {
        "Image AUROC": evaluation.image.auroc,
        "Image average precision": evaluation.image.average_precision,
        "Image F1, best threshold": evaluation.image.f1_max,
    }
    empty = np.zeros(0)
    pro = (empty, empty)
    if evaluation.pixel is not None:
        figures |= {
            "Pixel AUROC": evaluation.pixel.auroc,
            "Pixel average precision": evaluation.pixel.average_precision,
        } | {f"AUPRO {fpr:.0%}".replace("%", " %"): value for fpr, value in evaluation.pixel.aupro.items()}
        curve = evaluation.pixel.curve
        shown = int(np.searchsorted(curve.fpr, PRO_MAX_FPR, side="right")) + 1
        pro = (curve.fpr[:shown], curve.pro[:shown])
    kinds = sorted({s.kind for s in samples if s.label})
    labels = np.array([s.label for s in samples])

    def pictures(members: NDArray[np.intp]) -> tuple[ScoredImage, ...]:
        return tuple(
            _picture(samples[n], evaluation.maps[n], float(scores[n]), scorer, max_pixels=max_pixels) for n in members
        )

    misses = np.flatnonzero(labels & (scores <= THRESHOLD))
    alarms = np.flatnonzero(~labels & (scores > THRESHOLD))
    return LabelledResults(
        good=scores[~labels],
        defect={kind: scores[[n for n, s in enumerate(samples) if s.kind == kind]] for kind in kinds},
        metrics=tuple(Metric(name, value, _MEANINGS[name]) for name, value in figures.items()),
        roc=roc_curve(scores, labels),
        pro=pro,
        misses=pictures(misses[np.argsort(scores[misses])][:NUM_PICTURES]),
        false_alarms=pictures(alarms[np.argsort(-scores[alarms])][:NUM_PICTURES]),
    )


def measured_detection(
    drawn: Sequence[DrawnDefect], scorer: OnnxScorer, *, short_side: int
) -> tuple[tuple[DetectionRate, ...], tuple[DefectExample, ...]]:
    """Compute detection rates of drawn defects, and choose one detected and one missed example per kind, of medium size.

    Args:
        drawn: result of `draw_and_score`.
        scorer: model that scored them.
        short_side: shorter side of the images in pixels.
    """
    rates = tuple(
        DetectionRate(kind=kind, size=size, size_px=size * short_side, contrast=contrast, detected=rate)
        for (kind, size, contrast), rate in detection_rates(drawn, threshold=THRESHOLD).items()
    )
    chosen: dict[tuple[str, bool], DrawnDefect] = {}
    for defect in sorted(drawn, key=lambda d: abs(np.log(d.size / 0.12)) + abs(np.log(d.contrast / 0.3))):
        chosen.setdefault((defect.kind, defect.score > THRESHOLD), defect)
    examples = tuple(
        DefectExample(
            scored=_scored_image(d.image, d.anomaly_map, scorer, name="drawn defect", kind=d.kind, score=d.score),
            size=d.size,
            size_px=d.size * short_side,
            contrast=d.contrast,
        )
        for _, d in sorted(chosen.items())
    )
    return rates, examples


def _picture(
    sample: Sample, anomaly_map: NDArray[np.float32], score: float, scorer: OnnxScorer, *, max_pixels: int
) -> ScoredImage:
    image = read_image(sample.path, white=scorer.metadata.white, max_pixels=max_pixels)
    return _scored_image(image, anomaly_map, scorer, name=sample.path.name, kind=sample.kind, score=score)


def _scored_image(
    image: NDArray[np.uint8],
    anomaly_map: NDArray[np.float32],
    scorer: OnnxScorer,
    *,
    name: str,
    kind: str,
    score: float,
) -> ScoredImage:
    reduced = reduce_picture(image)
    height, width = reduced.shape[:2]
    enlarged = enlarge_map(anomaly_map, height=height, width=width, resize=scorer.metadata.resize)
    return ScoredImage(
        image=reduced, overlay=overlay(reduced, enlarged, threshold=THRESHOLD), name=name, kind=kind, score=score
    )
