"""`fit_model`: from a folder of good images to a trained and calibrated model."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np

from anomaly.conformal.guarantee import GuaranteeKind, check_guarantee, resolve_alpha
from anomaly.data.duplicates import duplicate_files
from anomaly.data.folders import find_category
from anomaly.data.splits import drop_excluded, find_part_groups
from anomaly.detectors.base import Detector, RawScores
from anomaly.errors import OutputError, UsageError
from anomaly.imaging.statistics import image_statistics, summarise
from anomaly.inference.artifact import HASH_LENGTH, Brightness, CalibrationRecord
from anomaly.inference.golden import golden_png
from anomaly.system.argument_types import check_types
from anomaly.system.files import TemporaryFolder, sha256_of, usable_path
from anomaly.system.progress import progress_bar
from anomaly.system.run_card import now
from anomaly.training.calibrate import cross_scores, left_out_scores
from anomaly.training.choice import check_request, choose_job
from anomaly.training.construction import CalibrationChoice, choose_construction, group_sizes, split_images
from anomaly.training.fitted_model import EXPORTS, Description, FittedModel, detector_of, save
from anomaly.training.loop import INTERRUPTED, Precision, TrainingDevice
from anomaly.training.options import choose_white, read_names
from anomaly.training.suspects import Ranking, find_suspects
from anomaly.training.suspects_files import write_suspects
from anomaly.training.tiling import check_seam, choose_tiling, raw_scores
from anomaly.training.training_job import ImageReader, TrainingJob, options_for_images


def fit_model(
    data: str | Path,
    *,
    out: str | Path | None = None,
    detector: str = "auto",
    options: Mapping[str, Any] | None = None,
    alpha: float | None = None,
    guarantee: GuaranteeKind = "expected",
    seed: int = 0,
    part_group: str | None = None,
    exclude: str | Path | None = None,
    roi: str | Path | None = None,
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
        out: folder for the fitted model; None keeps it in a temporary folder that exists as long as the result.
        detector: registry name of a detector or a sampler, package.module:Class, or `auto`: the winner of a race on the
            good images (see `anomaly.training.race`).
        options: arguments of the constructor of the detector or sampler.
        alpha: largest share of good parts above the threshold; None is 0.01, or the tightest that the images support.
        guarantee: whether alpha bounds the expected share or its 95 % upper bound.
        seed: seed of the split, the initial weights and the training order.
        part_group: regular expression on the paths, or CSV of path and group, that joins the images of one part.
        exclude: text file with names of excluded images, one per line.
        roi: region of interest, x,y,w,h in pixels or the path of a mask.
        white: stored value of 16-bit images that becomes 255; None derives it from the brightest image.
        max_pixels: largest width × height that is decoded.
        precision: number format of training; `fastest` is bf16 where the hardware supports it. Calibration is fp32.
        device: training device.
        cache_gib: memory for decoded images in GiB.
        resume: whether to continue the interrupted fit in `out`.
        tile: tile size H,W in pixels: large images are scored in seamless tiles, and training uses crops.
        windows: window distance in pixels: large images are scored in overlapping windows of the network's size.
        brightness: treatment of brightness. `levelled` scales every image to the training images' mean grey level, inside
            the graph. Varying light then changes no score. A part that is too bright or too dark as a whole is not a defect.
        calibration: use of the images. `split` calibrates on a fifth of them, which do not train. `leave_one_out` trains
            and calibrates on all of them: each is scored without itself. `cross` does so by five further trainings, each
            without a fifth of the images. `auto` takes `leave_one_out` where the detector supports it, else `split`.
        budget_ms: largest permitted time in milliseconds to score an image on one core, for `auto`; None for any.
        suspects: ranking that names suspicious images; none is excluded. `mutual` compares all images with each other.
            `calibration` takes the calibration scores, which costs no time. `none` names no image.

    Returns:
        The fitted model.

    Raises:
        DataError: unusable images, or too few of them.
        CalibrationError: the calibration images cannot support alpha.
        TrainingError: a loss that is not finite, or too little memory; `resume` continues from the checkpoint.
        OutputError: the folder cannot be written.
        UsageError: an invalid option, or tiles for a detector without support for them.
    """
    check_types(locals(), get_type_hints(fit_model))
    if not 0 <= seed < 2**32:
        raise UsageError(f"seed {seed}: give 0 to {2**32 - 1}")
    if max_pixels < 1:
        raise UsageError(f"max_pixels {max_pixels}: give 1 or more")
    if resume and out is None:
        raise UsageError("resume continues a fit in its folder: give that folder as `out`")
    tiled = tile is not None or windows is not None
    check_request(detector, options, budget_ms=budget_ms, tiled=tiled)
    temporary = TemporaryFolder() if out is None else None
    folder = _make_folder(usable_path(out, name="out") if out is not None else temporary.path)  # type: ignore[union-attr]
    category = find_category(usable_path(data, name="data"))
    samples, excluded = drop_excluded([*category.train, *category.calibration_images], read_names(exclude))
    with progress_bar("read the images") as report:
        duplicates = duplicate_files([s.path for s in samples], max_pixels=max_pixels, progress=report)
    white = choose_white(white, samples, max_pixels=max_pixels)
    images = ImageReader(white=white, max_pixels=max_pixels, cache_gib=cache_gib)
    job = TrainingJob(
        name=detector,
        options=options or {},
        images=images,
        seed=seed,
        precision=precision,
        device=device,
        roi=roi,
        brightness=brightness,
        crops=tiled,
    )
    part_groups = find_part_groups(samples, root=category.root, part_group=part_group, duplicates=duplicates)
    job, race = choose_job(job, samples, part_groups, budget_ms=budget_ms)
    seconds = {} if race is None else {"race": race.seconds}
    job = replace(job, options=options_for_images(job.name, job.options, samples=samples, images=images, crops=tiled))
    model = job.build()
    construction = choose_construction(calibration, model=model, category=category, tiled=tiled, guarantee=guarantee)
    parts = split_images(samples, category, part_groups, model=model, construction=construction, seed=seed)
    num_part_groups = len({part_groups[s.path] for s in parts.calibration_images})
    alpha = resolve_alpha(alpha, num_groups=num_part_groups, guarantee=guarantee)
    # refuse before the training
    check_guarantee(num_part_groups, alpha=alpha, guarantee=guarantee, construction=construction)
    tiling = None
    if tiled:
        heights, widths = zip(*images.dataset(samples).sizes(), strict=True)
        tiling = choose_tiling(
            model, tile=tile, windows=windows, smallest=(min(heights), min(widths)), roi=roi, brightness=job.brightness
        )

    with _timed(seconds, "fit"):
        job.train(model, parts.train, out=folder, stopping=parts.stopping, resume=resume)
    scorer, scores, seam_difference = detector_of(model), np.zeros(0), None
    sizes = group_sizes(parts.calibration_images, part_groups)
    if scorer is not None:
        with _timed(seconds, "calibrate"):
            if construction == "leave_one_out":
                raw = left_out_scores(scorer, parts.train, part_groups, read=images.read)
            elif construction == "cross":
                raw = cross_scores(parts.train, part_groups, job=job)
            elif tiling:
                raw = RawScores(*raw_scores(scorer, map(images.read, parts.calibration_images), tiling=tiling))
                seam_difference = check_seam(scorer, images.read(parts.calibration_images[0]), tiling=tiling)
            else:
                raw = job.scores(scorer, parts.calibration_images)
            scores = scorer.calibration.fit(*raw, alpha=alpha, guarantee=guarantee, group_sizes=sizes)
    order = np.argsort(scores, kind="stable")
    typical = parts.calibration_images[int(order[len(order) // 2]) if len(order) else 0]
    description = Description(
        detector=job.name,
        config=dict(model.hparams),
        provenance=model.provenance,
        category=category.name,
        white=white,
        roi=None if roi is None else str(roi),
        alpha=alpha,
        guarantee=guarantee,
        seed=seed,
        max_pixels=max_pixels,
        calibration=CalibrationRecord(
            num_images=len(scores),
            num_part_groups=num_part_groups,
            scores=[float(scores[n]) for n in order],
            date=now(),
            source="calibration",
            excluded=sorted(s.path.name for s in excluded),
            construction=construction,
            exact=construction == "split"
            or (construction == "leave_one_out" and scorer is not None and scorer.leave_one_out_is_exact),
            group_sizes=[sizes[n] for n in order] if sizes else [],
        ),
        image_stats=summarise([image_statistics(images.read(s)) for s in parts.calibration_images]),
        golden=golden_png(images.read(typical)),
        train=[str(s.path) for s in parts.train],
        calibration_images=[str(s.path) for s in parts.calibration_images],
        stopping=[str(s.path) for s in parts.stopping],
        calibration_scores=[float(s) for s in scores],
        calibration_peaks=_calibrated_peaks(scorer, raw) if scorer is not None else [],
        train_part_groups=_group_numbers([part_groups[s.path] for s in parts.train]),
        train_sizes=[list(size) for size in images.dataset(parts.train).sizes()],
        train_hashes=[sha256_of(s.path)[:HASH_LENGTH] for s in parts.train],
        tiling=tiling,
        brightness=job.brightness,
        race=race,
    )
    stale = sorted({path for pattern in EXPORTS for path in folder.glob(pattern)})
    fitted = FittedModel(
        model=model,
        detector=scorer,
        description=description,
        folder=folder,
        seconds=seconds,
        removed=tuple(path.name for path in stale),
        seam_difference=seam_difference,
        temporary=temporary,
    )
    save(fitted)
    with _timed(seconds, "suspects"):
        read = images.read if roi is None else images.read_inside(roi)
        ranking = find_suspects(samples, description, part_groups, ranking=suspects, read=read)
        write_suspects(
            ranking,
            folder,
            description=description,
            data=category.root,
            excluded=read_names(exclude),
            read=images.read,
        )
    fitted = replace(fitted, suspects=ranking)
    for path in stale:
        path.unlink(missing_ok=True)
    (folder / INTERRUPTED).unlink(missing_ok=True)
    return fitted


def _calibrated_peaks(detector: Detector, raw: RawScores) -> list[float]:
    """Maxima of the calibrated maps."""
    scale = detector.calibration
    return [float(p) for p in (raw.peak - float(scale.offset_map)) / float(scale.scale_map)]


def _group_numbers(part_groups: Sequence[str]) -> list[int]:
    """Number the part groups in the order of their first image."""
    numbers = {group: n for n, group in enumerate(dict.fromkeys(part_groups))}
    return [numbers[group] for group in part_groups]


def _make_folder(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"folder {folder} cannot be created: {error.strerror}; choose another place") from error
    return folder


@contextmanager
def _timed(seconds: dict[str, float], step: str) -> Iterator[None]:
    begin = time.perf_counter()
    yield
    seconds[step] = round(time.perf_counter() - begin, 3)
