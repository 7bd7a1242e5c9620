"""`ImageSampler`: images drawn from an exported sampler, or made from given images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from anomaly.errors import DataError, UsageError
from anomaly.generation.base import Array, Options, SamplingLoop, in_batches
from anomaly.generation.contact_sheet import contact_sheet, to_bytes
from anomaly.generation.onnx_sampler import OnnxSampler
from anomaly.imaging.image_file import read_image, read_mask
from anomaly.system.progress import progress_bar


@dataclass(frozen=True)
class Drawing:
    """Drawn images with their contact sheet."""

    image: NDArray[np.uint8]
    """(n, h, w, 3) RGB"""
    sheet: NDArray[np.uint8]
    """(H, W, 3) RGB, the drawn images, with the given ones where there are any"""


class ImageSampler:
    """Draws images through an exported sampler. Each call starts from the seed, so equal calls give equal images.

    Args:
        sampler: exported sampler, or the path of sampler.onnx.
        seed: seed of all draws.
        batch_size: images per inference; another batch size gives other images.
        options: sampling options.
        max_pixels: largest width × height of a given image.

    Raises:
        UsageError: a batch size below 1, or a changed option that this sampler does not read.
        ModelError: the file is not a sampler.
    """

    def __init__(
        self,
        sampler: OnnxSampler | str | Path,
        *,
        seed: int = 0,
        batch_size: int = 16,
        options: Options = Options(),  # noqa: B008 - frozen
        max_pixels: int = 100_000_000,
    ) -> None:
        if batch_size < 1:
            raise UsageError(f"batches of {batch_size} images: give at least 1")
        self.sampler = sampler if isinstance(sampler, OnnxSampler) else OnnxSampler(sampler)
        self._loop = self.sampler.sampling_loop()
        check_options(self._loop, options)
        self._seed, self._batch_size, self._options, self._max_pixels = seed, batch_size, options, max_pixels

    def sample(self, num: int = 16) -> Drawing:
        """Draw `num` images.

        Raises:
            UsageError: fewer than one image, or an invalid option.
        """
        rng = np.random.default_rng(self._seed)
        drawn = self._in_batches("sample", lambda n: self._loop.sample(n, rng=rng, options=self._options), num=num)
        return Drawing(to_bytes(drawn), contact_sheet(to_bytes(drawn)))

    def reconstruct(self, images: Sequence[str | Path]) -> Drawing:
        """Reconstruct images; the contact sheet shows pairs of given and reconstructed images.

        Raises:
            DataError: no image, or an unreadable one.
            Unsupported: the family has no reconstruction.
        """
        if not images:
            raise DataError("no images to reconstruct: give at least one")
        rng = np.random.default_rng(self._seed)
        drawn, given = [], []
        with progress_bar("reconstruct") as report:
            for start in range(0, len(images), self._batch_size):
                given.append(self._prepared(images[start : start + self._batch_size]))
                drawn.append(self._loop.reconstruct(given[-1], rng=rng, options=self._options))
                report(min(len(images), start + self._batch_size), len(images))
        return _pairs(np.concatenate(given), np.concatenate(drawn))

    def interpolate(self, first: str | Path, last: str | Path, *, num: int = 16) -> Drawing:
        """Draw `num` images between two images, both ends included.

        Raises:
            UsageError: fewer than two images, or two images of different sizes.
            Unsupported: the family has no interpolation.
        """
        a, b = (self._read(path) for path in (first, last))
        if a.shape != b.shape:
            raise UsageError(
                f"{first} is {a.shape[1]}×{a.shape[0]}, {last} is {b.shape[1]}×{b.shape[0]}: give two images of one size"
            )
        ends = self._prepared((first, last))
        drawn = self._loop.interpolate(ends[0], ends[1], num=num, options=self._options)
        return Drawing(to_bytes(drawn), contact_sheet(to_bytes(drawn), num_columns=len(drawn)))

    def inpaint(self, image: str | Path, mask: str | Path, *, num: int = 16) -> Drawing:
        """Draw `num` variants of an image under a mask; the contact sheet begins with the image and the masked image.

        Args:
            image: image with known and unknown pixels.
            mask: mask image of the same size; its pixels above 0 are unknown.
            num: number of variants.

        Raises:
            UsageError: a mask of another size, or an empty one.
            Unsupported: the family has no inpainting.
        """
        rng = np.random.default_rng(self._seed)
        unknown = read_mask(Path(mask), max_pixels=self._max_pixels)
        x = self._prepared([image])
        m = resized_mask(unknown, self._read(image), size=self.sampler.metadata.info.size)
        drawn = self._in_batches(
            "inpaint",
            lambda n: self._loop.inpaint(
                np.repeat(x, n, axis=0), np.repeat(m[None], n, axis=0), rng=rng, options=self._options
            ),
            num=num,
        )
        masked = np.where(m, np.float32(0.5), x[0])
        return Drawing(to_bytes(drawn), contact_sheet(to_bytes(np.concatenate((x, masked[None], drawn)))))

    def attribute(
        self, present: Sequence[str | Path], absent: Sequence[str | Path], *, num: int = 16, strength: float = 1.0
    ) -> Drawing:
        """Add an attribute to images without it; the contact sheet shows pairs of given and changed images.

        Args:
            present: images with the attribute.
            absent: images without the attribute.
            num: number of changed images, the first ones of `absent`.
            strength: factor on the attribute's direction.

        Raises:
            UsageError: no image with or without the attribute.
            Unsupported: the family has no attribute directions.
        """
        with_attribute, without = self._prepared(present), self._prepared(absent)
        given = without[:num]
        drawn = self._loop.attribute(given, with_attribute, without, strength=strength, options=self._options)
        return _pairs(given, drawn)

    def _read(self, path: str | Path) -> NDArray[np.uint8]:
        return read_image(path, white=self.sampler.metadata.white, max_pixels=self._max_pixels)

    def _prepared(self, paths: Sequence[str | Path]) -> Array:
        height, width = self.sampler.metadata.info.size
        prepared = [self.sampler.prepare(self._read(path)[None]) for path in paths]
        return np.concatenate(prepared) if prepared else np.zeros((0, 3, height, width), dtype=np.float32)

    def _in_batches(self, label: str, draw: Callable[[int], Array], *, num: int) -> Array:
        with progress_bar(label) as report:
            return np.concatenate(in_batches(draw, num=num, batch_size=self._batch_size, report=report))


def check_options(loop: SamplingLoop, options: Options) -> None:
    """Refuse a changed option that the loop does not read.

    Raises:
        UsageError: the text lists the options that the loop reads.
    """
    for field in fields(Options):
        if getattr(options, field.name) != field.default and field.name not in loop.known_options:
            known = ", ".join(f"--{name}" for name in sorted(loop.known_options)) or "none"
            raise UsageError(
                f"{loop.info.sampler} does not read --{field.name}: omit it; options that it reads: {known}"
            )


def resized_mask(mask: NDArray[np.bool_], image: NDArray[np.uint8], *, size: Sequence[int]) -> NDArray[np.bool_]:
    """Resize a mask (H, W) to the sampler's size (h, w). A pixel is unknown where it covers an unknown one.

    Raises:
        UsageError: mask and image differ in size, or the mask is empty.
    """
    if mask.shape != image.shape[:2]:
        raise UsageError(
            f"the mask is {mask.shape[1]}×{mask.shape[0]}, its image is {image.shape[1]}×{image.shape[0]}:"
            " draw it at the image's size"
        )
    small = cv2.resize(mask.astype(np.float32), (size[1], size[0]), interpolation=cv2.INTER_AREA)
    unknown: NDArray[np.bool_] = small > 0
    if not unknown.any():
        raise UsageError("the mask has no unknown pixel: set the unknown pixels above 0")
    return unknown


def _pairs(given: Array, drawn: Array) -> Drawing:
    pairs = np.stack((given, drawn), axis=1).reshape(-1, *given.shape[1:])
    return Drawing(to_bytes(drawn), contact_sheet(to_bytes(pairs), num_columns=min(8, len(pairs))))
