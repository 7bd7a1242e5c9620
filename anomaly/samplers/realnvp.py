"""RealNVP: affine couplings under checkerboard and channel masks, over scales.

L. Dinh et al., "Density estimation using Real NVP", 2016, arXiv 1605.08803 (§3.4 masks, §3.6 multi-scale).

What is the paper's: three couplings under alternating checkerboard masks, then three under alternating channel masks at each
scale, half of the values handed over after it; the last scale has four checkerboard couplings.
What differs, and why: a checkerboard coupling runs on the squeezed map, where its colours are the halves of the channels, so
that its net costs a quarter; in place of batch norm an actnorm stands before each coupling, which treats each image by itself;
a net is one residual convolution, without weight norm, and known_options its position, because parts lie in register.
"""

from __future__ import annotations

from anomaly.nn.flow_steps import Actnorm, MaskedCoupling, Step, channel_mask, checkerboard_mask, scale_shapes
from anomaly.nn.preprocess import Resize
from anomaly.samplers._flow import Flow
from anomaly.samplers.base import Score

CLAMP = 2.0
"""Bound of a coupling's log-scales"""


class RealNvp(Flow):
    """RealNVP.

    As a detector it scores by the peak of the standardised map of shares of -log p, for small defects; `score` = `mean` with
    `standardise` = false and `smooth` = 1 is the likelihood itself, per pixel.

    Args:
        size: side of the network's square input in pixels, a multiple of 2^num_scales.
        resize: `stretch` or `letterbox`.
        num_scales: scales; each halves the resolution.
        width: hidden channels of the couplings' nets.
        bits: of the grey levels that are dequantised: the noise of training is 2^-bits wide.
        score: `mean` of the map, which is the likelihood where the map is not standardised, or its `peak`.
        smooth: side in pixels of the averaging window over the map, odd; 1 leaves it.
        standardise: whether each pixel of the map is measured by mean and deviation of the training images there.
        learning_rate: of Adam, after its rise and before one cosine to zero.
        epochs: passes over the training images.
        batch_size: images per step; the first one sets the actnorms.
        seed: of the dequantisation.
        cache_gib: memory in GiB for preprocessed images kept between epochs.
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
