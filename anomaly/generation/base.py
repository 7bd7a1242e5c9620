"""What a process is: the loop that draws images through the functions of a sampler, trained or exported alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from anomaly.errors import Unsupported, UsageError

Array = NDArray[np.float32]


class Call(Protocol):
    """Runs a function of a sampler on arrays whose first axis counts images."""

    def __call__(self, function: str, *inputs: NDArray[Any]) -> NDArray[Any]:
        """Run `function`, e.g. `decode`, on inputs in the order of its parameters."""
        ...


@dataclass(frozen=True)
class Facts:
    """What a process knows of its sampler beside the functions."""

    sampler: str
    size: list[int]
    """height and width of the images"""
    latent_shape: list[int]
    """of one image; empty where there is no decoder"""
    lacks: dict[str, str]
    """ability -> why the sampler has it not"""
    own: dict[str, Any]
    """of its family, such as a noise schedule"""


@dataclass(frozen=True)
class Options:
    """How to draw; what a family does not know is refused by it."""

    steps: int = 50
    """denoising steps of a diffusion model"""
    eta: float = 0.0
    """0 draws by DDIM, 1 by DDPM"""
    temperature: float = 1.0
    """factor on the deviation of the latent, or of the logits' inverse"""
    strength: float = 0.5
    """of a partial diffusion, in (0, 1]: how far along the schedule the image is noised"""
    label: int = -1
    """class to draw, where the sampler is conditional; -1 draws without"""


class Process:
    """Base of the loops. Images are float32 (n, 3, h, w) in [0, 1]; randomness is numpy's, drawn on the host.

    Args:
        call: runs a function of the sampler.
        facts: what the sampler says of itself.
    """

    knows: frozenset[str] = frozenset({"temperature"})
    """The options that this loop reads"""

    def __init__(self, call: Call, facts: Facts) -> None:
        self.call = call
        self.facts = facts

    def sample(self, n: int, *, rng: np.random.Generator, options: Options) -> Array:
        """Draw n images."""
        raise self.unsupported("sample")

    def reconstruct(self, x: Array, *, rng: np.random.Generator, options: Options) -> Array:
        """Give the nearest image that the model takes for normal."""
        raise self.unsupported("reconstruct")

    def interpolate(self, a: Array, b: Array, *, num: int, options: Options) -> Array:
        """Give `num` images on the way from a (3, h, w) to b (3, h, w), both ends included."""
        raise self.unsupported("interpolate")

    def inpaint(self, x: Array, mask: NDArray[np.bool_], *, rng: np.random.Generator, options: Options) -> Array:
        """Draw what lies under a mask.

        Args:
            x: (n, 3, h, w).
            mask: (n, h, w), True where the image is unknown; known pixels come back as they are.
            rng: of the draws.
            options: how to draw.
        """
        raise self.unsupported("inpaint")

    def attribute(self, x: Array, present: Array, absent: Array, *, strength: float, options: Options) -> Array:
        """Move images along the direction from those without an attribute to those with it.

        Args:
            x: (n, 3, h, w), the images to change.
            present: (a, 3, h, w), images with the attribute.
            absent: (b, 3, h, w), images without it.
            strength: factor on the direction; 1 moves by the difference of the means.
            options: how to draw.
        """
        raise self.unsupported("attribute")

    def unsupported(self, ability: str) -> Unsupported:
        """Say that the sampler lacks an ability, and why."""
        reason = self.facts.lacks.get(ability, "the family does not define it")
        return Unsupported(f"{self.facts.sampler} has no {ability}: {reason}")

    def check(self, ability: str) -> None:
        """Refuse an ability that the sampler names among what it lacks.

        Raises:
            Unsupported: with the reason.
        """
        if ability in self.facts.lacks:
            raise self.unsupported(ability)


def in_batches(
    draw: Callable[[int], Array], *, num: int, batch_size: int, report: Callable[[int, int], None]
) -> list[Array]:
    """Draw `num` images in batches, the last one smaller.

    Raises:
        UsageError: fewer than one image asked for.
    """
    if num < 1:
        raise UsageError(f"{num} images asked for: ask for at least 1")
    batches = []
    for start in range(0, num, batch_size):
        batches.append(draw(min(batch_size, num - start)))
        report(min(num, start + batch_size), num)
    return batches
