"""Glow: actnorm, an invertible 1×1 convolution and an affine coupling, over scales.

D. Kingma and P. Dhariwal, "Glow: Generative Flow with Invertible 1×1 Convolutions", 2018, arXiv 1807.03039 (§3; the LU form,
eq. 10 and 11).

What is the paper's: the three layers of a step and their initial state; the prior of what a scale hands over is a Gaussian
whose mean and deviation a net says of what goes on, which is nothing but one more coupling before the halves part.
What differs, and why: log-scales are softly clamped in place of the sigmoid, and the nets know their position, because parts
lie in register; the hidden convolution is residual.
"""

from __future__ import annotations

from anomaly.nn.flow_steps import Actnorm, Invertible1x1, MaskedCoupling, Step, checkerboard_mask, scale_shapes
from anomaly.nn.preprocess import Resize
from anomaly.samplers._flow import Flow
from anomaly.samplers.base import Score

CLAMP = 2.0
"""Bound of a coupling's log-scales"""


class Glow(Flow):
    """Glow.

    As a detector it scores by the peak of the standardised map of shares of -log p, for small defects; `score` = `mean` with
    `standardise` = false and `smooth` = 1 is the likelihood itself, per pixel.

    Args:
        size: side of the network's square input in pixels, a multiple of 2^num_scales.
        resize: `stretch` or `letterbox`.
        num_scales: scales; each halves the resolution.
        num_steps: steps of each scale.
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
        num_steps: int = 6,
        width: int = 48,
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
            _steps(channels, size=(height, breadth), num_steps=num_steps, width=width, last=number == num_scales)
            for number, (channels, height, breadth) in enumerate(shapes, start=1)
        ]
        super().__init__(
            size=size,
            resize=resize,
            scales=scales,
            mixes=True,
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


def _steps(channels: int, *, size: tuple[int, int], num_steps: int, width: int, last: bool) -> list[Step]:
    half = checkerboard_mask(channels)
    steps: list[Step] = []
    for _ in range(num_steps):
        steps.append(Actnorm((channels, 1, 1), shrinkage=0.0))
        steps.append(Invertible1x1(channels))
        steps.append(MaskedCoupling(half, width=width, kernel=1, clamp=CLAMP, size=size))
    if not last:  # the first half parts, and its prior is what the second half says of it
        steps.append(MaskedCoupling(~half, width=width, kernel=1, clamp=CLAMP, size=size))
    return steps
