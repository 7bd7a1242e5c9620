"""The verb `synthesize`: good images in, a category with drawn defects and exact masks out, in the layout of MVTec AD.

Three ways to a defect: drawn kinds (scratch, stain, dent, component, foreign body), pieces and textures of the images
themselves (CutPaste, arXiv 2104.04015; Perlin masks of DRAEM, arXiv 2108.07610), and a mask-conditioned diffusion model
(arXiv 2112.10752), which is asked for a defect of the shape of a drawn one.
"""

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
from anomaly.data.synthetic import DEFECTS, PASTED, draw_any_defect, estimate_foreground
from anomaly.errors import OutputError, Unsupported, UsageError
from anomaly.generation.base import Options
from anomaly.generation.contact_sheet import contact_sheet
from anomaly.generation.latent_diffusion import LatentDiffusionLoop
from anomaly.generation.onnx_sampler import OnnxSampler
from anomaly.imaging.image_file import read_image, write_png
from anomaly.imaging.overlay import enlarge_map
from anomaly.inference.session import Device
from anomaly.system.progress import progress_bar
from anomaly.system.run_card import RunCard
from anomaly.system.suggestions import nearest

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]
LEARNED = "diffusion"
"""The kind that a model draws"""
VISIBLE = 2
"""Grey levels by which a pixel must change to belong to a defect"""
NUM_TRIES = 4
"""Images and shapes tried for one defect that shows nowhere"""
NUM_SHOWN = 24
"""Pairs of a defect and its mask on the contact sheet"""
SHOWN_SIDE = 128


@dataclass(frozen=True)
class Row:
    """What defects.csv says of a drawn defect."""

    path: str
    mask: str
    source: str
    kind: str
    size: float
    """longest extent over the shorter side of the image, as asked for"""
    contrast: float
    area: int
    """pixels that changed"""
    seed: int


def synthesize(
    data: Path,
    *,
    out: Path,
    num: int = 100,
    kinds: list[str] = [*DEFECTS, *PASTED],  # noqa: B006 - never written to
    model: str = "",
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
) -> Path:
    """Draw defects with exact masks onto good images, as a category that can be trained and tested on.

    The images are split as `fit` splits them: four fifths become `train/good`, the rest `test/good`, and defects are
    drawn onto the rest only, so that a detector fitted on the result has not seen the images that it is tested on.

    Args:
        data: a category in a known layout, or a plain folder of good images.
        out: the category to write, a new folder.
        num: defects in all, shared out evenly over the kinds.
        kinds: of defects; `diffusion` is added where a model is given.
        model: sampler.onnx of a latent diffusion model that draws a defect into a mask; none by default.
        min_size: longest extent over the shorter side of the image, 0.01 to 0.5.
        max_size: its largest.
        min_contrast: change in hundreds of grey levels, 0.02 to 1.
        max_contrast: its largest.
        seed: of the split and of everything drawn.
        part_group: regular expression on the paths, or CSV of path and group, that joins the images of one part.
        white: stored value of 16-bit images that becomes 255.
        steps: denoising steps of the model.
        device: that the model runs on.
        max_pixels: largest width × height that is decoded.

    Returns:
        The category: train/good, test/good, test/KIND, ground_truth/KIND, defects.csv, contact_sheet.png and run.json. Every
        drawn image says in its PNG comment that it is synthetic, and how it was made.

    Raises:
        UsageError: a kind, size or contrast that is none.
        DataError: too few images.
        Unsupported: a model that draws no defects.
        OutputError: a folder that is not empty or cannot be written.
    """
    card = RunCard("synthesize", config=dict(locals()))
    for kind in kinds:
        if kind not in (*DEFECTS, *PASTED):
            known = (*DEFECTS, *PASTED)
            raise UsageError(f"no defect {kind!r}; nearest: {nearest(kind, known)!r}; all: {', '.join(known)}")
    if num < 1:
        raise UsageError(f"{num} defects asked for: ask for at least 1")
    for name, low, high in (("size", min_size, max_size), ("contrast", min_contrast, max_contrast)):
        if not low <= high:
            raise UsageError(f"the smallest {name} {low} is above the largest {high}: turn them round")
    learned = _LearnedDefects(Path(model), device=device, steps=steps) if model else None
    chosen: list[str] = [*dict.fromkeys(kinds), *([LEARNED] if learned else [])]
    if not chosen:
        raise UsageError("no kind of defect asked for: give --kinds, or a --model")
    category = find_category(data)
    samples = category.train
    parts = split(
        samples,
        find_part_groups(samples, root=category.root, part_group=part_group, duplicates=()),
        seed=seed,
        stopping=False,
    )

    def read(sample: Sample) -> Image:
        return read_image(sample.path, white=white, max_pixels=max_pixels)

    write_good(parts.train, read, out / "train" / "good", root=out)
    write_good(parts.calibration_images, read, out / "test" / "good", root=out)
    rows: list[Row] = []
    shown: list[Image] = []
    with progress_bar("draw defects") as report:
        for number in range(num):
            kind = chosen[number % len(chosen)]
            for attempt in range(NUM_TRIES):
                rng = np.random.default_rng((seed, number, attempt))
                sample = parts.calibration_images[int(rng.integers(len(parts.calibration_images)))]
                image, others = read(sample), [read(parts.train[i]) for i in rng.integers(len(parts.train), size=2)]
                size = float(np.exp(rng.uniform(np.log(min_size), np.log(max_size))))
                contrast = float(rng.uniform(min_contrast, max_contrast))
                foreground = estimate_foreground(image)
                try:
                    if kind == LEARNED and learned is not None:
                        drawn, mask = learned.draw(image, foreground=foreground, size=size, contrast=contrast, rng=rng)
                    else:
                        drawn, mask = draw_any_defect(
                            image, kind, size=size, contrast=contrast, foreground=foreground, sources=others, rng=rng
                        )
                    break
                except UsageError as error:
                    if isinstance(error, Unsupported) or attempt + 1 == NUM_TRIES:
                        raise
            name = f"{number:04d}"
            row = Row(
                path=f"test/{kind}/{name}.png",
                mask=f"ground_truth/{kind}/{name}_mask.png",
                source=sample.path.name,
                kind=kind,
                size=round(size, 4),
                contrast=round(contrast, 4),
                area=int(mask.sum()),
                seed=seed,
            )
            _write(out, row, drawn, mask)
            rows.append(row)
            if len(shown) < 2 * NUM_SHOWN:
                shown += [_small(drawn), _small(np.repeat(mask[..., None].astype(np.uint8) * 255, 3, axis=2))]
            report(number + 1, num)
    _write_table(out / "defects.csv", rows)
    write_png(out / "contact_sheet.png", contact_sheet(np.stack(shown), num_columns=min(8, len(shown))))
    card.facts["result"] = {"num_defects": len(rows), "kinds": chosen, "num_train": len(parts.train)}
    card.write(out / "run.json")
    print(f"{len(rows)} defects on {len(parts.calibration_images)} images in {out}", file=sys.stderr)
    return out


class _LearnedDefects:
    """A diffusion model that draws a defect into the shape of a drawn one, brought to the image's own resolution."""

    def __init__(self, model: Path, *, device: Device, steps: int) -> None:
        self._sampler = OnnxSampler(model, device=device, num_threads=0)
        loop = self._sampler.sampling_loop()
        if not isinstance(loop, LatentDiffusionLoop):
            raise Unsupported(
                f"{model} holds {loop.info.sampler}, which draws no defect into a mask: fit --detector latent_diffusion"
            )
        self._process = loop
        self._options = Options(steps=steps)

    def draw(
        self, image: Image, *, foreground: Mask, size: float, contrast: float, rng: np.random.Generator
    ) -> tuple[Image, Mask]:
        """Add the change that the model makes of the small image to the image, inside a drawn shape."""
        kind = ("stain", "scratch", "dent")[int(rng.integers(3))]
        _, shape = draw_any_defect(
            image, kind, size=size, contrast=max(contrast, 0.3), foreground=foreground, sources=[image], rng=rng
        )
        x = self._sampler.prepare(image[None])
        small = cv2.resize(shape.astype(np.float32), x.shape[:1:-1], interpolation=cv2.INTER_AREA) > 0
        drawn = self._process.draw_defect(x, small[None], rng=rng, options=self._options)
        change = 255 * (drawn - x)[0]
        height, width = image.shape[:2]
        resize = self._sampler.metadata.config["resize"]
        enlarged = np.stack([enlarge_map(part, height=height, width=width, resize=resize) for part in change], axis=-1)
        reach = max(1.0, max(height / x.shape[2], width / x.shape[3]) / 2)
        feather = cv2.GaussianBlur(cv2.dilate(shape.astype(np.float32), np.ones((3, 3))), (0, 0), reach)
        candidate = np.clip(np.rint(image + enlarged * feather[..., None]), 0, 255).astype(np.uint8)
        mask = np.abs(candidate.astype(np.int16) - image.astype(np.int16)).max(axis=2) >= VISIBLE
        if not mask.any():
            raise UsageError("the model's defect shows nowhere: train it longer, or give a larger --min-size")
        return np.where(mask[..., None], candidate, image), mask


def write_good(samples: Sequence[Sample], read: Callable[[Sample], Image], folder: Path, *, root: Path) -> None:
    """Write good images into a folder of a new category, as PNG like the drawn ones, so that no format tells them apart.

    Raises:
        OutputError: the category's folder holds such a part already, or cannot be written.
    """
    if folder.exists() and any(folder.iterdir()):
        raise OutputError(f"{root} is not empty: name a new folder, or clear it first")
    _make(folder)
    for number, sample in enumerate(samples):
        name = folder / f"{sample.path.stem}.png"
        write_png(name if not name.exists() else folder / f"{number:04d}_{sample.path.stem}.png", read(sample))


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be made: {error.strerror}; choose another place") from error


def _write(out: Path, row: Row, drawn: Image, mask: Mask) -> None:
    told = (
        f"synthetic defect: {row.kind}, size {row.size}, contrast {row.contrast}, seed {row.seed}, drawn on a good part"
    )
    for name, picture in ((row.path, drawn), (row.mask, mask.astype(np.uint8) * 255)):
        try:
            (out / name).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"{(out / name).parent} cannot be made: {error.strerror}; choose another place"
            ) from error
        write_png(out / name, picture, text={"Comment": told})


def _write_table(path: Path, rows: Sequence[Row]) -> None:
    try:
        with path.open("w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, [field.name for field in fields(Row)])
            table.writeheader()
            table.writerows(asdict(row) for row in rows)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}; choose another place") from error


def _small(image: Image) -> Image:
    return np.asarray(cv2.resize(image, (SHOWN_SIDE, SHOWN_SIDE), interpolation=cv2.INTER_AREA), dtype=np.uint8)
