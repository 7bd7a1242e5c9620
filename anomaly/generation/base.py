"""`SamplingLoop`: the loop that draws images through the functions of a sampler, trained or exported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from anomaly.errors import Unsupported, UsageError

Array = NDArray[np.float32]


class RunFunction(Protocol):
    """Runs a function of a sampler on arrays with the images along their first axis."""

    def __call__(self, function: str, *inputs: NDArray[Any]) -> NDArray[Any]:
        """Run `function`, e.g. `decode`, on its inputs in order."""
        ...


@dataclass(frozen=True)
class SamplerInfo:
    """Properties of a sampler that its sampling loop needs; the exported file stores them."""

    sampler: str
    """class name of the sampler"""
    size: list[int]
    """height and width of the images"""
    latent_shape: list[int]
    """shape of one image's latent; empty without a decoder"""
    unsupported: dict[str, str]
    """unsupported ability -> reason"""
    settings: dict[str, Any]
    """settings of the loop, such as a noise schedule"""


@dataclass(frozen=True)
class Options:
    """Sampling options. Each loop reads some of them (`known_options`)."""

    steps: int = 50
    """denoising steps of a diffusion model"""
    eta: float = 0.0
    """share of fresh noise per step: 0 is DDIM, 1 is DDPM"""
    temperature: float = 1.0
    """factor on the latent's standard deviation; logits are divided by it"""
    strength: float = 0.5
    """noise level of a partial diffusion as a share of the schedule, in (0, 1]"""
    label: int | None = None
    """class of a conditional sampler; None draws without a class"""


class SamplingLoop:
    """Base of the sampling loops. Images are float32 (n, 3, h, w) in [0, 1]; random numbers come from numpy on the host.

    Args:
        run_function: call of a sampler's function on arrays.
        info: properties of the sampler.
    """

    known_options: frozenset[str] = frozenset({"temperature"})
    """Names of the options that this loop reads"""

    def __init__(self, run_function: RunFunction, info: SamplerInfo) -> None:
        self.run_function = run_function
        self.info = info

    def sample(self, n: int, *, rng: np.random.Generator, options: Options) -> Array:
        """Draw n images."""
        raise self.unsupported("sample")

    def reconstruct(self, x: Array, *, rng: np.random.Generator, options: Options) -> Array:
        """Return the nearest images (n, 3, h, w) that the model considers normal."""
        raise self.unsupported("reconstruct")

    def interpolate(self, a: Array, b: Array, *, num: int, options: Options) -> Array:
        """Return `num` images between a (3, h, w) and b (3, h, w), both ends included."""
        raise self.unsupported("interpolate")

    def inpaint(self, x: Array, mask: NDArray[np.bool_], *, rng: np.random.Generator, options: Options) -> Array:
        """Draw the pixels under a mask.

        Args:
            x: images (n, 3, h, w).
            mask: (n, h, w), True at unknown pixels. Known pixels stay unchanged.
            rng: random generator of the draws.
            options: sampling options.
        """
        raise self.unsupported("inpaint")

    def attribute(self, x: Array, present: Array, absent: Array, *, strength: float, options: Options) -> Array:
        """Move images along the latent direction of an attribute.

        Args:
            x: images (n, 3, h, w).
            present: images (a, 3, h, w) with the attribute.
            absent: images (b, 3, h, w) without the attribute.
            strength: factor on the direction; 1 moves by the difference of the mean latents.
            options: sampling options.
        """
        raise self.unsupported("attribute")

    def unsupported(self, ability: str) -> Unsupported:
        """Build the error for an unsupported ability, with the reason."""
        reason = self.info.unsupported.get(ability, "the family does not define it")
        return Unsupported(f"{self.info.sampler} does not support {ability}: {reason}")

    def check(self, ability: str) -> None:
        """Refuse an ability that the sampler does not support.

        Raises:
            Unsupported: the text gives the reason.
        """
        if ability in self.info.unsupported:
            raise self.unsupported(ability)

    def check_images(self, x: NDArray[Any]) -> None:
        """Refuse images that do not have the sampler's size.

        Raises:
            UsageError: the shape is not (n, 3, h, w) with that size.
        """
        height, width = self.info.size
        if x.ndim != 4 or x.shape[1:] != (3, height, width):
            raise UsageError(
                f"images of shape {x.shape}, {self.info.sampler} takes (n, 3, {height}, {width}): resize them first"
            )


def in_batches(
    draw: Callable[[int], Array], *, num: int, batch_size: int, report: Callable[[int, int], None]
) -> list[Array]:
    """Draw `num` images in batches; the last batch may be smaller.

    Raises:
        UsageError: fewer than one image.
    """
    if num < 1:
        raise UsageError(f"{num} images requested: request at least 1")
    batches = []
    for start in range(0, num, batch_size):
        batches.append(draw(min(batch_size, num - start)))
        report(min(num, start + batch_size), num)
    return batches


def check_mask(x: Array, mask: NDArray[np.bool_]) -> None:
    """Refuse a mask that is not one bool per pixel of images (n, 3, h, w).

    Raises:
        UsageError: the shape or the type differs.
    """
    expected = (len(x), *x.shape[2:])
    if mask.shape != expected or mask.dtype != np.bool_:
        raise UsageError(
            f"mask of shape {mask.shape} {mask.dtype} to images of shape {x.shape}: give {expected} bool, one value per pixel"
        )


def check_interpolation(a: Array, b: Array, *, num: int) -> None:
    """Refuse an interpolation of fewer than two images or between images of different sizes.

    Raises:
        UsageError: `num` is below 2, or the shapes differ.
    """
    if num < 2:
        raise UsageError(f"{num} images of an interpolation: both ends are included, give 2 or more, e.g. 8")
    if a.shape != b.shape:
        raise UsageError(f"images of shapes {a.shape} and {b.shape}: give two of one size")
