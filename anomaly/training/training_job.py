"""`TrainingJob`: one detector or sampler with its options, to train on any part of the good images."""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from anomaly.data.folders import Sample
from anomaly.detectors.base import Detector, RawScores
from anomaly.detectors.fusion import Fusion
from anomaly.detectors.memory_bank import proportional_size
from anomaly.errors import UsageError
from anomaly.imaging.image_file import read_image
from anomaly.inference.artifact import Brightness
from anomaly.registry import model_class
from anomaly.samplers.base import Sampler
from anomaly.system.files import TemporaryFolder
from anomaly.training.dataset import GoodData, GoodImages, collate
from anomaly.training.fitted_model import build_model, detector_of
from anomaly.training.loop import Precision, TrainingDevice, train
from anomaly.training.options import read_roi

SCALE_EVERY = 5
"""Every fifth training image measures the scale of a fusion's member; a second copy is trained without these"""


@dataclass(frozen=True)
class ImageReader:
    """Access to good images under one set of reading options."""

    white: int
    """stored value of 16-bit images that becomes 255"""
    max_pixels: int
    """largest width × height that is decoded"""
    cache_gib: float
    """memory for decoded images in GiB"""

    def dataset(self, samples: Sequence[Sample]) -> GoodImages:
        """Make the dataset of some samples."""
        return GoodImages(samples, white=self.white, max_pixels=self.max_pixels, cache_gib=self.cache_gib)

    def read(self, sample: Sample) -> NDArray[np.uint8]:
        """Read an image, (H, W, 3) uint8 RGB."""
        return read_image(sample.path, white=self.white, max_pixels=self.max_pixels)

    def read_inside(self, roi: str | Path) -> Callable[[Sample], NDArray[np.uint8]]:
        """Make a function that reads an image with black pixels outside a region of interest.

        Args:
            roi: region of interest, x,y,w,h in pixels or the path of a mask.
        """

        def read(sample: Sample) -> NDArray[np.uint8]:
            image = self.read(sample)
            mask = read_roi(roi, height=image.shape[0], width=image.shape[1], max_pixels=self.max_pixels)
            return np.where(mask[..., None], image, np.uint8(0))

        return read


@dataclass(frozen=True)
class TrainingJob:
    """A detector or sampler with all that its training needs except the images."""

    name: str
    """registry name or package.module:Class"""
    options: Mapping[str, Any]
    """arguments of the constructor"""
    images: ImageReader
    seed: int
    precision: Precision = "fp32"
    device: TrainingDevice = "auto"
    roi: str | Path | None = None
    """region of interest, x,y,w,h in pixels or the path of a mask"""
    brightness: Brightness = "kept"
    crops: bool = False
    """whether training uses crops of large images at their own resolution"""

    def build(self) -> Detector | Sampler:
        """Build the untrained model, with initial weights fixed by the seed."""
        pl.seed_everything(self.seed, verbose=False)
        return build_model(self.name, self.options)

    def train(
        self,
        model: Detector | Sampler,
        samples: Sequence[Sample],
        *,
        out: Path,
        stopping: Sequence[Sample] = (),
        resume: bool = False,
    ) -> None:
        """Train a model of `build` on images.

        Args:
            model: untrained model; it changes.
            samples: training images.
            out: folder of the checkpoint.
            stopping: early-stopping validation images.
            resume: whether to continue from the checkpoint in `out`.

        Raises:
            TrainingError: a loss that is not finite, or too little memory.
            UsageError: a region of interest outside the images.
        """
        if isinstance(model, Fusion):
            if self.roi is not None:
                _set_roi(model, self.roi, example=self.images.read(samples[0]), max_pixels=self.images.max_pixels)
            self._train_members(model, samples, out=out, resume=resume)
            return
        loaders = GoodData(
            train=samples,
            stopping=stopping,
            batch_size=model.batch_size,
            read=self.images.dataset,
            seed=self.seed,
            crop=model.preprocess.size if self.crops else None,
        )
        if self.roi is not None:
            _set_roi(model, self.roi, example=self.images.read(samples[0]), max_pixels=self.images.max_pixels)
        if self.brightness == "levelled":
            model.preprocess.level_brightness(batch.image for batch in loaders.probe_dataloader(model.batch_size))
        train(model, loaders, out=out, precision=self.precision, device=self.device, resume=resume)
        model.eval()

    def _train_members(self, fusion: Fusion, samples: Sequence[Sample], *, out: Path, resume: bool) -> None:
        """Train the members of a fusion one by one, and measure their scales where none are given."""
        if resume:
            raise UsageError("resume: a fusion of detectors cannot continue; start the fit again without --resume")
        specs = fusion.hparams["members"]
        for number, (spec, member) in enumerate(zip(specs, fusion.members, strict=True)):
            job = replace(
                self,
                name=spec["detector"],
                options=dict(spec.get("options", {})),
                brightness=spec.get("brightness", self.brightness),
            )
            folder = out / f"member-{number}"
            folder.mkdir(exist_ok=True)
            trained = cast("Detector", member)
            job.train(trained, samples, out=folder)
            needs_copy = not fusion.has_scales and not trained.supports_leave_one_out
            if needs_copy:
                kept = [s for n, s in enumerate(samples) if n % SCALE_EVERY]
                held_out = [s for n, s in enumerate(samples) if n % SCALE_EVERY == 0]
                fusion.set_scale(number, job.scores(job.fit(kept), held_out))
            if fusion.position_scale or not (fusion.has_scales or needs_copy):
                scores: list[tuple[float, float]] = []
                fusion.set_position_scale(number, self._training_maps(trained, samples, scores))
                if not (fusion.has_scales or needs_copy):
                    fusion.set_scale(number, RawScores(*np.array(scores).T))
            shutil.rmtree(folder, ignore_errors=True)
        fusion.eval()

    @torch.no_grad()
    def _training_maps(
        self, detector: Detector, samples: Sequence[Sample], scores: list[tuple[float, float]]
    ) -> Iterator[Tensor]:
        """Yield the maps (h, w) of training images, and append their scores with the maxima of the maps.

        Each image counts as missing in the training where the detector supports this.
        """
        for number, sample in enumerate(sorted(samples, key=lambda sample: sample.path.as_posix())):
            x = detector.preprocess(torch.from_numpy(self.images.read(sample)[None]))
            raw = detector.anomaly_without(x, [number]) if detector.supports_leave_one_out else detector.anomaly(x)
            scores.append((float(raw.score[0]), float(raw.anomaly_map.max())))
            yield raw.anomaly_map[0]

    def fit(self, samples: Sequence[Sample]) -> Detector:
        """Build and train a new detector on images.

        Raises:
            UsageError: a sampler that cannot score.
        """
        model, scratch = self.build(), TemporaryFolder()
        self.train(model, samples, out=scratch.path)
        detector = detector_of(model)
        if detector is None:
            raise UsageError(f"{self.name}: this sampler draws images and cannot score them")
        return detector

    def scores(self, detector: Detector, samples: Sequence[Sample]) -> RawScores:
        """Score images by a trained detector without its calibration."""
        loader = DataLoader(self.images.dataset(samples), batch_size=detector.batch_size, collate_fn=collate)
        return detector.raw_scores(loader)


def options_for_images(
    name: str, options: Mapping[str, Any], *, samples: Sequence[Sample], images: ImageReader, crops: bool
) -> dict[str, Any]:
    """Complete the options of a detector by what depends on the images.

    Args:
        name: registry name or package.module:Class.
        options: requested options.
        samples: good images.
        images: access to them.
        crops: whether training uses crops.

    Returns:
        The options; an input size in the proportion of the images where the detector leaves it open, and no cache of
        features for crops, because no crop occurs twice.
    """
    found, parameters = dict(options), inspect.signature(model_class(name)).parameters
    if crops and "cache_gib" in parameters:
        found["cache_gib"] = 0.0
    if "size" in parameters and parameters["size"].default is None and found.get("size") is None and not crops:
        heights, widths = zip(*images.dataset(samples).sizes(), strict=True)
        found["size"] = list(proportional_size(float(np.median(heights)), float(np.median(widths))))
    return found


def _set_roi(model: Detector | Sampler, roi: str | Path, *, example: NDArray[np.uint8], max_pixels: int) -> None:
    height, width = example.shape[:2]
    mask = read_roi(roi, height=height, width=width, max_pixels=max_pixels)
    model.preprocess.set_roi(torch.from_numpy(mask))
    if not model.preprocess.roi.any():
        height, width = model.preprocess.size
        raise UsageError(f"region {str(roi)!r} holds no whole pixel of the network's {width}×{height}: make it larger")
