"""`synthesize_defects`: defects with exact masks, drawn onto good images.

Three sources of defects: drawn kinds (scratch, stain, dent, component, foreign body); pieces and textures of the images
themselves (CutPaste, arXiv 2104.04015; Perlin masks of DRAEM, arXiv 2108.07610); a mask-conditioned diffusion model (arXiv
2112.10752) with the shape of a drawn defect.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from anomaly.data.synthetic import DEFECTS, PASTED, draw_any_defect, estimate_foreground
from anomaly.errors import DataError, Unsupported, UsageError
from anomaly.generation.base import Options
from anomaly.generation.latent_diffusion import LatentDiffusionLoop
from anomaly.generation.onnx_sampler import OnnxSampler
from anomaly.imaging.image_file import read_image
from anomaly.imaging.overlay import enlarge_map
from anomaly.inference.session import Device
from anomaly.system.suggestions import nearest

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]
KINDS = (*DEFECTS, *PASTED)
"""Kinds of defects that need no model"""
LEARNED = "diffusion"
"""Kind of defects that a model draws"""
VISIBLE = 2
"""Least change of a defect's pixel in grey levels"""
NUM_TRIES = 4
"""Attempts per defect, each with another image and shape, until it is visible"""


@dataclass(frozen=True)
class DrawnDefect:
    """A defect on a good image, with its exact mask."""

    image: Image
    """(H, W, 3) RGB"""
    mask: Mask
    """(H, W), True at the changed pixels"""
    source: Path
    """good image without the defect"""
    kind: str
    size: float
    """requested longest extent over the shorter side of the image"""
    contrast: float
    """requested change in hundreds of grey levels"""


def synthesize_defects(
    targets: Sequence[str | Path],
    others: Sequence[str | Path],
    *,
    num: int = 100,
    kinds: Sequence[str] = KINDS,
    learned: LearnedDefects | None = None,
    min_size: float = 0.03,
    max_size: float = 0.3,
    min_contrast: float = 0.15,
    max_contrast: float = 0.8,
    seed: int = 0,
    white: int = 255,
    max_pixels: int = 100_000_000,
) -> Iterator[DrawnDefect]:
    """Draw defects onto good images, one at a time.

    Args:
        targets: good images that receive the defects.
        others: good images that give pieces and textures.
        num: number of defects, distributed evenly over the kinds.
        kinds: kinds of drawn and pasted defects.
        learned: model that draws defects into masks; it adds the kind `diffusion`.
        min_size: smallest size of a defect, its longest extent over the shorter side of the image; at least 0.01.
        max_size: largest size of a defect, its longest extent over the shorter side of the image; at most 0.5.
        min_contrast: smallest change in hundreds of grey levels, at least 0.02.
        max_contrast: largest change in hundreds of grey levels, at most 1.
        seed: seed of all draws.
        white: stored value of 16-bit images that becomes 255.
        max_pixels: largest width × height that is decoded.

    Raises:
        UsageError: an unknown kind, no kind, or an invalid number, size or contrast.
        DataError: no images.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise UsageError(f"no defect {kind!r}; nearest: {nearest(kind, KINDS)!r}; all: {', '.join(KINDS)}")
    if num < 1:
        raise UsageError(f"{num} defects requested: request at least 1")
    for name, low, high in (("size", min_size, max_size), ("contrast", min_contrast, max_contrast)):
        if not low <= high:
            raise UsageError(f"the smallest {name} {low} is above the largest {high}: exchange them")
    chosen = [*dict.fromkeys(kinds), *([LEARNED] if learned else [])]
    if not chosen:
        raise UsageError("no kind of defect requested: give kinds or a model")
    if not targets or not others:
        raise DataError("no good images to draw defects onto: give at least one target and one other image")

    def read(path: str | Path) -> Image:
        return read_image(path, white=white, max_pixels=max_pixels)

    def draw(number: int, attempt: int) -> DrawnDefect:
        kind = chosen[number % len(chosen)]
        rng = np.random.default_rng((seed, number, attempt))
        source = Path(targets[int(rng.integers(len(targets)))])
        image, pieces = read(source), [read(others[i]) for i in rng.integers(len(others), size=2)]
        size = float(np.exp(rng.uniform(np.log(min_size), np.log(max_size))))
        contrast = float(rng.uniform(min_contrast, max_contrast))
        foreground = estimate_foreground(image)
        if kind == LEARNED and learned is not None:
            drawn, mask = learned.draw(image, foreground=foreground, size=size, contrast=contrast, rng=rng)
        else:
            drawn, mask = draw_any_defect(
                image, kind, size=size, contrast=contrast, foreground=foreground, sources=pieces, rng=rng
            )
        return DrawnDefect(drawn, mask, source=source, kind=kind, size=size, contrast=contrast)

    def visible(number: int) -> DrawnDefect:
        for attempt in range(NUM_TRIES - 1):
            try:
                return draw(number, attempt)
            except Unsupported:
                raise
            except UsageError:  # invisible on this image
                continue
        return draw(number, NUM_TRIES - 1)

    return (visible(number) for number in range(num))


class LearnedDefects:
    """A latent diffusion model that draws defects into drawn shapes, at the image's own resolution.

    Args:
        model: sampler.onnx of a latent diffusion model.
        device: inference device.
        steps: denoising steps.

    Raises:
        Unsupported: the sampler does not draw defects.
        ModelError: the file is not a sampler.
    """

    def __init__(self, model: str | Path, *, device: Device = "auto", steps: int = 20) -> None:
        self._sampler = OnnxSampler(model, device=device)
        loop = self._sampler.sampling_loop()
        if not isinstance(loop, LatentDiffusionLoop):
            raise Unsupported(
                f"{model} holds a {loop.info.sampler}, which draws no defect into a mask: fit --detector latent_diffusion"
            )
        self._loop = loop
        self._options = Options(steps=steps)

    def draw(
        self, image: Image, *, foreground: Mask, size: float, contrast: float, rng: np.random.Generator
    ) -> tuple[Image, Mask]:
        """Draw a defect of the model into a drawn shape.

        Args:
            image: good image (H, W, 3).
            foreground: (H, W), True on the part.
            size: longest extent over the shorter side of the image.
            contrast: contrast of the drawn shape in hundreds of grey levels.
            rng: random generator of the draws.

        Returns:
            The image with the defect, and the mask of changed pixels (H, W).

        Raises:
            UsageError: the defect is invisible.
        """
        kind = ("stain", "scratch", "dent")[int(rng.integers(3))]
        _, shape = draw_any_defect(
            image, kind, size=size, contrast=max(contrast, 0.3), foreground=foreground, sources=[image], rng=rng
        )
        x = self._sampler.prepare(image[None])
        small = cv2.resize(shape.astype(np.float32), x.shape[:1:-1], interpolation=cv2.INTER_AREA) > 0
        drawn = self._loop.draw_defect(x, small[None], rng=rng, options=self._options)
        change = 255 * (drawn - x)[0]
        height, width = image.shape[:2]
        resize = self._sampler.metadata.config["resize"]
        enlarged = np.stack([enlarge_map(part, height=height, width=width, resize=resize) for part in change], axis=-1)
        radius = max(1.0, max(height / x.shape[2], width / x.shape[3]) / 2)
        feather = cv2.GaussianBlur(cv2.dilate(shape.astype(np.float32), np.ones((3, 3))), (0, 0), radius)
        candidate = np.clip(np.rint(image + enlarged * feather[..., None]), 0, 255).astype(np.uint8)
        mask = np.abs(candidate.astype(np.int16) - image.astype(np.int16)).max(axis=2) >= VISIBLE
        if not mask.any():
            raise UsageError("the model's defect is invisible: train it longer, or give a larger --min-size")
        return np.where(mask[..., None], candidate, image), mask
