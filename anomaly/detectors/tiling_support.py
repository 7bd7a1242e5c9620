"""`TilingSupport`: the ways in which a detector can score images larger than its network's input."""

from __future__ import annotations

from dataclasses import dataclass

from anomaly.nn.score_pooling import ScorePooling


@dataclass(frozen=True)
class Seamless:
    """Tiles without seams: the anomaly map moves with the image. Overlapping windows are possible too.

    Attributes:
        stride: stride of translation equivariance in pixels.
    """

    stride: int


@dataclass(frozen=True)
class WindowsOnly:
    """Overlapping windows of the network's size; the stitched map differs from a map of the whole image.

    Attributes:
        reason: the cause of seams between tiles, as a clause for an error message.
    """

    reason: str


@dataclass(frozen=True)
class WholeImages:
    """Neither tiles nor windows: the detector cannot learn from crops.

    Attributes:
        reason: the cause, as a clause for an error message.
    """

    reason: str


TilingSupport = Seamless | WindowsOnly | WholeImages


def pooled_tiling(support: TilingSupport, *, pooling: ScorePooling) -> TilingSupport:
    """Tiling support of a detector whose score is a pooled map; only a maximum over tiles is the maximum of the image."""
    if isinstance(support, Seamless) and pooling.pooling != "maximum":
        return WindowsOnly("its score is a mean over the largest cells of the whole image (use pooling maximum)")
    return support
