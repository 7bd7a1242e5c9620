"""`Sampler`: the contract of a generative model of images."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anomaly.errors import Unsupported, UsageError
from anomaly.generation import sampling_loop_class
from anomaly.generation.base import SamplerInfo, SamplingLoop
from anomaly.nn.map_scaling import PixelScale, smoothed
from anomaly.nn.preprocess import Preprocess, Resize
from anomaly.nn.trainable import Trainable
from anomaly.samplers.detector_form import SamplerDetector

Density = Literal["exact", "bound", "none"]
Score = Literal["mean", "peak", "top"]


class Sampler(Trainable):
    """Base of all samplers. Images x are float (N, 3, h, w) in [0, 1].

    A subclass writes `training_step` and `configure_optimizers`. It also writes `decode`, `encode`, `log_prob` and
    `anomaly_map`, as far as its paper defines them. `unsupported` names the others with the reason.

    A sampling loop runs `sample`, `reconstruct`, `interpolate` and `inpaint` over these functions on numpy arrays. The same
    loop draws from the exported file, without torch. `as_detector` gives the detector form of a sampler with an
    `anomaly_map`.

    Args:
        size: side of the network's square input in pixels.
        resize: resizing rule, `stretch` or `letterbox`.
        score: score of the detector form: `mean` or `peak` of the anomaly map, or `top`, the mean of its largest cells.
        smooth: side of the averaging window over the anomaly map in pixels, odd; 1 for no smoothing.
        standardise: scaling of each pixel of the anomaly map by its mean and deviation over the training images.
        epochs: passes over the training images.
        batch_size: images per optimisation step.
    """

    density: ClassVar[Density] = "none"
    """Kind of `log_prob`: an exact density, a lower bound, or none"""
    loop: ClassVar[str] = "decoder"
    """Name of the sampling loop, a key of `anomaly.generation.SAMPLING_LOOPS`"""
    level_bits: float = 8.0
    """Bits per value that convert a density on [0, 1] into a probability of grey levels; 0 if `log_prob` is a probability"""
    unsupported: ClassVar[dict[str, str]] = {}
    """Unsupported ability -> reason: `encode`, `log_prob`, `anomaly_map`, `interpolate`, `inpaint` …"""

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
            raise UsageError(f"smooth {smooth}: the side of the averaging window is odd, e.g. {smooth + 1}")
        preprocess = Preprocess(size=(size, size), resize=resize, mean=(0.0,) * 3, std=(1.0,) * 3)
        super().__init__(preprocess=preprocess, epochs=epochs, batch_size=batch_size)
        self.score, self.smooth, self.standardise = score, smooth, standardise
        self.scale = PixelScale((size, size))

    # written by a family

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one image's latent."""
        raise self._unsupported("decode")

    def decode(self, z: Tensor) -> Tensor:
        """Map latents (N, *latent_shape) to images (N, 3, h, w) in [0, 1]."""
        raise self._unsupported("decode")

    def encode(self, x: Tensor) -> Tensor:
        """Map images (N, 3, h, w) to latents (N, *latent_shape)."""
        raise self._unsupported("encode")

    def log_prob(self, x: Tensor) -> Tensor:
        """Compute the log-density of images (N, 3, h, w) in nats per image, (N,); a lower bound where `density` is `bound`.

        Raises:
            Unsupported: the family has no likelihood.
        """
        raise self._unsupported("log_prob")

    def anomaly_map(self, x: Tensor) -> Tensor:
        """Compute each pixel's share of -log p, or its reconstruction error, (N, h, w); higher is more anomalous.

        Raises:
            Unsupported: the family has neither.
        """
        raise self._unsupported("anomaly_map")

    def loop_settings(self) -> dict[str, Any]:
        """Return settings of the sampling loop as JSON values, such as a noise schedule."""
        return {}

    def functions(self) -> dict[str, tuple[Tensor, ...]]:
        """Name the methods of the exported file, each with example inputs of two images.

        The default is `decode` and `encode`, as far as the family supports them. All inputs and outputs have the images
        along their first axis.
        """
        found: dict[str, tuple[Tensor, ...]] = {}
        if self.supports("decode"):
            found["decode"] = (torch.zeros(2, *self.latent_shape),)
        if self.supports("encode"):
            found["encode"] = (torch.zeros(2, 3, *self.preprocess.size),)
        return found

    # inherited

    def bits_per_dim(self, x: Tensor) -> Tensor:
        """Compute the bits per value of images (N, 3, h, w) as grey levels, (N,): -log_prob / (D ln 2) + `level_bits`.

        Raises:
            Unsupported: the family has no likelihood.
        """
        return -self.log_prob(x) / (x[0].numel() * math.log(2)) + self.level_bits

    @classmethod
    def supports(cls, ability: str) -> bool:
        """Return whether the family supports an ability, e.g. `anomaly_map`."""
        return ability not in cls.unsupported

    def as_detector(self) -> SamplerDetector:
        """Return the detector form: a detector that scores by this sampler's anomaly map. It shares this network.

        Raises:
            Unsupported: the family has neither a likelihood nor a reconstruction.
        """
        if not self.supports("anomaly_map"):
            reason = self.unsupported["anomaly_map"]
            raise Unsupported(f"{type(self).__name__} has no detector form: {reason}")
        return SamplerDetector(self)

    def _unsupported(self, ability: str) -> Unsupported:
        reason = self.unsupported.get(ability, "the family does not define it")
        return Unsupported(f"{type(self).__name__} does not support {ability}: {reason}")

    def sampling_loop(self) -> SamplingLoop:
        """Return the sampling loop over this network: `sample`, `reconstruct`, `interpolate`, `inpaint` on numpy arrays."""
        return sampling_loop_class(self.loop)(self.run_function, self.info())

    def info(self) -> SamplerInfo:
        """Return the properties that the sampling loop needs; the exported file stores them."""
        return SamplerInfo(
            sampler=type(self).__name__,
            size=list(self.preprocess.size),
            latent_shape=list(self.latent_shape) if self.supports("decode") else [],
            unsupported=dict(self.unsupported),
            settings=self.loop_settings(),
        )

    @torch.no_grad()
    def run_function(self, function: str, *inputs: NDArray[Any]) -> NDArray[Any]:
        """Run a function on arrays with the images along their first axis."""
        self.eval()
        method: Callable[..., Tensor] = getattr(self, function)
        tensors = (torch.from_numpy(np.ascontiguousarray(value)).to(self.device) for value in inputs)
        return np.asarray(method(*tensors).cpu().numpy())

    def input_names(self, function: str) -> list[str]:
        """Return the names of a function's inputs in the exported file."""
        return list(inspect.signature(getattr(self, function)).parameters)

    def smoothed_map(self, x: Tensor) -> Tensor:
        """Compute the anomaly map averaged over the window, before standardisation, (N, h, w)."""
        return smoothed(self.anomaly_map(x), window=self.smooth)

    def measure_scale(self) -> None:
        """Measure the anomaly map at each pixel over the training images; call it at the end of training."""
        if self.standardise and self.supports("anomaly_map"):
            self.eval()
            with torch.no_grad():
                self.scale.measure((self.smoothed_map(x) for x in self.training_inputs()), roi=self.preprocess.roi)

    def on_train_end(self) -> None:
        """Measure the map's scale with the final weights."""
        self.measure_scale()
