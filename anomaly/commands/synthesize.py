"""The verb `synthesize`: a category with drawn defects and exact masks from good images, in the layout of MVTec AD."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from anomaly.data.folders import find_category
from anomaly.data.image_files import Sample
from anomaly.data.splits import find_part_groups, split
from anomaly.errors import OutputError
from anomaly.generation.contact_sheet import contact_sheet
from anomaly.generation.defects import KINDS, LEARNED, DrawnDefect, LearnedDefects, synthesize_defects
from anomaly.imaging.image_file import read_image, write_png
from anomaly.inference.session import Device
from anomaly.system.files import atomic_write
from anomaly.system.progress import progress_bar
from anomaly.system.run_card import RunCard

Image = NDArray[np.uint8]
NUM_SHOWN = 24
"""Defects on the contact sheet, each with its mask"""
SHOWN_SIDE = 128
"""Side of an image on the contact sheet in pixels"""


@dataclass(frozen=True)
class Row:
    """Row of defects.csv."""

    path: str
    mask: str
    source: str
    """name of the good image"""
    kind: str
    size: float
    """requested longest extent over the shorter side of the image"""
    contrast: float
    """requested change in hundreds of grey levels"""
    area: int
    """number of changed pixels"""
    seed: int


@dataclass(frozen=True)
class Synthesized:
    """Result of the verb."""

    folder: Path
    num_defects: int
    num_images: int
    """good images that received the defects"""


def synthesize(
    data: Path,
    *,
    out: Path,
    num: int = 100,
    kinds: list[str] = list(KINDS),  # noqa: B006 - never written to
    model: Path | None = None,
    min_size: float = 0.03,
    max_size: float = 0.3,
    min_contrast: float = 0.15,
    max_contrast: float = 0.8,
    seed: int = 0,
    part_group: str | None = None,
    white: int = 255,
    steps: int = 20,
    device: Device = "auto",
    max_pixels: int = 100_000_000,
) -> Synthesized:
    """Draw defects with exact masks onto good images, as a category for training and evaluation.

    The good images are split as in `fit`: four fifths become `train/good`, the others `test/good`. Defects are drawn only onto
    images of `test/good`. A detector fitted on the result has therefore not seen its test images. The PNG comment of each
    drawn image identifies it as synthetic.

    Args:
        data: category in a known layout, or plain folder of good images.
        out: new folder for the category.
        num: number of defects, distributed evenly over the kinds.
        kinds: kinds of defects; a model adds the kind `diffusion`.
        model: sampler.onnx of a latent diffusion model that draws defects into masks.
        min_size: smallest size of a defect, its longest extent over the shorter side of the image; at least 0.01.
        max_size: largest size of a defect, its longest extent over the shorter side of the image; at most 0.5.
        min_contrast: smallest change in hundreds of grey levels, at least 0.02.
        max_contrast: largest change in hundreds of grey levels, at most 1.
        seed: seed of the split and of all draws.
        part_group: regular expression on the paths, or CSV of path and group, that joins the images of one part.
        white: stored value of 16-bit images that becomes 255.
        steps: denoising steps of the model.
        device: inference device of the model.
        max_pixels: largest width × height that is decoded.
    """
    card = RunCard("synthesize", config=dict(locals()))
    learned = LearnedDefects(model, device=device, steps=steps) if model else None
    category = find_category(data)
    part_groups = find_part_groups(category.train, root=category.root, part_group=part_group, duplicates=())
    parts = split(category.train, part_groups, seed=seed, stopping=False)
    defects = synthesize_defects(
        [s.path for s in parts.calibration_images],
        [s.path for s in parts.train],
        num=num,
        kinds=kinds,
        learned=learned,
        min_size=min_size,
        max_size=max_size,
        min_contrast=min_contrast,
        max_contrast=max_contrast,
        seed=seed,
        white=white,
        max_pixels=max_pixels,
    )

    def read(sample: Sample) -> Image:
        return read_image(sample.path, white=white, max_pixels=max_pixels)

    _write_good(parts.train, read, out / "train" / "good", root=out)
    _write_good(parts.calibration_images, read, out / "test" / "good", root=out)
    rows: list[Row] = []
    shown: list[Image] = []
    with progress_bar("draw defects") as report:
        for number, defect in enumerate(defects):
            rows.append(_write_defect(defect, number, out=out, seed=seed))
            if len(shown) < 2 * NUM_SHOWN:
                mask = np.repeat(defect.mask[..., None].astype(np.uint8) * 255, 3, axis=2)
                shown += [_small(defect.image), _small(mask)]
            report(number + 1, num)
    _write_table(out / "defects.csv", rows)
    write_png(out / "contact_sheet.png", contact_sheet(np.stack(shown), num_columns=min(8, len(shown))))
    all_kinds = [*dict.fromkeys(kinds), *([LEARNED] if learned else [])]
    card.facts["result"] = {"num_defects": len(rows), "kinds": all_kinds, "num_train": len(parts.train)}
    card.write(out / "run.json")
    return Synthesized(out, len(rows), len(parts.calibration_images))


def show(result: Synthesized) -> None:
    """Print the number of defects and their folder."""
    print(f"{result.num_defects} defects on {result.num_images} images in {result.folder}", file=sys.stderr)


def _write_good(samples: Sequence[Sample], read: Callable[[Sample], Image], folder: Path, *, root: Path) -> None:
    """Write good images as PNG, like the drawn ones, so that the file format does not reveal the defects.

    Raises:
        OutputError: the folder is not empty, or cannot be written.
    """
    if folder.exists() and any(folder.iterdir()):
        raise OutputError(f"{root} is not empty: name a new folder, or clear it first")
    _make(folder)
    for number, sample in enumerate(samples):
        path = folder / f"{sample.path.stem}.png"
        write_png(path if not path.exists() else folder / f"{number:04d}_{sample.path.stem}.png", read(sample))


def _write_defect(defect: DrawnDefect, number: int, *, out: Path, seed: int) -> Row:
    name, kind = f"{number:04d}", defect.kind
    row = Row(
        path=f"test/{kind}/{name}.png",
        mask=f"ground_truth/{kind}/{name}_mask.png",
        source=defect.source.name,
        kind=kind,
        size=round(defect.size, 4),
        contrast=round(defect.contrast, 4),
        area=int(defect.mask.sum()),
        seed=seed,
    )
    comment = f"synthetic defect: {kind}, size {row.size}, contrast {row.contrast}, seed {seed}, drawn on a good part"
    for path, image in ((row.path, defect.image), (row.mask, defect.mask.astype(np.uint8) * 255)):
        _make((out / path).parent)
        write_png(out / path, image, text={"Comment": comment})
    return row


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be made: {error.strerror}; choose another place") from error


def _write_table(path: Path, rows: Sequence[Row]) -> None:
    with atomic_write(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, [field.name for field in fields(Row)])
        table.writeheader()
        table.writerows(asdict(row) for row in rows)


def _small(image: Image) -> Image:
    return np.asarray(cv2.resize(image, (SHOWN_SIDE, SHOWN_SIDE), interpolation=cv2.INTER_AREA), dtype=np.uint8)
