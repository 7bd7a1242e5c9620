"""The contract of a sampler: what it writes, what follows from that, and how it is a detector too."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anomaly.detectors.base import Anomaly, Detector
from anomaly.detectors.tiling_support import WholeImages
from anomaly.errors import Unsupported, UsageError
from anomaly.generation import sampling_loop_class
from anomaly.generation.base import SamplerInfo, SamplingLoop
from anomaly.nn.map_scaling import PixelScale, smoothed
from anomaly.nn.preprocess import Preprocess, Resize

Density = Literal["exact", "bound", "none"]
Score = Literal["mean", "peak"]


class Sampler(Detector):
    """Base of all samplers: images x are float (N, 3, h, w) in [0, 1].

    A subclass writes `training_step`, `configure_optimizers` and those of `prior` (by its process), `decode`, `encode`,
    `log_prob` and `anomaly_map` that its paper has; what it lacks is named in `lacks` with the reason. `sample`,
    `reconstruct`, `interpolate` and `inpaint` are the work of its process, a loop over its functions that runs on numpy
    arrays: the very same loop draws from the exported file, without torch.

    Where `anomaly_map` is written the sampler is a detector as well: the map is the anomaly_map of each pixel, and everything
    that a detector inherits (calibration, export, test) holds.

    Args:
        size: side of the network's square input in pixels.
        resize: `stretch` or `letterbox`.
        score: `mean` of the map, which is the likelihood itself where there is one, or its `peak`, for small defects.
        smooth: side in pixels of the averaging window over the map, odd; 1 leaves it.
        standardise: whether each pixel of the map is measured by mean and deviation of the training images there.
        epochs: passes over the training images.
        batch_size: images per step.
    """

    tiling = WholeImages("a sampler draws and reconstructs whole images")
    density: ClassVar[Density] = "none"
    """What `log_prob` gives"""
    loop: ClassVar[str] = "decoder"
    """The loop that draws, a key of `anomaly.generation.SAMPLING_LOOPS`"""
    level_bits: float = 8.0
    """What turns a density on [0, 1] into one per grey level, for bits per dimension; 0 where `log_prob` is of grey levels"""
    unsupported: ClassVar[dict[str, str]] = {}
    """Ability -> why the family has it not: `encode`, `log_prob`, `anomaly_map`, `interpolate`, `inpaint` …"""

    def __init__(
        self,
        *,
        size: int,
        resize: Resize,
        score: Score,
        smooth: int,
        standardise: bool,
        epochs: int,
        batch_size: int,
    ) -> None:
        if smooth % 2 == 0:
            raise UsageError(f"smooth {smooth}: the averaging window has an odd side, e.g. {smooth + 1}")
        preprocess = Preprocess(size=(size, size), resize=resize, mean=(0.0,) * 3, std=(1.0,) * 3)
        super().__init__(preprocess=preprocess, epochs=epochs, batch_size=batch_size)
        self.score, self.smooth, self.standardise = score, smooth, standardise
        self.scale = PixelScale((size, size))

    # what a family writes

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of the latent of one image."""
        raise self._unsupported("decode")

    def decode(self, z: Tensor) -> Tensor:
        """Map latents (N, *latent_shape) to images (N, 3, h, w) in [0, 1]."""
        raise self._unsupported("decode")

    def encode(self, x: Tensor) -> Tensor:
        """Map images (N, 3, h, w) to latents (N, *latent_shape)."""
        raise self._unsupported("encode")

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density of images (N, 3, h, w) in nats per image, (N,); a lower bound where `density` says so.

        Raises:
            Unsupported: the family has none.
        """
        raise self._unsupported("log_prob")

    def anomaly_map(self, x: Tensor) -> Tensor:
        """Give each pixel its share of -log p, or its reconstruction error, (N, h, w); higher is more anomalous.

        Raises:
            Unsupported: the family has neither.
        """
        raise self._unsupported("anomaly_map")

    def loop_settings(self) -> dict[str, Any]:
        """What the process needs to know beside the functions: JSON values, such as a noise schedule."""
        return {}

    def functions(self) -> dict[str, tuple[Tensor, ...]]:
        """Name the methods that the exported file holds, each with example inputs of two images.

        By default `prepare` (raw images to x), and `decode` and `encode` where the family has them. All inputs and outputs
        have the images along their first axis.
        """
        found: dict[str, tuple[Tensor, ...]] = {}
        if "decode" not in self.unsupported:
            found["decode"] = (torch.zeros(2, *self.latent_shape),)
        if "encode" not in self.unsupported:
            found["encode"] = (torch.zeros(2, 3, *self.preprocess.size),)
        return found

    # what follows

    def bits_per_dim(self, x: Tensor) -> Tensor:
        """Bits that each value of images (N, 3, h, w) costs as a grey level, (N,): -log_prob / (D ln 2) + `level_bits`.

        Raises:
            Unsupported: the family has no likelihood.
        """
        return -self.log_prob(x) / (x[0].numel() * math.log(2)) + self.level_bits

    @classmethod
    def supports(cls, ability: str) -> bool:
        """Whether the family has an ability, e.g. `anomaly_map`."""
        return ability not in cls.unsupported

    def _unsupported(self, ability: str) -> Unsupported:
        name = type(self).__name__
        return Unsupported(f"{name} has no {ability}: {self.unsupported.get(ability, 'the family does not define it')}")

    def sampling_loop(self) -> SamplingLoop:
        """Give the process over this network: `sample`, `reconstruct`, `interpolate`, `inpaint` on numpy arrays."""
        return sampling_loop_class(self.process)(self.run_function, self.info())

    def info(self) -> SamplerInfo:
        """All that a process known_options of its sampler; it travels in the exported file."""
        return SamplerInfo(
            sampler=type(self).__name__,
            size=list(self.preprocess.size),
            latent_shape=list(self.latent_shape) if "decode" not in self.unsupported else [],
            lacks=dict(self.unsupported),
            own=self.info(),
        )

    @torch.no_grad()
    def run_function(self, function: str, *inputs: NDArray[Any]) -> NDArray[Any]:
        """Run a function on arrays whose first axis counts images."""
        self.eval()
        method: Callable[..., Tensor] = getattr(self, function)
        given = (torch.from_numpy(np.ascontiguousarray(value)).to(self.device) for value in inputs)
        return np.asarray(method(*given).cpu().numpy())

    def input_names(self, function: str) -> list[str]:
        """Names of a function's inputs in the exported file."""
        return list(inspect.signature(getattr(self, function)).parameters)

    # its form as a detector

    @property
    def scores(self) -> bool:
        """Whether it has a form as a detector."""
        return self.supports("anomaly_map")

    def _map(self, x: Tensor) -> Tensor:
        return smoothed(self.anomaly_map(x), window=self.smooth)

    def measure_scale(self) -> None:
        """Measure the anomaly_map at each pixel over the training images; to be called at the end of training."""
        if self.standardise and self.scores:
            self.eval()
            with torch.no_grad():
                self.scale.measure((self._map(x) for x in self.training_inputs()), roi=self.preprocess.roi)

    def on_train_end(self) -> None:
        """Measure the map's scale with the final weights."""
        self.measure_scale()

    def anomaly(self, x: Tensor) -> Anomaly:
        """Score by the anomaly_map, smoothed, in its scale: score is the map's mean or its maximum."""
        raw = self.scale(self._map(x))
        anomaly_map = self.inside_roi(raw)
        if self.score == "peak":
            return Anomaly(anomaly_map.amax(dim=(1, 2)), anomaly_map)
        if not self.preprocess.has_roi:
            return Anomaly(anomaly_map.mean(dim=2).mean(dim=1), anomaly_map)
        roi = self.preprocess.roi.to(raw.dtype)
        return Anomaly((raw * roi).sum(dim=(1, 2)) / roi.sum(), anomaly_map)
