"""The verb `sample`: images drawn from an exported sampler, or made of given ones by what it learned."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from anomaly.data.folders import list_images
from anomaly.errors import DataError, OutputError, UsageError
from anomaly.generation.base import Array, Options, SamplingLoop, in_batches
from anomaly.generation.contact_sheet import contact_sheet, to_bytes
from anomaly.generation.onnx_sampler import OnnxSampler
from anomaly.imaging.image_file import read_image, read_mask, write_png
from anomaly.inference.session import Device
from anomaly.system.progress import progress_bar
from anomaly.system.run_card import RunCard

SYNTHETIC = {"Comment": "synthetic image, drawn by a generative model"}
MODES = ("reconstruct", "interpolate", "inpaint", "attribute")


def sample(
    model: Path,
    *,
    out: Path,
    num: int = 16,
    seed: int = 0,
    batch_size: int = 16,
    reconstruct: str = "",
    interpolate: tuple[str, str] = ("", ""),
    inpaint: str = "",
    mask: str = "",
    attribute: tuple[str, str] = ("", ""),
    strength: float | Literal["default"] = "default",
    steps: int = Options.steps,
    eta: float = Options.eta,
    temperature: float = Options.temperature,
    label: int = Options.label,
    device: Device = "auto",
    num_threads: int = 0,
    max_pixels: int = 100_000_000,
) -> Path:
    """Draw images from a sampler's file through ONNX Runtime: PNG files and a contact sheet, the same for the same seed.

    Args:
        model: the sampler.onnx of `anomaly export`.
        out: folder to write into.
        num: images to draw; with `interpolate` the images on the way, with `inpaint` the variants.
        seed: of everything drawn.
        batch_size: images per inference; another one draws other images.
        reconstruct: a folder, glob or list of images: give back what the model makes of each.
        interpolate: two images: the way from the first to the second.
        inpaint: an image, of which the part under `mask` is drawn anew.
        mask: an image of the size of `inpaint`, not 0 where it is unknown.
        attribute: two folders, with and without an attribute: its direction is added to the images without it.
        strength: of an attribute, any factor (1 by default); or of a partial diffusion, in (0, 1] (0.5 by default).
        steps: denoising steps of a diffusion model.
        eta: 0 draws by DDIM, 1 by DDPM.
        temperature: factor on the deviation of what is drawn; below 1 more typical, above 1 more varied.
        label: class to draw, of a conditional model; -1 draws without.
        device: auto, cpu, cuda or tensorrt.
        num_threads: of one inference on the CPU; 0 takes all this process may use.
        max_pixels: largest width × height that is decoded.

    Returns:
        The folder, with 0000.png …, contact_sheet.png and run.json.

    Raises:
        UsageError: two modes at once, an option that this family does not read, images that do not fit each other.
        Unsupported: what the family has not, with the reason.
        ModelError: a file that is no sampler's.
        OutputError: a folder that cannot be written.
    """
    card = RunCard("sample", config=dict(locals()))
    asked = (reconstruct, any(interpolate), inpaint, any(attribute))
    modes = [name for name, value in zip(MODES, asked, strict=True) if value]
    if len(modes) > 1:
        raise UsageError(f"--{' and --'.join(modes)} at once: ask for one of them")
    if bool(inpaint) != bool(mask):
        raise UsageError("--inpaint IMAGE and --mask MASK go together: give both")
    if num < 1 or batch_size < 1:
        raise UsageError(f"{num} images in batches of {batch_size}: ask for at least 1 of each")
    sampler = OnnxSampler(model, device=device, num_threads=num_threads)
    loop = sampler.sampling_loop()
    mode = modes[0] if modes else "sample"
    is_attribute = mode == "attribute"
    partial = Options.strength if strength == "default" or is_attribute else float(strength)
    options = Options(steps=steps, eta=eta, temperature=temperature, strength=partial, label=label)
    check_options(loop, options)
    rng = np.random.default_rng(seed)

    def read(path: str) -> NDArray[np.uint8]:
        return read_image(path, white=sampler.metadata.white, max_pixels=max_pixels)

    def prepared(paths: Sequence[str]) -> Array:
        return np.concatenate([sampler.prepare(read(path)[None]) for path in paths])

    with progress_bar(mode) as report:
        if mode == "sample":
            drawn = np.concatenate(
                in_batches(
                    lambda n: loop.sample(n, rng=rng, options=options),
                    num=num,
                    batch_size=batch_size,
                    report=report,
                )
            )
            sheet = contact_sheet(to_bytes(drawn))
        elif mode == "reconstruct":
            paths = list_images(reconstruct)
            drawn, given = _in_turn(
                paths, prepared, lambda x: loop.reconstruct(x, rng=rng, options=options), batch_size, report
            )
            sheet = _pairs(given, drawn)
        elif mode == "interpolate":
            a, b = (read(path) for path in interpolate)
            if a.shape != b.shape:
                raise UsageError(
                    f"{interpolate[0]} is {a.shape[1]}×{a.shape[0]}, {interpolate[1]} is {b.shape[1]}×{b.shape[0]}:"
                    " give two images of one size"
                )
            ends = prepared(interpolate)
            drawn = loop.interpolate(ends[0], ends[1], num=num, options=options)
            sheet = contact_sheet(to_bytes(drawn), num_columns=len(drawn))
        elif mode == "inpaint":
            image, unknown = read(inpaint), read_mask(Path(mask), max_pixels=max_pixels)
            x, m = prepared([inpaint]), fitted_mask(unknown, image, size=sampler.metadata.info.size)
            drawn = np.concatenate(
                in_batches(
                    lambda n: loop.inpaint(
                        np.repeat(x, n, axis=0), np.repeat(m[None], n, axis=0), rng=rng, options=options
                    ),
                    num=num,
                    batch_size=batch_size,
                    report=report,
                )
            )
            hidden = np.where(m, np.float32(0.5), x[0])
            sheet = contact_sheet(to_bytes(np.concatenate((x, hidden[None], drawn))))
        else:
            present, absent = (prepared(list_images(folder)) for folder in attribute)
            given = absent[:num]
            factor = 1.0 if strength == "default" else float(strength)
            drawn = loop.attribute(given, present, absent, strength=factor, options=options)
            sheet = _pairs(given, drawn)
        report(len(drawn), len(drawn))
    write_images(to_bytes(drawn), sheet, out=out)
    card.facts["result"] = {"mode": mode, "graph": sampler.metadata.sha256, "num_images": len(drawn)}
    card.write(out / "run.json")
    print(f"{len(drawn)} images and contact_sheet.png in {out}", file=sys.stderr)
    return out


def check_options(loop: SamplingLoop, options: Options) -> None:
    """Refuse an option that was moved and that the loop does not read.

    Raises:
        UsageError: with the options that it reads.
    """
    for field in fields(Options):
        if getattr(options, field.name) != field.default and field.name not in loop.known_options:
            known = ", ".join(f"--{name}" for name in sorted(loop.known_options)) or "none"
            raise UsageError(f"{loop.info.sampler} does not read --{field.name}; of these options it reads {known}")


def fitted_mask(mask: NDArray[np.bool_], image: NDArray[np.uint8], *, size: Sequence[int]) -> NDArray[np.bool_]:
    """Bring a mask (H, W) to the sampler's (h, w): unknown is every pixel that an unknown one touches.

    Raises:
        UsageError: a mask of another size than its image, or one that marks nothing.
    """
    if mask.shape != image.shape[:2]:
        raise UsageError(
            f"the mask is {mask.shape[1]}×{mask.shape[0]}, its image is {image.shape[1]}×{image.shape[0]}:"
            " draw it at the image's size"
        )
    small = cv2.resize(mask.astype(np.float32), (size[1], size[0]), interpolation=cv2.INTER_AREA)
    found: NDArray[np.bool_] = small > 0
    if not found.any():
        raise UsageError("the mask marks no pixel as unknown: its pixels that are not 0 are drawn anew")
    return found


def write_images(image: NDArray[np.uint8], sheet: NDArray[np.uint8], *, out: Path) -> None:
    """Write drawn images (n, h, w, 3) as 0000.png … with a note that they are synthetic, and the contact sheet.

    Raises:
        OutputError: the folder cannot be made, or a file not be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"folder {out} cannot be made: {error.strerror}; choose another place") from error
    for index, single in enumerate(image):
        write_png(out / f"{index:04d}.png", single, text=SYNTHETIC)
    write_png(out / "contact_sheet.png", sheet, text=SYNTHETIC)


def _in_turn(
    paths: Sequence[str],
    prepared: Callable[[Sequence[str]], Array],
    draw: Callable[[Array], Array],
    batch_size: int,
    report: Callable[[int, int], None],
) -> tuple[Array, Array]:
    """Draw from images batch by batch; gives what was drawn and what it was drawn from."""
    if not paths:
        raise DataError("no image to reconstruct: give a folder, glob or list that holds some")
    drawn, given = [], []
    for start in range(0, len(paths), batch_size):
        given.append(prepared(paths[start : start + batch_size]))
        drawn.append(draw(given[-1]))
        report(min(len(paths), start + batch_size), len(paths))
    return np.concatenate(drawn), np.concatenate(given)


def _pairs(given: Array, drawn: Array) -> NDArray[np.uint8]:
    """A sheet of pairs, what was given left of what was drawn; four pairs a row."""
    pairs = np.stack((given, drawn), axis=1).reshape(-1, *given.shape[1:])
    return contact_sheet(to_bytes(pairs), num_columns=min(8, len(pairs)))
