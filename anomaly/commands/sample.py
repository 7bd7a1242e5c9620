"""The verb `sample`: images drawn from an exported sampler, or made from given images."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from anomaly.data.folders import list_images
from anomaly.errors import OutputError, UsageError
from anomaly.generation.base import Options
from anomaly.generation.onnx_sampler import OnnxSampler
from anomaly.generation.sample import Drawing, ImageSampler
from anomaly.imaging.image_file import write_png
from anomaly.inference.session import Device
from anomaly.system.run_card import RunCard

SYNTHETIC = {"Comment": "synthetic image, drawn by a generative model"}


@dataclass(frozen=True)
class Written:
    """Result of the verb."""

    folder: Path
    num_images: int


def sample(
    model: Path,
    *,
    out: Path,
    num: int = 16,
    seed: int = 0,
    batch_size: int = 16,
    reconstruct: str | None = None,
    interpolate: tuple[str, str] | None = None,
    inpaint: Path | None = None,
    mask: Path | None = None,
    attribute: tuple[str, str] | None = None,
    strength: float | None = None,
    steps: int = Options.steps,
    eta: float = Options.eta,
    temperature: float = Options.temperature,
    label: int | None = Options.label,
    device: Device = "auto",
    num_threads: int = 0,
    max_pixels: int = 100_000_000,
) -> Written:
    """Draw images from an exported sampler: PNG files and a contact sheet, equal for equal seeds.

    Args:
        model: sampler.onnx of `anomaly export`.
        out: folder for the images.
        num: number of images; `--interpolate` counts both ends, `--inpaint` the variants.
        seed: seed of all draws.
        batch_size: images per inference; another batch size gives other images.
        reconstruct: folder, glob or list of images to reconstruct.
        interpolate: two images; the images between them are drawn.
        inpaint: image with unknown pixels, which the sampler draws; needs `--mask`.
        mask: mask image for `--inpaint`; its pixels above 0 are unknown.
        attribute: two folders, with and without an attribute, which is added to the images without it.
        strength: factor on an attribute, by default 1; or noise level of a partial diffusion in (0, 1], by default 0.5.
        steps: denoising steps of a diffusion model.
        eta: share of fresh noise per step of a diffusion model: 0 is DDIM, 1 is DDPM.
        temperature: factor on the latent's standard deviation; below 1 for more typical images, above 1 for more varied.
        label: class of a conditional model; without a class by default.
        device: inference device: auto, cpu, cuda or tensorrt.
        num_threads: threads of one inference on the CPU; 0 takes all processors.
        max_pixels: largest width × height that is decoded.
    """
    card = RunCard("sample", config=dict(locals()))
    requested = {"reconstruct": reconstruct, "interpolate": interpolate, "inpaint": inpaint, "attribute": attribute}
    modes = [name for name, value in requested.items() if value is not None]
    if len(modes) > 1:
        raise UsageError(f"--{' and --'.join(modes)} together: give one of them")
    if (inpaint is None) != (mask is None):
        raise UsageError("--inpaint IMAGE and --mask MASK belong together: give both")
    if num < 1 or batch_size < 1:
        raise UsageError(f"{num} images in batches of {batch_size}: give at least 1 of each")
    options = Options(
        steps=steps,
        eta=eta,
        temperature=temperature,
        strength=Options.strength if strength is None or attribute is not None else strength,
        label=label,
    )
    sampler = OnnxSampler(model, device=device, num_threads=num_threads)
    images = ImageSampler(sampler, seed=seed, batch_size=batch_size, options=options, max_pixels=max_pixels)
    if reconstruct is not None:
        drawing = images.reconstruct(list_images(reconstruct))
    elif interpolate is not None:
        drawing = images.interpolate(*interpolate, num=num)
    elif inpaint is not None and mask is not None:
        drawing = images.inpaint(inpaint, mask, num=num)
    elif attribute is not None:
        present, absent = (list_images(folder) for folder in attribute)
        drawing = images.attribute(present, absent, num=num, strength=1.0 if strength is None else strength)
    else:
        drawing = images.sample(num)
    _write(drawing, out)
    card.facts["result"] = {
        "mode": modes[0] if modes else "sample",
        "graph": sampler.metadata.sha256,
        "num_images": len(drawing.image),
    }
    card.write(out / "run.json")
    return Written(out, len(drawing.image))


def show(written: Written) -> None:
    """Print the number of images and their folder."""
    print(f"{written.num_images} images and contact_sheet.png in {written.folder}", file=sys.stderr)


def _write(drawing: Drawing, out: Path) -> None:
    """Write images as 0000.png … and the contact sheet; a PNG comment marks all as synthetic.

    Raises:
        OutputError: the folder or a file cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"folder {out} cannot be made: {error.strerror}; choose another place") from error
    pictures: list[tuple[str, NDArray[np.uint8]]] = [(f"{n:04d}.png", image) for n, image in enumerate(drawing.image)]
    for name, image in [*pictures, ("contact_sheet.png", drawing.sheet)]:
        write_png(out / name, image, text=SYNTHETIC)
