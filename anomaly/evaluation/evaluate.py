"""What a model is worth on labelled images; the same code on the trained model and on the exported file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly.data.folders import Sample
from anomaly.errors import DataError, UsageError
from anomaly.imaging.image_file import read_image, read_mask
from anomaly.imaging.overlay import Resize, enlarge_map
from anomaly.inference.batching import batches_by_size
from anomaly.inference.scorer import Scorer
from anomaly.metrics import ImageMetrics, PixelMetrics, Rates, image_metrics, pixel_metrics, rates_at_threshold
from anomaly.system.progress import progress_bar


@dataclass(frozen=True)
class Evaluation:
    """Scores of labelled images and the figures that follow from them."""

    samples: list[Sample]
    scores: NDArray[np.float32]
    """(n,) calibrated"""
    maps: list[NDArray[np.float32]] = field(repr=False)
    """(h, w) each, calibrated, at the network's resolution"""
    image: ImageMetrics
    pixel: PixelMetrics | None
    """absent where a defect has no mask"""
    rates: Rates
    num_without_mask: int

    def to_dict(self) -> dict[str, Any]:
        """Figures as JSON values: values with 95 % intervals, counts, and rates by kind of defect."""
        kinds: dict[str, dict[str, Any]] = {}
        for kind in sorted({s.kind for s in self.samples}):
            members = [n for n, s in enumerate(self.samples) if s.kind == kind]
            above = int((self.scores[members] > self.rates.threshold).sum())
            kinds[kind] = {"num_images": len(members), "num_above_threshold": above}
        pixel: dict[str, Any] = {}
        if self.pixel is not None:
            pixel = asdict(self.pixel)
            pixel.pop("curve")
            pixel["aupro"] = {f"{threshold:g}": value for threshold, value in pixel["aupro"].items()}
        return {
            "image": asdict(self.image),
            "pixel": pixel,
            "num_defects_without_mask": self.num_without_mask,
            "threshold": self.rates.threshold,
            "false_alarms": _rate(self.rates.false_alarms),
            "misses": _rate(self.rates.misses),
            "kinds": kinds,
        }


def _rate(rate: Any) -> dict[str, Any]:
    value = rate.num_hits / rate.num_trials if rate.num_trials else None
    return {"num_hits": rate.num_hits, "num_trials": rate.num_trials, "value": value, "interval": list(rate.interval)}


def evaluate(
    samples: Sequence[Sample],
    *,
    scorer: Scorer,
    resize: Resize,
    white: int,
    threshold: float,
    max_pixels: int,
    batch_size: int,
    seed: int,
) -> Evaluation:
    """Score labelled images and compute the figures of FORMATS: exact values, intervals by image, masks at their own size.

    Args:
        samples: good and defect ones.
        scorer: the trained model or the exported file.
        resize: how the model resizes, for laying maps over masks.
        white: stored value of a 16-bit image that becomes 255.
        threshold: of the verdict.
        max_pixels: largest width × height that is decoded.
        batch_size: images per inference.
        seed: of the resampling.

    Raises:
        DataError: a class is missing, an image or mask cannot be read, or a mask is not of its image's size.
    """
    if batch_size < 1:
        raise UsageError(f"batch size {batch_size}: give 1 or more")
    labels = np.array([s.label for s in samples])
    if not labels.any() or labels.all():
        raise DataError(
            f"{int(labels.sum())} defects and {int((~labels).sum())} good images to test on: figures need both;"
            " `anomaly score` needs no labels"
        )
    scores, maps, sizes = score_samples(
        samples, scorer=scorer, white=white, max_pixels=max_pixels, batch_size=batch_size
    )
    without_mask = sum(s.label and s.mask_path is None for s in samples)
    pixel = None
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
            pixel = pixel_metrics(images, seed=seed)
    return Evaluation(
        samples=list(samples),
        scores=scores,
        maps=maps,
        image=image_metrics(scores, labels, seed=seed),
        pixel=pixel,
        rates=rates_at_threshold(scores, labels, threshold=threshold),
        num_without_mask=without_mask,
    )


def score_samples(
    samples: Sequence[Sample], *, scorer: Scorer, white: int, max_pixels: int, batch_size: int
) -> tuple[NDArray[np.float32], list[NDArray[np.float32]], list[tuple[int, int]]]:
    """Score samples in batches of one size.

    Returns:
        Scores (n,), maps (h, w) and the images' (height, width), in the order of the samples.
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
                said = scorer.score(np.stack([images[n] for n in batch]))
                for n, score, anomaly_map in zip(batch, said.score, said.anomaly_map, strict=True):
                    scores[start + n] = score
                    maps[start + n] = anomaly_map
                    sizes[start + n] = images[n].shape[:2]
            report(start + len(part), len(samples))
    return scores, maps, sizes


def check_mask(sample: Sample, *, height: int, width: int, max_pixels: int) -> None:
    """Refuse a mask that is not of its image's size or marks nothing.

    Raises:
        DataError: naming both files.
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
            f"mask {sample.mask_path} marks no pixel of {sample.path}: draw it or move the image to test/good"
        )


def summary(evaluation: Evaluation) -> str:
    """Print-ready figures, one a line."""

    def line(name: str, estimate: Any) -> str:
        low, high = estimate.interval
        return f"{name:<22} {estimate.value:.4f}   95 % [{low:.4f}, {high:.4f}]"

    lines = [
        line("image AUROC", evaluation.image.auroc),
        line("image AP", evaluation.image.average_precision),
        line("image F1-max", evaluation.image.f1_max),
    ]
    if evaluation.pixel is None:
        lines.append(f"pixel figures          none: {evaluation.num_without_mask} defects without mask")
    else:
        lines += [
            line("pixel AUROC", evaluation.pixel.auroc),
            line("pixel AP", evaluation.pixel.average_precision),
            line("pixel F1-max", evaluation.pixel.f1_max),
            *(line(f"AUPRO {threshold:.0%}", value) for threshold, value in evaluation.pixel.aupro.items()),
        ]
    lines.append(f"false alarms           {evaluation.rates.false_alarms}")
    lines.append(f"misses                 {evaluation.rates.misses}")
    return "\n".join(lines)
