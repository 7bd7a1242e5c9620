"""An exported model behind one call."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly.api.arguments import Image, image_bytes, image_stream
from anomaly.api.result import Result
from anomaly.conformal.guarantee import Guarantee
from anomaly.errors import ImageError, UsageError
from anomaly.imaging.array_image import array_image, is_pillow, pillow_image
from anomaly.imaging.image_file import decode_image, read_file
from anomaly.inference.evidence import EvidenceFinder
from anomaly.inference.scorer import OnnxScorer
from anomaly.inference.session import Device
from anomaly.scoring.loading import NO_IMAGE, LoadedImage
from anomaly.scoring.settings import DEFAULT_PRODUCT, Settings
from anomaly.scoring.sources import Item
from anomaly.scoring.windows import score_window
from anomaly.system.argument_types import check_types
from anomaly.system.files import as_path, usable_path


def load(path: str | Path, *, device: Device = "auto", num_threads: int = 0, max_pixels: int = 100_000_000) -> Model:
    """Load an exported model and check that it scores its golden image as it did at export.

    Args:
        path: .onnx file.
        device: inference device; `auto` takes a usable GPU, else the CPU.
        num_threads: threads of one inference on the CPU; 0 takes all processors.
        max_pixels: largest width × height that is decoded.

    Raises:
        ModelError: the file is missing, damaged, foreign, or of another contract.
        ProviderError: the requested device is not available.
        UsageError: an argument of a wrong type.
    """
    check_types(locals(), {"num_threads": int, "max_pixels": int})
    if max_pixels < 1:
        raise UsageError(f"max_pixels {max_pixels}: give 1 or more")
    scorer = OnnxScorer(usable_path(path, name="path"), device=device, num_threads=num_threads)
    return Model(scorer, max_pixels=max_pixels)


class Model:
    """An exported model: call it with one image, or let it score a stream. Made by `load` and `Fitted.export`."""

    def __init__(self, scorer: OnnxScorer, *, max_pixels: int = 100_000_000) -> None:
        if not isinstance(scorer, OnnxScorer):
            raise UsageError("Model: use anomaly.load(path), which makes it")
        self._scorer = scorer
        self._finder = EvidenceFinder(scorer)
        self._max_pixels = max_pixels

    def __call__(self, image: Image) -> Result:
        """Score one image.

        Args:
            image: path, bytes of an image file, open binary file or Pillow image; or an array (H, W) or (H, W, 3) RGB of
                uint8 or uint16.

        Raises:
            ImageError: an image file that cannot be read or decoded.
            UsageError: an object of another type, or an array of another dtype or shape.
        """
        item, sha256, pixels = self._read(image, name="image")
        loaded = LoadedImage(item, sha256, pixels, None, None)
        (scored,) = score_window(
            [loaded], scorers={DEFAULT_PRODUCT: self._scorer}, settings=self._settings(1), seconds={"infer": 0.0}
        )
        if scored.row.status != "ok":
            raise ImageError("internal", scored.row.message)
        return Result(scored, self._scorer, self._finder)

    def score(self, images: Iterable[Image], *, batch_size: int = 8) -> Iterator[Result]:
        """Score a stream of images in order; an invalid image becomes a result with an error.

        Args:
            images: folder, or iterable of images in any form of a single call; at most `batch_size` are in memory at a time.
            batch_size: images per inference, at least 1; images of one size share an inference.

        Yields:
            One `Result` per image.

        Raises:
            UsageError: a single image or a non-iterable in place of `images`, or a batch size below 1.
        """
        settings = self._settings(batch_size)
        stream = iter(image_stream(images))
        return self._stream(stream, settings=settings)

    def _stream(self, stream: Iterator[Image], *, settings: Settings) -> Iterator[Result]:
        window: list[LoadedImage] = []
        try:
            for position, image in enumerate(stream):  # each image is read before the next one is taken
                window.append(self._load(image, name=f"images[{position}]"))
                if len(window) == settings.batch_size:
                    complete, window = window, []
                    yield from self._results(complete, settings=settings)
        except GeneratorExit:
            raise
        except BaseException:  # the images before a failure of the stream are not lost
            yield from self._results(window, settings=settings)
            raise
        yield from self._results(window, settings=settings)

    def _results(self, window: Sequence[LoadedImage], *, settings: Settings) -> Iterator[Result]:
        scorers, seconds = {DEFAULT_PRODUCT: self._scorer}, {"infer": 0.0}
        for scored in score_window(window, scorers=scorers, settings=settings, seconds=seconds):
            yield Result(scored, self._scorer, self._finder)

    @property
    def guarantee(self) -> Guarantee:
        """The certified false-alarm rate: expected rate, 95 % upper bound and construction."""
        return self._scorer.metadata.certified

    @property
    def threshold(self) -> float:
        """Calibrated score above which the verdict is `defect`."""
        return 1.0

    @property
    def name(self) -> str:
        """Name of the detector."""
        return self._scorer.metadata.detector

    @property
    def category(self) -> str:
        """Name of the training folder."""
        return self._scorer.metadata.category

    @property
    def device(self) -> str:
        """Execution provider that runs the model."""
        return self._scorer.provider

    @property
    def sha256(self) -> str:
        """SHA-256 of the file, hexadecimal."""
        return self._scorer.sha256

    @property
    def metadata(self) -> dict[str, Any]:
        """Metadata of the file as plain values."""
        return dataclasses.asdict(self._scorer.metadata)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and copy by path: the copy loads the file again."""
        return load, (str(self._scorer.path),), {"_max_pixels": self._max_pixels}

    def __repr__(self) -> str:
        return f"Model({self.name} of {self.category}; {self.guarantee}; {self.device})"

    def _settings(self, batch_size: int) -> Settings:
        check_types({"batch_size": batch_size}, {"batch_size": int})
        if batch_size < 1:
            raise UsageError(f"batch_size {batch_size}: give 1 or more")
        return Settings(threshold=self.threshold, batch_size=batch_size, max_pixels=self._max_pixels, num_threads=1)

    def _read(self, image: Image, *, name: str) -> tuple[Item, str, NDArray[np.uint8]]:
        """Give name, hash of the file's bytes (empty for pixels in memory), and (H, W, 3) uint8 RGB."""
        white, sha256 = self._scorer.metadata.white, ""
        if isinstance(image, np.ndarray) or is_pillow(image):
            shape: Any = image.shape[:2] if isinstance(image, np.ndarray) else image.size  # type: ignore[union-attr]
            self._check_pixels(shape, name=name)
        if isinstance(image, np.ndarray):
            pixels = array_image(image, white=white, name=name)
        elif is_pillow(image):
            pixels = pillow_image(image, white=white, name=name)
        else:
            if isinstance(image, (str, os.PathLike)):
                path = as_path(image, name=name)
                name, data = str(path), read_file(path, max_pixels=self._max_pixels)
            else:
                data = image_bytes(image, name=name)
            sha256 = hashlib.sha256(data).hexdigest()
            pixels = decode_image(data, name=name, white=white, max_pixels=self._max_pixels)
        self._scorer.metadata.check_size(pixels, name=name)
        return Item(name), sha256, pixels

    def _check_pixels(self, size: Sequence[int], *, name: str) -> None:
        num = math.prod(size)
        if num > self._max_pixels:
            raise ImageError(
                "too_large", f"{name}: {num:,} pixels; load the model with max_pixels above {self._max_pixels:,}"
            )

    def _load(self, image: Image, *, name: str) -> LoadedImage:
        try:
            item, sha256, pixels = self._read(image, name=name)
        except ImageError as error:
            return LoadedImage(
                Item(str(image) if isinstance(image, (str, os.PathLike)) else name), "", NO_IMAGE, None, error
            )
        except UsageError as error:
            return LoadedImage(Item(name), "", NO_IMAGE, None, ImageError("not_an_image", str(error)))
        return LoadedImage(item, sha256, pixels, None, None)
