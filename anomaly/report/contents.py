"""What a report shows, gathered from a model, its calibration images, its test and its trials."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from anomaly.conformal.calibration import fit_scale, tightest_alpha
from anomaly.data.folders import Sample
from anomaly.evaluation.detectability import Trial, caught_rates
from anomaly.evaluation.evaluate import Evaluation, score_samples
from anomaly.imaging.image_file import read_image
from anomaly.imaging.overlay import enlarge_map, overlay
from anomaly.inference.scorer import OnnxScorer
from anomaly.metrics import roc_curve
from anomaly.report.page import PRO_LIMIT, Catch, DrawnDefect, Influence, Labelled, Metric, ScoredImage
from anomaly.report.pictures import reduce_picture
from anomaly.training.fitted_model import Description

NUM_PICTURES = 12
NUM_INFLUENTIAL = 16

_MEANINGS = {
    "Image AUROC": "The chance that a defect scores higher than a good part.",
    "Image average precision": "How pure the top of the list is when images are sorted by score.",
    "Image F1, best threshold": "Balance of found defects and false alarms at the threshold that suits these test images best.",
    "Pixel AUROC": "The chance that a defect pixel is labelled stronger than a normal one.",
    "Pixel average precision": "How pure the strongest marks are.",
    "AUPRO 30 %": "Mean share of each defect's area that is labelled, up to 30 % falsely labelled normal pixels.",
    "AUPRO 5 %": "The same, up to 5 %: the range that matters on a line.",
}


def influential(
    calibration_images: Sequence[Sample], description: Description, scorer: OnnxScorer, *, batch_size: int
) -> tuple[Influence, ...]:
    """The highest-scoring calibration images, and how the threshold would move without each."""
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


def labelled(evaluation: Evaluation | None, scorer: OnnxScorer, *, max_pixels: int) -> Labelled | None:
    """Figures, curves and the worst mistakes of a test; nothing where there was none."""
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
        } | {f"AUPRO {threshold:.0%}".replace("%", " %"): value for threshold, value in evaluation.pixel.aupro.items()}
        curve = evaluation.pixel.curve
        shown = int(np.searchsorted(curve.fpr, PRO_LIMIT, side="right")) + 1
        pro = (curve.fpr[:shown], curve.pro[:shown])
    kinds = sorted({s.kind for s in samples if s.label})
    labels = np.array([s.label for s in samples])

    def pictures(members: NDArray[np.intp]) -> tuple[ScoredImage, ...]:
        return tuple(
            _picture(samples[n], evaluation.maps[n], float(scores[n]), scorer, max_pixels=max_pixels) for n in members
        )

    misses = np.flatnonzero(labels & (scores <= 1))
    alarms = np.flatnonzero(~labels & (scores > 1))
    return Labelled(
        good=scores[~labels],
        defect={kind: scores[[n for n, s in enumerate(samples) if s.kind == kind]] for kind in kinds},
        metrics=tuple(Metric(name, value, _MEANINGS[name]) for name, value in figures.items()),
        roc=roc_curve(scores, labels),
        pro=pro,
        misses=pictures(misses[np.argsort(scores[misses])][:NUM_PICTURES]),
        false_alarms=pictures(alarms[np.argsort(-scores[alarms])][:NUM_PICTURES]),
    )


def detectability(
    trials: Sequence[Trial], scorer: OnnxScorer, *, short_side: int
) -> tuple[tuple[Catch, ...], tuple[DrawnDefect, ...]]:
    """Shares of drawn defects caught, and examples: per kind one caught and one missed at middle size.

    Args:
        trials: of `draw_and_score`.
        scorer: whose maps they are.
        short_side: of the images, in pixels.
    """
    catches = tuple(
        Catch(kind=kind, size=size, size_px=size * short_side, contrast=contrast, caught=rate)
        for (kind, size, contrast), rate in caught_rates(trials, threshold=1.0).items()
    )
    examples: dict[tuple[str, bool], Trial] = {}
    for trial in sorted(trials, key=lambda t: abs(np.log(t.size / 0.12)) + abs(np.log(t.contrast / 0.3))):
        examples.setdefault((trial.kind, trial.score > 1), trial)
    drawn = tuple(
        DrawnDefect(
            scored=_scored_image(t.image, t.anomaly_map, scorer, name="drawn defect", kind=t.kind, score=t.score),
            size=t.size,
            size_px=t.size * short_side,
            contrast=t.contrast,
        )
        for _, t in sorted(examples.items())
    )
    return catches, drawn


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
        image=reduced, overlay=overlay(reduced, enlarged, threshold=1.0), name=name, kind=kind, score=score
    )
