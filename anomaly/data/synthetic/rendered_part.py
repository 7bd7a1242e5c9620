"""A rendered part, and the data to render it again with other components."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Field = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Component:
    """One component of an assembly: its kind, its place and its marking.

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
class RenderedPart:
    """An image of a good part.

    `image` is (H, W, 3) uint8 RGB, `foreground` (H, W) is True on the part. `seed` fixes light, noise and lot.
    `components` is empty unless the part is an assembly. Both together render the same image again.
    """

    kind: str
    image: Image
    foreground: Mask
    seed: int
    components: tuple[Component, ...]
