"""The contents of a report, gathered from a fitted model, its exported file, its evaluation and its drawn defects."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly.conformal.calibration import OperatingPoint
from anomaly.conformal.guarantee import Guarantee
from anomaly.data.folders import Sample
from anomaly.data.inspection import Inspection
from anomaly.evaluation.detectability import DrawnDefect, detection_rates
from anomaly.evaluation.evaluate import THRESHOLD, Evaluation
from anomaly.imaging.image_file import read_image
from anomaly.imaging.overlay import enlarge_map, overlay
from anomaly.imaging.regions import find_regions
from anomaly.inference.bank import calibration_scorers
from anomaly.inference.evidence import EvidenceFinder, evidence_sheet
from anomaly.inference.scorer import OnnxScorer
from anomaly.metrics import Rate, rates_at_threshold, roc_curve
from anomaly.report.defect_sizes import defect_sizes
from anomaly.report.page import PRO_MAX_FPR
from anomaly.report.pictures import reduce_picture
from anomaly.report.values import (
    DefectExample,
    DetectionRate,
    Influence,
    LabelledResults,
    Metric,
    OperatingResult,
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
        race=description.race,
    )


def guarantee_of(description: Description) -> Guarantee:
    """State the guarantee of a fitted model."""
    return description.certified


def operating_results(
    points: Sequence[OperatingPoint], *, evaluation: Evaluation | None, drawn: Sequence[DrawnDefect]
) -> tuple[OperatingResult, ...]:
    """Count false alarms and misses at several thresholds.

    Args:
        points: thresholds with their guarantees.
        evaluation: labelled images; None without any.
        drawn: result of `draw_and_score`.
    """
    drawn_scores = np.array([defect.score for defect in drawn])
    found = []
    for point in points:
        false_alarms, misses = Rate(0, 0), Rate(0, 0)
        if evaluation is not None:
            labels = np.array([sample.label for sample in evaluation.samples])
            counted = rates_at_threshold(evaluation.scores, labels, threshold=point.threshold)
            false_alarms, misses = counted.false_alarms, counted.misses
        missed = Rate(int((drawn_scores <= point.threshold).sum()), len(drawn_scores))
        found.append(OperatingResult(point, false_alarms, misses, missed))
    return tuple(found)


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
    metadata, finder = scorer.metadata, EvidenceFinder(scorer)
    weights = {k: str(v) for k, v in metadata.config.items() if k in ("backbone_weights", "backbone_sha256")}
    return {
        "Model file, SHA-256": scorer.sha256,
        "Graph, SHA-256": metadata.sha256,
        "Contract": str(metadata.contract),
        "Seed": str(metadata.seed),
        "Commit": metadata.commit or "outside a checkout",
        "Provider": scorer.provider,
        "Nearest good patches": finder.reason or finder.references.missing or f"from {finder.references.path.name}",
        "Hardware": ", ".join(str(v) for v in hardware.values()),
        **{f"Version of {name}": version for name, version in metadata.versions.items()},
        **weights,
    }


def influential(
    calibration_images: Sequence[Sample], description: Description, scorer: OnnxScorer
) -> tuple[Influence, ...]:
    """Find the highest-scoring calibration images, and the change of the threshold without each of them.

    Args:
        calibration_images: calibration images of the fitted model, in its order.
        description: description of the fitted model, with their calibration scores.
        scorer: exported model, for the maps.
    """
    scores, ranked = np.array(description.calibration_scores), description.calibration.ranked()
    highest = [int(n) for n in np.argsort(scores, kind="stable")[::-1][:NUM_INFLUENTIAL]]
    finder, found = EvidenceFinder(scorer), []
    for rank, (n, own) in enumerate(zip(highest, calibration_scorers(scorer, highest), strict=True), start=1):
        threshold = ranked.threshold_without(
            [ranked.num_images - rank], alpha=description.alpha, guarantee=description.guarantee
        )
        image = read_image(calibration_images[n].path, white=description.white, max_pixels=description.max_pixels)
        anomaly_map = own.score(image[None]).anomaly_map[0]
        picture = _picture(
            calibration_images[n],
            anomaly_map,
            float(scores[n]),
            finder,
            max_pixels=description.max_pixels,
            without=_part_group(finder, n),
        )
        found.append(Influence(picture, threshold - 1))
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

    finder = EvidenceFinder(scorer)

    def pictures(members: NDArray[np.intp]) -> tuple[ScoredImage, ...]:
        return tuple(
            _picture(samples[n], evaluation.maps[n], float(scores[n]), finder, max_pixels=max_pixels) for n in members
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
        defect_sizes=defect_sizes(
            [s for s in samples if s.label],
            scores[labels] > THRESHOLD,
            white=scorer.metadata.white,
            max_pixels=max_pixels,
        ),
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
    finder = EvidenceFinder(scorer)
    examples = tuple(
        DefectExample(
            scored=_scored_image(
                d.image,
                d.anomaly_map,
                finder,
                name="drawn defect",
                kind=d.kind,
                score=d.score,
                without=_part_group(finder, d.number),
            ),
            size=d.size,
            size_px=d.size * short_side,
            contrast=d.contrast,
        )
        for _, d in sorted(chosen.items())
    )
    return rates, examples


def _picture(
    sample: Sample,
    anomaly_map: NDArray[np.float32],
    score: float,
    finder: EvidenceFinder,
    *,
    max_pixels: int,
    without: Collection[int] = (),
) -> ScoredImage:
    image = read_image(sample.path, white=finder.metadata.white, max_pixels=max_pixels)
    return _scored_image(
        image, anomaly_map, finder, name=sample.path.name, kind=sample.kind, score=score, without=without
    )


def _scored_image(
    image: NDArray[np.uint8],
    anomaly_map: NDArray[np.float32],
    finder: EvidenceFinder,
    *,
    name: str,
    kind: str,
    score: float,
    without: Collection[int] = (),
) -> ScoredImage:
    """Draw an image, its overlay, and its strongest region beside the nearest good patch.

    Args:
        image: (H, W, 3) uint8 RGB.
        anomaly_map: its map (h, w).
        finder: finder of the nearest good patches.
        name: name of the image.
        kind: `good`, or the kind of defect.
        score: calibrated score.
        without: numbers of training images that do not count as good patches.
    """
    reduced, resize = reduce_picture(image), finder.metadata.resize
    height, width = reduced.shape[:2]
    enlarged = enlarge_map(anomaly_map, height=height, width=width, resize=resize)
    evidence = None
    if finder.reason is None:
        whole = enlarge_map(anomaly_map, height=image.shape[0], width=image.shape[1], resize=resize)
        strongest = find_regions(whole, threshold=THRESHOLD, rejected=True)[:1]
        evidence = evidence_sheet(image, finder.find(image, strongest, without=without))
    return ScoredImage(
        image=reduced,
        overlay=overlay(reduced, enlarged, threshold=THRESHOLD),
        name=name,
        kind=kind,
        score=score,
        evidence=evidence,
    )


def _part_group(finder: EvidenceFinder, number: int) -> list[int]:
    """Training images that a calibration image is scored without; empty unless it is a training image itself."""
    bank = finder.metadata.bank
    return [] if bank is None or not bank.raw_scores else bank.members(number)
