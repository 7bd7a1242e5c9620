"""A rendered part and what is needed to render it again with other components."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Field = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Component:
    """One component of an assembly: its kind, where it sits and how it is marked.

    `x`, `y`, `length` and `width` are in hundredths of the board's edge, `angle` in degrees, clockwise in the image.
    """

    kind: str
    x: float
    y: float
    angle: float
    length: float
    width: float
    marking: str


@dataclass(frozen=True)
class Part:
    """A image of a good part.

    `image` is (H, W, 3) uint8 RGB, `foreground` (H, W) is True on the part. `seed` fixes light, noise and lot, and
    `components` is empty for every kind that is not an assembly: both together render the same image again.
    """

    kind: str
    image: Image
    foreground: Mask
    seed: int
    components: tuple[Component, ...]
