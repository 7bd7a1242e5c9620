"""The verb `fit`: train a detector or a sampler on good images and calibrate it."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from anomaly.conformal.guarantee import GuaranteeKind, images_needed
from anomaly.inference.artifact import Brightness
from anomaly.system.run_card import RunCard
from anomaly.training.construction import CalibrationChoice
from anomaly.training.fit import fit_model
from anomaly.training.fitted_model import CARD_FILE, FittedModel
from anomaly.training.loop import Precision, TrainingDevice
from anomaly.training.suspects import Ranking, Suspects
from anomaly.training.suspects_files import LIST_FILE, PAGE_FILE, describe_suspects

NUM_SHOWN = 10
"""Largest number of printed suspicious images"""


def fit(
    data: Path,
    *,
    out: Path,
    detector: str = "auto",
    model: dict[str, Any] | None = None,
    alpha: float | None = None,
    guarantee: GuaranteeKind = "expected",
    seed: int = 0,
    part_group: str | None = None,
    exclude: Path | None = None,
    roi: str | None = None,
    white: int | None = None,
    max_pixels: int = 100_000_000,
    precision: Precision = "fp32",
    device: TrainingDevice = "auto",
    cache_gib: float = 2.0,
    resume: bool = False,
    tile: str | None = None,
    windows: int | None = None,
    brightness: Brightness = "kept",
    calibration: CalibrationChoice = "auto",
    budget_ms: float | None = None,
    suspects: Ranking = "mutual",
) -> FittedModel:
    """Train a detector or a sampler on good images, and calibrate it. Test images are never read.

    Args:
        data: category in a known layout, or plain folder of good images.
        out: folder for the fitted model.
        detector: registry name of a detector or a sampler, package.module:Class, or `auto`: the winner of a race on the
            good images.
        model: arguments of the constructor of the detector or sampler.
        alpha: largest share of good parts above the threshold; by default 0.01, or the smallest possible one.
        guarantee: kind of guarantee: `expected` bounds the expected share by alpha, `bound` its 95 % upper bound.
        seed: seed of the split, the initial weights and the training order.
        part_group: regular expression on the paths, or CSV of path and group, that joins the images of one part.
        exclude: text file with names of excluded images, one per line.
        roi: region of interest, x,y,w,h in pixels or the path of a mask.
        white: stored value of 16-bit images that becomes 255; by default derived from the brightest image.
        max_pixels: largest width × height that is decoded.
        precision: number format of training; `fastest` is bf16 where the hardware supports it. Calibration is fp32.
        device: training device.
        cache_gib: memory for decoded images in GiB.
        resume: continue the interrupted fit in the folder of --out.
        tile: tile size H,W in pixels: large images are scored in seamless tiles, and training uses crops.
        windows: window distance in pixels: large images are scored in overlapping windows of the network's size.
        brightness: brightness correction; `levelled` scales every image to the training images' mean grey level. Varying
            light then changes no score. A part that is too bright or too dark as a whole is not a defect.
        calibration: use of the images; `split` calibrates on a fifth of them, which do not train. `leave_one_out` trains and
            calibrates on all of them: each is scored without itself. `cross` does so by five further trainings, each without
            a fifth of the images. `auto` takes `leave_one_out` where the detector supports it, else `split`.
        budget_ms: largest time in milliseconds to score an image on one core, for `auto`; by default any.
        suspects: ranking that names suspicious images; none is excluded. `mutual` compares all images with each other.
            `calibration` takes the calibration scores, which costs no time. `none` names no image.

    Returns:
        The fitted model.
    """
    options = dict(locals())
    card = RunCard("fit", config=dict(options))
    fitted = fit_model(options.pop("data"), options=options.pop("model"), **options)
    card.facts["config"]["model"] = fitted.description.config
    if fitted.description.race is not None:
        card.facts["race"] = asdict(fitted.description.race)
    card.facts["seconds"] |= fitted.seconds
    card.facts["result"] = _result(fitted)
    card.write(fitted.folder / CARD_FILE)
    return fitted


def _result(fitted: FittedModel) -> dict[str, Any]:
    description = fitted.description
    result: dict[str, Any] = {
        "alpha": description.alpha,
        "white": description.white,
        "num_train": len(description.train),
        "num_calibration": len(description.calibration_images),
        "num_stopping": len(description.stopping),
        "num_excluded": len(description.calibration.excluded),
    }
    if fitted.suspects is not None:
        result["num_suspicious"] = len(fitted.suspects.named)
    if description.tiling:
        result["tiling"] = asdict(description.tiling) | {"largest_difference": fitted.seam_difference}
    return result


def show(fitted: FittedModel) -> None:
    """Print the folder of the fitted model, its guarantee, and the next command."""
    description = fitted.description
    if description.race is not None:
        print(*description.race.lines(), sep="\n")
    num = description.calibration.num_images
    calibrated = f", calibrated on {num}" if num else ""
    print(f"{fitted.folder}: {description.detector} trained on {len(description.train)} images{calibrated}")
    if num:
        certified = description.certified
        unit = "part groups" if certified.num_groups < certified.num_images else "images"
        print(f"{certified}; 1 % takes {images_needed(0.01, guarantee=description.guarantee)} calibration {unit}")
        points = [f"{point.alpha:.0%} at {point.threshold:.3f}" for point in description.operating_points]
        if points:
            print(f"thresholds: {', '.join(points)}")
        if description.outliers is not None:
            print(f"WARNING: {description.outliers}", file=sys.stderr)
    if "choice" in description.provenance:
        print(f"backbone {description.provenance['choice']}")
    if fitted.suspects is not None:
        _show_suspects(fitted, fitted.suspects)
    if fitted.removed:
        print(f"removed exports of an earlier fit: {', '.join(fitted.removed)}")
    print(f"next: anomaly export {fitted.folder}")


def _show_suspects(fitted: FittedModel, suspects: Suspects) -> None:
    """Print the suspicious images and the ways to look at them and to exclude them."""
    print(*describe_suspects(suspects), sep="\n")
    for image in suspects.named[:NUM_SHOWN]:
        print(f"  {image.name}: score {image.score:.2f}, p {image.p_value:.2g}")
    if len(suspects.named) > NUM_SHOWN:
        print(f"  and {len(suspects.named) - NUM_SHOWN} more in {fitted.folder / LIST_FILE}")
    if suspects.named:
        print(
            f"look at {fitted.folder / PAGE_FILE}, or run: anomaly review {fitted.folder}. No image was excluded."
            f" Delete good images from {fitted.folder / LIST_FILE}, then fit again with --exclude {fitted.folder / LIST_FILE}"
        )
