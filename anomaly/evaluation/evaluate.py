"""Figures on labelled images, by the same code for a fitted model and for an exported file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly.conformal.calibration import OperatingPoint
from anomaly.conformal.guarantee import Guarantee
from anomaly.data.folders import Sample, find_category
from anomaly.errors import DataError, UsageError
from anomaly.imaging.image_file import read_image, read_mask
from anomaly.imaging.overlay import Resize, enlarge_map
from anomaly.inference.batching import batches_by_size
from anomaly.inference.scorer import OnnxScorer, Scorer
from anomaly.inference.session import Device
from anomaly.metrics import (
    ImageMetrics,
    PixelMetrics,
    Rate,
    Rates,
    image_metrics,
    pixel_metrics,
    pointing_accuracy,
    rates_at_threshold,
)
from anomaly.metrics.pointing import TOLERANCE
from anomaly.system.argument_types import check_types
from anomaly.system.files import as_path
from anomaly.system.progress import progress_bar

THRESHOLD = 1.0
"""Calibrated score above which the verdict is `defect`"""


@dataclass(frozen=True)
class OperatingRates:
    """False alarms and misses at the threshold of one alpha."""

    point: OperatingPoint
    """threshold and guarantee"""
    rates: Rates
    """counted on the labelled images"""


@dataclass(frozen=True)
class Evaluation:
    """Figures of a model on labelled images."""

    samples: list[Sample] = field(repr=False)
    scores: NDArray[np.float32] = field(repr=False)
    """(n,) calibrated"""
    maps: list[NDArray[np.float32]] = field(repr=False)
    """(h, w) each, calibrated, at the network's resolution"""
    image: ImageMetrics
    pixel: PixelMetrics | None
    """None where a defect has no mask"""
    rates: Rates
    num_without_mask: int
    category: str | None = None
    """category that the model was fitted on; None where it is not known"""
    pointing: Rate | None = None
    """defective images whose map maximum lies on the defect; None where a defect has no mask"""
    guarantee: Guarantee | None = None
    """guarantee of the model's own threshold; None where it is not known"""
    operating_rates: tuple[OperatingRates, ...] = ()
    """false alarms and misses at 1, 2 and 5 %, where the calibration supports them"""

    def to_dict(self) -> dict[str, Any]:
        """Figures as JSON values: estimates with 95 % intervals, counts, and rates by kind of defect."""
        kinds: dict[str, dict[str, Any]] = {}
        for kind in sorted({s.kind for s in self.samples}):
            members = [n for n, s in enumerate(self.samples) if s.kind == kind]
            above = int((self.scores[members] > self.rates.threshold).sum())
            kinds[kind] = {"num_images": len(members), "num_above_threshold": above}
        pixel: dict[str, Any] = {}
        if self.pixel is not None:
            pixel = asdict(self.pixel)
            pixel.pop("curve")
            pixel["aupro"] = {f"{fpr:g}": value for fpr, value in pixel["aupro"].items()}
        return {
            "image": asdict(self.image),
            "pixel": pixel,
            "num_defects_without_mask": self.num_without_mask,
            "threshold": self.rates.threshold,
            "false_alarms": _rate(self.rates.false_alarms),
            "misses": _rate(self.rates.misses),
            "kinds": kinds,
            "pointing": None if self.pointing is None else _rate(self.pointing) | {"tolerance": TOLERANCE},
            "guarantee": None if self.guarantee is None else asdict(self.guarantee),
            "rates": {
                f"{at.point.alpha:g}": {
                    "threshold": at.point.threshold,
                    "expected_rate": at.point.expected_rate,
                    "rate_bound": at.point.rate_bound,
                    "false_alarms": _rate(at.rates.false_alarms),
                    "misses": _rate(at.rates.misses),
                }
                for at in self.operating_rates
            },
        }


def _rate(rate: Any) -> dict[str, Any]:
    value = rate.num_hits / rate.num_trials if rate.num_trials else None
    return {"num_hits": rate.num_hits, "num_trials": rate.num_trials, "value": value, "interval": list(rate.interval)}


def evaluate(
    model: str | Path,
    data: str | Path,
    *,
    device: Device = "auto",
    batch_size: int = 8,
    max_pixels: int = 100_000_000,
    seed: int = 0,
) -> Evaluation:
    """Evaluate a model on the labelled test images of a category.

    Args:
        model: exported .onnx file, or folder of a fitted model.
        data: category in a known layout.
        device: device of an .onnx file; a fitted model runs on the CPU.
        batch_size: images per inference, at least 1; a tiled model takes one image at a time.
        max_pixels: largest width × height that is decoded.
        seed: seed of the resampling for the intervals.

    Raises:
        DataError: labelled images are missing or cannot be used.
        ModelError: a model that cannot be loaded.
        UsageError: an argument of a wrong type, or a batch size below 1.
    """
    model, data = as_path(model, name="model"), as_path(data, name="data")
    numbers = {"batch_size": batch_size, "max_pixels": max_pixels, "seed": seed}
    check_types(numbers, dict.fromkeys(numbers, int))
    if seed < 0:
        raise UsageError(f"seed {seed}: give 0 or more")
    scorer: Scorer
    if model.is_dir():
        from anomaly.training.torch_scorer import TorchScorer  # imports torch, which an exported file does not need

        scorer = fitted = TorchScorer(model)
        resize, white, category = fitted.resize, fitted.white, fitted.category
        tiling = fitted.description.tiling
        certified, points = fitted.description.certified, fitted.description.operating_points
    else:
        scorer = exported = OnnxScorer(model, device=device, num_threads=0)
        metadata = exported.metadata
        resize, white, category, tiling = metadata.resize, metadata.white, metadata.category, metadata.tiling
        certified, points = metadata.certified, metadata.operating_points
    evaluation = evaluate_samples(
        find_category(data).test,
        scorer=scorer,
        resize=resize,
        white=white,
        threshold=THRESHOLD,
        max_pixels=max_pixels,
        batch_size=1 if tiling else batch_size,
        seed=seed,
        operating_points=points,
    )
    return replace(evaluation, category=category, guarantee=certified)


def evaluate_samples(
    samples: Sequence[Sample],
    *,
    scorer: Scorer,
    resize: Resize,
    white: int,
    threshold: float,
    max_pixels: int,
    batch_size: int,
    seed: int,
    operating_points: Sequence[OperatingPoint] = (),
) -> Evaluation:
    """Score labelled images and compute exact figures, with intervals over images and masks at their own size.

    Args:
        samples: good and defective samples.
        scorer: fitted model or exported file.
        resize: resizing rule of the model, for laying maps over masks.
        white: stored value of a 16-bit image that becomes 255.
        threshold: score above which the verdict is `defect`.
        max_pixels: largest width × height that is decoded.
        batch_size: images per inference, at least 1.
        seed: seed of the resampling for the intervals.
        operating_points: further thresholds at which false alarms and misses are counted.

    Raises:
        DataError: a missing class, an image or mask that cannot be read, or a mask of another size than its image.
        UsageError: a batch size below 1.
    """
    if batch_size < 1:
        raise UsageError(f"batch_size {batch_size}: give 1 or more")
    labels = np.array([s.label for s in samples], dtype=bool)
    if not labels.any() or labels.all():
        raise DataError(
            f"{int(labels.sum())} defective and {int((~labels).sum())} good test images: figures need both;"
            " `anomaly score` needs no labels"
        )
    scores, maps, sizes = score_samples(
        samples, scorer=scorer, white=white, max_pixels=max_pixels, batch_size=batch_size
    )
    without_mask = sum(s.label and s.mask_path is None for s in samples)
    pixel, pointing = None, None
    if not without_mask:
        for sample, (height, width) in zip(samples, sizes, strict=True):
            check_mask(sample, height=height, width=width, max_pixels=max_pixels)

        def images() -> Iterator[tuple[NDArray[np.float32], NDArray[np.bool_]]]:
            for sample, anomaly_map, (height, width) in zip(samples, maps, sizes, strict=True):
                mask = np.zeros((height, width), dtype=bool)
                if sample.mask_path is not None:
                    mask = read_mask(sample.mask_path, max_pixels=max_pixels)
                yield enlarge_map(anomaly_map, height=height, width=width, resize=resize), mask

        with progress_bar("pixel figures"):
            pixel, pointing = pixel_metrics(images, seed=seed), pointing_accuracy(images())
    return Evaluation(
        samples=list(samples),
        scores=scores,
        maps=maps,
        image=image_metrics(scores, labels, seed=seed),
        pixel=pixel,
        rates=rates_at_threshold(scores, labels, threshold=threshold),
        num_without_mask=without_mask,
        pointing=pointing,
        operating_rates=tuple(
            OperatingRates(point, rates_at_threshold(scores, labels, threshold=point.threshold))
            for point in operating_points
        ),
    )


def score_samples(
    samples: Sequence[Sample], *, scorer: Scorer, white: int, max_pixels: int, batch_size: int
) -> tuple[NDArray[np.float32], list[NDArray[np.float32]], list[tuple[int, int]]]:
    """Score samples in batches of one image size.

    Args:
        samples: samples to score.
        scorer: fitted model or exported file.
        white: stored value of a 16-bit image that becomes 255.
        max_pixels: largest width × height that is decoded.
        batch_size: images per inference.

    Returns:
        Scores (n,), maps (h, w), and (height, width) of the images, in the order of the samples.
    """
    scores = np.zeros(len(samples), dtype=np.float32)
    maps: list[NDArray[np.float32]] = [np.zeros((0, 0), dtype=np.float32)] * len(samples)
    sizes: list[tuple[int, int]] = [(0, 0)] * len(samples)
    window = 4 * batch_size
    with progress_bar("score the images") as report:
        for start in range(0, len(samples), window):
            part = samples[start : start + window]
            images = [read_image(s.path, white=white, max_pixels=max_pixels) for s in part]
            for batch in batches_by_size([i.shape for i in images], batch_size=batch_size):
                scored = scorer.score(np.stack([images[n] for n in batch]))
                for n, score, anomaly_map in zip(batch, scored.score, scored.anomaly_map, strict=True):
                    scores[start + n] = score
                    maps[start + n] = anomaly_map
                    sizes[start + n] = images[n].shape[:2]
            report(start + len(part), len(samples))
    return scores, maps, sizes


def check_mask(sample: Sample, *, height: int, width: int, max_pixels: int) -> None:
    """Refuse an empty mask, and a mask of another size than its image.

    Args:
        sample: sample with or without a mask.
        height: height of its image in pixels.
        width: width of its image in pixels.
        max_pixels: largest width × height that is decoded.

    Raises:
        DataError: the message names both files.
    """
    if sample.mask_path is None:
        return
    mask = read_mask(sample.mask_path, max_pixels=max_pixels)
    if mask.shape != (height, width):
        raise DataError(
            f"mask {sample.mask_path} is {mask.shape[1]}×{mask.shape[0]}, its image {sample.path} is {width}×{height}:"
            " draw it again at the image's size"
        )
    if not mask.any():
        raise DataError(
            f"mask {sample.mask_path} has no defect pixel for {sample.path}: draw it, or move the image to test/good"
        )


def summary(evaluation: Evaluation) -> str:
    """Format the figures for printing, one per line."""

    def line(name: str, estimate: Any) -> str:
        low, high = estimate.interval
        return f"{name:<22} {estimate.value:.4f}   95 % [{low:.4f}, {high:.4f}]"

    lines = [
        line("image AUROC", evaluation.image.auroc),
        line("image AP", evaluation.image.average_precision),
        line("image F1-max", evaluation.image.f1_max),
    ]
    if evaluation.pixel is None:
        lines.append(f"pixel figures          none: {evaluation.num_without_mask} defects without a mask")
    else:
        lines += [
            line("pixel AUROC", evaluation.pixel.auroc),
            line("pixel AP", evaluation.pixel.average_precision),
            line("pixel F1-max", evaluation.pixel.f1_max),
            *(line(f"AUPRO {fpr:.0%}", value) for fpr, value in evaluation.pixel.aupro.items()),
        ]
    if evaluation.pointing is not None:
        lines.append(f"pointing               {evaluation.pointing}   maximum within {TOLERANCE:.0%} of the defect")
    lines.append(f"false alarms           {evaluation.rates.false_alarms}")
    lines.append(f"misses                 {evaluation.rates.misses}")
    if evaluation.guarantee is not None:
        lines.append(f"guarantee              {evaluation.guarantee}")
    for at in evaluation.operating_rates:
        name = f"at {at.point.alpha:.0%}, threshold {at.point.threshold:.3f}"
        lines.append(f"{name:<22} false alarms {at.rates.false_alarms}; misses {at.rates.misses}")
    return "\n".join(lines)
