"""RealNVP: affine couplings under checkerboard and channel masks, over several scales.

L. Dinh et al., "Density estimation using Real NVP", 2016, arXiv 1605.08803 (§3.4 masks, §3.6 multi-scale).

As in the paper: each scale has three couplings under alternating checkerboard masks, then three under alternating channel
masks, and outputs half of its values. The last scale has four checkerboard couplings.
What differs, and why: a checkerboard coupling runs on the squeezed map, at a quarter of the cost. Its colours are
halves of the channels there. An actnorm before each coupling replaces batch norm, so that images are independent. A network is
one residual convolution without weight norm, and receives its position, because parts are aligned.
"""

from __future__ import annotations

from anomaly.nn.flow_steps import Actnorm, MaskedCoupling, Step, channel_mask, checkerboard_mask
from anomaly.nn.multi_scale_flow import scale_shapes
from anomaly.nn.preprocess import Resize
from anomaly.samplers._flow import Flow
from anomaly.samplers.base import Score

CLAMP = 2.0
"""Bound of a coupling's log-scales"""


class RealNvp(Flow):
    """RealNVP.

    The default score is the peak of the standardised map of shares of -log p, for small defects. `mean` with `smooth` 1 and
    without `standardise` is the likelihood per pixel.

    Args:
        size: side of the network's square input in pixels, a multiple of 2^num_scales.
        resize: resizing rule, `stretch` or `letterbox`.
        num_scales: number of scales; each halves the resolution.
        width: hidden channels of the couplings' networks.
        bits: bits of the dequantised grey levels; the training noise has the width 2^-bits.
        score: score of the detector form: `mean` or `peak` of the anomaly map, or `top`, the mean of its largest cells.
        smooth: side of the averaging window over the anomaly map in pixels, odd; 1 for no smoothing.
        standardise: scaling of each pixel of the anomaly map by its mean and deviation over the training images.
        learning_rate: highest learning rate of Adam, between a short rise and a cosine to zero.
        epochs: passes over the training images.
        batch_size: images per optimisation step; the first batch initialises the actnorms.
        seed: seed of the dequantisation.
        cache_gib: memory for preprocessed images between epochs in GiB.
    """

    def __init__(
        self,
        *,
        size: int = 64,
        resize: Resize = "stretch",
        num_scales: int = 3,
        width: int = 32,
        bits: int = 8,
        score: Score = "peak",
        smooth: int = 3,
        standardise: bool = True,
        learning_rate: float = 1e-3,
        epochs: int = 40,
        batch_size: int = 8,
        seed: int = 0,
        cache_gib: float = 2.0,
    ) -> None:
        shapes = scale_shapes((3, size, size), num_scales=num_scales)
        scales = [
            _steps(channels, size=(height, breadth), width=width, last=number == num_scales)
            for number, (channels, height, breadth) in enumerate(shapes, start=1)
        ]
        super().__init__(
            size=size,
            resize=resize,
            scales=scales,
            mixes=False,
            bits=bits,
            score=score,
            smooth=smooth,
            standardise=standardise,
            learning_rate=learning_rate,
            epochs=epochs,
            batch_size=batch_size,
            seed=seed,
            cache_gib=cache_gib,
        )
        self.save_hyperparameters()


def _steps(channels: int, *, size: tuple[int, int], width: int, last: bool) -> list[Step]:
    board, alternate = checkerboard_mask(channels), channel_mask(channels)
    masks = [board, ~board, board, ~board] if last else [board, ~board, board, alternate, ~alternate, alternate]
    steps: list[Step] = []
    for mask in masks:
        steps.append(Actnorm((channels, 1, 1), shrinkage=0.0))
        steps.append(MaskedCoupling(mask, width=width, kernel=3, clamp=CLAMP, size=size))
    return steps
