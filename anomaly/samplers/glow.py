"""Glow: actnorm, invertible 1×1 convolution and affine coupling, over several scales.

D. Kingma and P. Dhariwal, "Glow: Generative Flow with Invertible 1×1 Convolutions", 2018, arXiv 1807.03039 (§3; LU form,
eq. 10 and 11).

As in the paper: the three layers of a step and their initial state. The prior of a scale's output is a Gaussian whose mean
and deviation depend on the remaining half; one more coupling before the split implements it.
What differs, and why: log-scales are softly clamped in place of the sigmoid; the networks receive their position, because
parts are aligned; the hidden convolution is residual.
"""

from __future__ import annotations

from anomaly.nn.flow_steps import Actnorm, Invertible1x1, MaskedCoupling, Step, checkerboard_mask
from anomaly.nn.multi_scale_flow import scale_shapes
from anomaly.nn.preprocess import Resize
from anomaly.samplers._flow import Flow
from anomaly.samplers.base import Score

CLAMP = 2.0
"""Bound of a coupling's log-scales"""


class Glow(Flow):
    """Glow.

    The default score is the peak of the standardised map of shares of -log p, for small defects. `mean` with `smooth` 1 and
    without `standardise` is the likelihood per pixel.

    Args:
        size: side of the network's square input in pixels, a multiple of 2^num_scales.
        resize: resizing rule, `stretch` or `letterbox`.
        num_scales: number of scales; each halves the resolution.
        num_steps: number of steps per scale.
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
    if not last:  # the first half goes to the latent; its prior depends on the second half
        steps.append(MaskedCoupling(~half, width=width, kernel=1, clamp=CLAMP, size=size))
    return steps
