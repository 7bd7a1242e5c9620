"""The contract of a detector: what it writes, what it inherits, and how a raw score becomes a calibrated one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from anomaly.conformal.calibration import GuaranteeKind, fit_scale
from anomaly.errors import TrainingError
from anomaly.nn.batch import Batch
from anomaly.nn.preprocess import Preprocess


class Anomaly(NamedTuple):
    """What a detector says of images."""

    score: Tensor
    """(N,) float32, higher is more anomalous"""
    anomaly_map: Tensor
    """(N, h, w) float32, in the same unit, at the network's resolution"""


class Calibration(nn.Module):
    """The affine scale on which 0 is a typical good part and 1 is the threshold; it never clamps, so ranks stay.

    The four buffers are initialisers of the exported graph, named `calibration.offset_score` and so on, which lets a serving
    install move them without torch.
    """

    offset_score: Tensor
    scale_score: Tensor
    offset_map: Tensor
    scale_map: Tensor

    def __init__(self) -> None:
        super().__init__()
        for part in ("score", "map"):
            self.register_buffer(f"offset_{part}", torch.zeros(()))
            self.register_buffer(f"scale_{part}", torch.ones(()))

    def forward(self, raw: Anomaly) -> Anomaly:
        """Scale raw scores and maps: `(raw - zero) / unit`."""
        return Anomaly(
            (raw.score - self.offset_score) / self.scale_score, (raw.anomaly_map - self.offset_map) / self.scale_map
        )

    def settle(
        self, score: NDArray[np.float64], peak: NDArray[np.float64], *, alpha: float, guarantee: GuaranteeKind
    ) -> NDArray[np.float64]:
        """Fit offset and scale of score and map on the raw scores of good images and their maps' maxima, (n,) each.

        Returns:
            The calibrated scores (n,).

        Raises:
            CalibrationError: too few images for alpha, or scores without spread.
        """
        for part, values in (("score", score), ("map", peak)):
            scale = fit_scale(values, alpha=alpha, guarantee=guarantee)
            getattr(self, f"offset_{part}").fill_(scale.offset)
            getattr(self, f"scale_{part}").fill_(scale.scale)
        return (score - float(self.offset_score)) / float(self.scale_score)


class Detector(pl.LightningModule):
    """Base of all detectors.

    A subclass writes `training_step`, `configure_optimizers` and `anomaly`; it inherits `forward`, which is what is
    tested, exported and served, and `calibrate`. Its constructor's arguments are its whole configuration.

    Args:
        preprocess: from uint8 images to the network's input.
        epochs: passes over the training images.
        batch_size: images per optimisation step.
    """

    provenance: dict[str, str]
    """where pretrained weights came from, with their hash; empty where there are none"""
    needs_stopping_images = False
    """Whether a third part of the good images, cut out of `train`, is wanted as a stopping signal"""

    export_obstacle = ""
    """Why the graph cannot be exported, in words, where that is known"""

    stride = 0
    """By how many pixels, or a multiple, x can move so that the map moves alike; 0 where the map is no such function"""
    tile_obstacle = "its class names no stride, and a map that does not move with the image cannot be stitched"
    """Why large images cannot be scored in seamless tiles, in words; empty where they can"""
    window_obstacle = ""
    """Why it cannot learn from parts of images, in words; empty where it can"""

    def __init__(self, *, preprocess: Preprocess, epochs: int, batch_size: int) -> None:
        super().__init__()
        self.preprocess = preprocess
        self.calibration = Calibration()
        self.provenance = {}
        self.epochs = epochs
        self.batch_size = batch_size

    @property
    def scores(self) -> bool:
        """Whether it can score at all; a sampler without likelihood and reconstruction cannot."""
        return True

    def anomaly(self, x: Tensor) -> Anomaly:
        """Score the network's input, raw.

        Args:
            x: (N, 3, h, w) float32, as `preprocess` gives it.
        """
        raise NotImplementedError(f"{type(self).__name__} must write anomaly(x)")

    def dependence(self, x: Tensor) -> Tensor:
        """Give any map (N, h, w) whose pixels depend on the same pixels of x as the anomaly map's; nothing need be learned."""
        return self.anomaly(x).anomaly_map

    def forward(self, image: Tensor | list[Tensor]) -> Anomaly:
        """Score images: preprocess, network, calibration. This is the exported graph.

        Args:
            image: (N, H, W, 3) uint8 RGB, or a list of images (H, W, 3) of different sizes.
        """
        return self.calibration(self.anomaly(self.preprocess(image)))  # type: ignore[no-any-return]

    def preprocessed(self, batch: Batch) -> Tensor:
        """Move a batch's images to this device and turn them into the network's input (N, 3, h, w) in full precision."""
        image = batch.image
        with torch.autocast(self.device.type, enabled=False):  # what calibration and export see
            x: Tensor = self.preprocess(
                [single.to(self.device) for single in image] if isinstance(image, list) else image.to(self.device)
            )
        return x

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep where every random generator of the detector stands."""
        checkpoint["random"] = {name: drawn.get_state() for name, drawn in self._generators().items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Draw on from where the checkpoint stood."""
        for name, drawn in self._generators().items():
            drawn.set_state(checkpoint["random"][name])

    def _generators(self) -> dict[str, torch.Generator]:
        return {name: value for name, value in vars(self).items() if isinstance(value, torch.Generator)}

    def training_inputs(self) -> Iterator[Tensor]:
        """Give the network's input (N, 3, h, w) of the training images once more, for what is measured after training."""
        loader: Any = self.trainer.train_dataloader
        for batch in itertools.islice(loader, int(self.trainer.num_training_batches)):
            yield self.preprocessed(batch)

    def log(self, name: str, value: Any, *args: Any, **options: Any) -> None:
        """Log a term of the loss; every term is logged before the step that it leads to.

        Raises:
            TrainingError: a value that is no finite number, before any weight is moved by it.
        """
        number = float(value.detach() if isinstance(value, Tensor) else value)
        if not math.isfinite(number):
            raise TrainingError(f"the loss term {name!r} became {number} in epoch {self.current_epoch + 1}")
        super().log(name, value, *args, **options)

    def inside_roi(self, anomaly_map: Tensor) -> Tensor:
        """Give pixels outside the region of interest the map's own minimum, so that they neither score nor show.

        Args:
            anomaly_map: (N, h, w) float, at the network's resolution.
        """
        if not self.preprocess.has_roi:
            return anomaly_map
        return torch.where(self.preprocess.roi, anomaly_map, anomaly_map.amin(dim=(1, 2), keepdim=True))

    @torch.no_grad()
    def calibrate(self, good: Iterable[Batch], *, alpha: float, guarantee: GuaranteeKind) -> NDArray[np.float64]:
        """Fit offset and scale of score and map on calibration images (FORMATS: split conformal).

        Args:
            good: batches of good images that were not trained on.
            alpha: share of good parts that may be rejected.
            guarantee: whether alpha bounds the expected rate or its 95 % upper bound.

        Returns:
            The calibrated scores of the calibration images in the order given, (n,) float64.

        Raises:
            CalibrationError: too few images for alpha, or scores without spread.
        """
        self.eval()
        score, peak = [], []
        for batch in good:
            raw = self.anomaly(self.preprocessed(batch))
            score.append(raw.score.double().cpu().numpy())
            peak.append(raw.anomaly_map.amax(dim=(1, 2)).double().cpu().numpy())
        return self.calibration.settle(np.concatenate(score), np.concatenate(peak), alpha=alpha, guarantee=guarantee)
