"""From a folder of good images to a calibrated detector in a run folder."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray

from anomaly.conformal.calibration import GuaranteeKind, guarantee_for, resolve_alpha
from anomaly.data.duplicates import duplicate_files
from anomaly.data.folders import Sample, find_category
from anomaly.data.splits import drop_excluded, find_part_groups, split
from anomaly.errors import DataError, OutputError, UsageError
from anomaly.imaging.header import image_header
from anomaly.imaging.image_file import read_file, read_image, read_mask, stored_maximum, white_level
from anomaly.imaging.statistics import image_statistics, summarise
from anomaly.inference.artifact import Brightness, CalibrationRecord, golden_png
from anomaly.registry import detector_class
from anomaly.system.progress import progress_bar
from anomaly.system.run_card import RunCard, now
from anomaly.training.dataset import GoodData, GoodImages
from anomaly.training.fitted_model import CARD_FILE, Description, build_detector, save
from anomaly.training.loop import INTERRUPTED, Precision, TrainingDevice, train
from anomaly.training.tiling import check_seam, choose_tiling, raw_scores


def fit(
    data: Path,
    *,
    out: Path,
    detector: str = "fastflow",
    model: dict[str, Any] | None = None,
    alpha: float | Literal["default"] = "default",
    guarantee: GuaranteeKind = "expected",
    seed: int = 0,
    part_group: str | None = None,
    exclude: str | None = None,
    roi: str = "",
    white: int | Literal["from-images"] = "from-images",
    max_pixels: int = 100_000_000,
    precision: Precision = "fp32",
    device: TrainingDevice = "auto",
    cache_gib: float = 2.0,
    resume: bool = False,
    tile: str = "",
    windows: int = 0,
    brightness: Brightness = "kept",
) -> Path:
    """Train a detector or a sampler on good images, calibrate what scores on calibration images; no test image is touched.

    Args:
        data: a category in a known layout, or a plain folder of good images.
        out: the run folder to write.
        detector: a name of the registry, of a detector or a sampler, or package.module:Class.
        model: options of the detector's constructor.
        alpha: share of good parts that may be rejected; by default 0.01, or the tightest that the images support.
        guarantee: whether alpha bounds the expected rate or its 95 % upper bound.
        seed: of the split, the initial weights and the order of training.
        part_group: regular expression on the paths, or CSV of path and group, that joins the images of one part.
        exclude: text file with the names of images to leave out, one a line.
        roi: region of interest, x,y,w,h in pixels or the path of a mask.
        white: stored value of 16-bit images that becomes 255.
        max_pixels: largest width × height that is decoded.
        precision: of training, `fastest` is bf16 where the processor has it; calibration and export are fp32.
        device: to train on.
        cache_gib: memory in GiB for decoded images.
        resume: go on from an interrupted fit in `out`.
        tile: H,W in pixels: large images are scored in seamless tiles of their own pixels, by a fully convolutional detector
            that learns from crops of its size; its options `resize` and `cache_gib` then mean nothing.
        windows: pixels from one window to the next: large images are scored in overlapping windows of the detector's size.
        brightness: `levelled` gives every image the mean grey level of the training ones, by one factor and in the
            graph: varying light then moves no score, and a part too bright or too dark as a whole is no defect.

    Returns:
        The run folder.

    Raises:
        DataError: images that cannot be used, or too few.
        CalibrationError: an alpha that the calibration images cannot support.
        TrainingError: a loss that is no number, or too little memory; what was learned is kept for `resume`.
        OutputError: a run folder that cannot be written.
        UsageError: an option that cannot be, such as tiles of a detector that has none, with the reason.
    """
    if brightness not in get_args(Brightness):
        raise UsageError(f"brightness {brightness!r} is not known: give {' or '.join(get_args(Brightness))}")
    card = RunCard("fit", config=dict(locals()))
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"run folder {out} cannot be made: {error.strerror}; choose another place") from error
    category = find_category(data)
    given = set(category.calibration_images)
    kept, dropped = drop_excluded([*category.train, *category.calibration_images], read_names(exclude))
    with progress_bar("look at the images") as report:
        duplicates = duplicate_files([s.path for s in kept], max_pixels=max_pixels, progress=report)
    white = choose_white(white, kept, max_pixels=max_pixels)
    pl.seed_everything(seed, verbose=False)
    options = dict(model or {})
    if (tile or windows) and "cache_gib" in inspect.signature(detector_class(detector)).parameters:
        options["cache_gib"] = 0.0  # no crop comes twice
    built = build_detector(detector, options)
    card.facts["config"]["model"] = dict(built.hparams)
    groups = find_part_groups(kept, root=category.root, part_group=part_group, duplicates=duplicates)
    parts = split(
        [s for s in kept if s not in given],
        groups,
        seed=seed,
        stopping=built.needs_stopping_images,
        given=[s for s in kept if s in given],
    )
    alpha = resolve_alpha(alpha, num_images=len(parts.calibration_images), guarantee=guarantee)
    guarantee_for(len(parts.calibration_images), alpha=alpha, guarantee=guarantee)  # refuse before training, not after

    def read(some: Sequence[Sample]) -> GoodImages:
        return GoodImages(some, white=white, max_pixels=max_pixels, cache_gib=cache_gib)

    def image(sample: Sample) -> NDArray[np.uint8]:
        return read_image(sample.path, white=white, max_pixels=max_pixels)

    tiling = None
    if tile or windows:
        heights, widths = zip(*read(kept).sizes(), strict=True)
        smallest = min(heights), min(widths)
        tiling = choose_tiling(built, tile=tile, windows=windows, smallest=smallest, roi=roi, brightness=brightness)
    loaders = GoodData(
        train=parts.train,
        calibration_images=parts.calibration_images,
        stopping=parts.stopping,
        batch_size=built.batch_size,
        read=read,
        seed=seed,
        crop=built.preprocess.size if tiling else None,
    )
    if roi:
        height, width = image(parts.calibration_images[0]).shape[:2]
        mask = read_roi(roi, height=height, width=width, max_pixels=max_pixels)
        built.preprocess.set_roi(torch.from_numpy(mask))
        if not built.preprocess.roi.any():
            height, width = built.preprocess.size
            raise UsageError(f"region {roi!r} holds no whole pixel of the network's {width}×{height}: make it larger")
    if brightness == "levelled":
        built.preprocess.level_brightness(batch.image for batch in loaders.probe_dataloader(built.batch_size))
    with card.timed("fit"):
        train(built, loaders, out=out, precision=precision, device=device, resume=resume)
    scores, difference = np.zeros(0), 0.0
    if built.scores:
        with card.timed("calibrate"):
            if tiling:
                raw = raw_scores(built, map(image, parts.calibration_images), tiling=tiling)
                scores = built.calibration.fit(*raw, alpha=alpha, guarantee=guarantee)
                difference = check_seam(built, image(parts.calibration_images[0]), tiling=tiling)
            else:
                scores = built.calibrate(loaders.calibration_dataloader(), alpha=alpha, guarantee=guarantee)
    typical = parts.calibration_images[int(np.argsort(scores)[len(scores) // 2]) if built.scores else 0]
    description = Description(
        detector=detector,
        config=dict(built.hparams),
        provenance=built.provenance,
        category=category.name,
        white=white,
        roi=roi,
        alpha=alpha,
        guarantee=guarantee,
        seed=seed,
        max_pixels=max_pixels,
        calibration=CalibrationRecord(
            num_images=len(scores),
            num_part_groups=len({groups[s.path] for s in parts.calibration_images}),
            scores=[float(s) for s in np.sort(scores)],
            date=now(),
            source="calibration",
            excluded=sorted(s.path.name for s in dropped),
        ),
        image_stats=summarise([image_statistics(image(s)) for s in parts.calibration_images]),
        golden=golden_png(image(typical)),
        train=[str(s.path) for s in parts.train],
        calibration_images=[str(s.path) for s in parts.calibration_images],
        stopping=[str(s.path) for s in parts.stopping],
        tiling=tiling,
        brightness=brightness,
    )
    save(built, description, out)
    card.facts["result"] = {
        "alpha": alpha,
        "white": white,
        "num_train": len(parts.train),
        "num_calibration": len(parts.calibration_images),
        "num_stopping": len(parts.stopping),
        "num_excluded": len(dropped),
    }
    if tiling:
        card.facts["result"]["tiling"] = asdict(tiling) | {"largest_difference": difference}
    card.write(out / CARD_FILE)
    (out / INTERRUPTED).unlink(missing_ok=True)
    return out


def read_names(file: str | None) -> list[str]:
    """Read a list of file names, one a line; no file, no names.

    Raises:
        DataError: the list cannot be read.
    """
    if not file:
        return []
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"the list {file} cannot be read ({error}); give a text file in UTF-8, one name a line"
        ) from error
    return [line.strip() for line in lines if line.strip()]


def choose_white(white: int | Literal["from-images"], samples: Sequence[Sample], *, max_pixels: int) -> int:
    """Choose the stored value of 16-bit images that becomes 255: as asked, or from the images' maximum."""
    if white != "from-images":
        return white
    deep = [
        stored_maximum(s.path, max_pixels=max_pixels)
        for s in samples
        if image_header(read_file(s.path, max_pixels=max_pixels), name=str(s.path)).bits > 8
    ]
    return white_level(max(deep)) if deep else 255


def read_roi(roi: str, *, height: int, width: int, max_pixels: int) -> NDArray[np.bool_]:
    """Read a region of interest, `x,y,w,h` in pixels or the path of a mask, as (height, width) bool.

    Raises:
        UsageError: a region that does not lie within the images.
    """
    parts = roi.split(",")
    if len(parts) == 4 and all(part.strip().isdigit() for part in parts):
        x, y, w, h = (int(part) for part in parts)
        if not w or not h or x + w > width or y + h > height:
            raise UsageError(f"region {roi!r} (x,y,w,h from the top left) does not lie within {width}×{height} pixels")
        mask: NDArray[np.bool_] = np.zeros((height, width), dtype=bool)
        mask[y : y + h, x : x + w] = True
        return mask
    mask = read_mask(Path(roi), max_pixels=max_pixels)
    if mask.shape != (height, width):
        raise UsageError(f"region {roi} is {mask.shape[1]}×{mask.shape[0]}, the images are {width}×{height}")
    return mask
