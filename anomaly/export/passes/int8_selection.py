"""Choice of the convolutions in 8-bit integers: those whose rounding changes scores least, measured on training images.

A flow on frozen features scores the rounding of an early convolution like a defect. The rounding of a late one hardly matters.
Every convolution is first rounded alone. Then as many as possible are rounded together, the most harmless first. The
scores of good images and of drawn defects must keep their values.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

from anomaly.errors import ParityError
from anomaly.export.passes.half import learned_convolutions
from anomaly.export.passes.int8 import Range, measure_ranges, quantise
from anomaly.inference.artifact import INPUT, OUTPUTS
from anomaly.inference.bank_graph import Rows
from anomaly.inference.difference import relative_difference
from anomaly.inference.session import open_session
from anomaly.system.progress import Report

MAX_DEVIATION = 0.03
"""Largest root mean square change of scores, in units of the distance from the median to the highest good score"""
NUM_ALONE = 4
"""Number of good images, and of images with defects, for measuring a convolution alone"""


class Choice(NamedTuple):
    """The chosen convolutions.

    Args:
        convolutions: names of their outputs.
        ranges: ranges of the tensors of all candidates.
        num_candidates: number of learned convolutions.
    """

    convolutions: list[str]
    ranges: dict[str, Range]
    num_candidates: int


def choose(
    model: onnx.ModelProto,
    *,
    learned: Collection[str],
    good: Sequence[NDArray[np.uint8]],
    defects: Sequence[NDArray[np.uint8]],
    banks: Sequence[Mapping[str, Rows]] = (),
    report: Report,
) -> Choice:
    """Choose the convolutions of a graph for 8-bit integers.

    Args:
        model: bare graph in single precision.
        learned: names of the learned tensors; convolutions with other weights are not candidates.
        good: training images, (H, W, 3) uint8 RGB.
        defects: training images with drawn defects.
        banks: input of the graph -> rows of a bank, for each of the good images, then of the defects; empty where the graph
            has its own banks.
        report: progress function.

    Raises:
        UsageError: a graph without learned convolutions.
        ParityError: even the most harmless convolution changes the scores too much.
    """
    images = [image[None] for image in (*good, *defects)]
    feeds = list(banks) or [{}] * len(images)
    few, few_feeds = images[:NUM_ALONE] + images[-NUM_ALONE:], feeds[:NUM_ALONE] + feeds[-NUM_ALONE:]
    candidates = [node.output[0] for node in learned_convolutions(model, learned) if node.op_type == "Conv"]
    ranges = measure_ranges(model, candidates, images=images)
    exact, exact_few = _scores(model, images, feeds), _scores(model, few, few_feeds)
    spread = float(np.ptp(exact[: len(good)])) or 1.0
    alone: dict[str, float] = {}
    for name in candidates:
        rounded = _scores(quantise(model, [name], ranges=ranges), few, few_feeds)
        alone[name] = _root_mean_square(relative_difference(exact_few / spread, rounded / spread))
        report(len(alone), len(candidates))

    def deviation(convolutions: Collection[str]) -> float:
        rounded = _scores(quantise(model, convolutions, ranges=ranges), images, feeds)
        both = [_calibrated(values, num_good=len(good)) for values in (exact, rounded)]
        return _root_mean_square(relative_difference(*both))

    harmless = sorted(candidates, key=alone.__getitem__)
    fits, too_many = 0, len(harmless) + 1  # bisection over the number of rounded convolutions
    while too_many - fits > 1:
        half = (fits + too_many) // 2
        if deviation(harmless[:half]) <= MAX_DEVIATION:
            fits = half
        else:
            too_many = half
    if not fits:
        raise ParityError(
            f"each of {len(candidates)} convolutions in 8-bit integers changes the scores of training images by more than"
            f" {MAX_DEVIATION:g} of the spread of good scores: take fp16 or fp32"
        )
    return Choice(harmless[:fits], ranges, len(candidates))


def _scores(
    model: onnx.ModelProto, images: Sequence[NDArray[np.uint8]], feeds: Sequence[Mapping[str, Rows]]
) -> NDArray[np.float64]:
    session, _ = open_session(
        model.SerializeToString(), name="the graph", device="cpu", num_threads=0, precision="int8", is_fixed=False
    )
    scores = [
        session.run([OUTPUTS[0]], {INPUT: image, **feed})[0][0] for image, feed in zip(images, feeds, strict=True)
    ]
    return np.array(scores, dtype=np.float64)


def _calibrated(score: NDArray[np.float64], *, num_good: int) -> NDArray[np.float64]:
    """Scale scores to 0 at the median of the good images, which come first, and 1 at the highest good score."""
    offset, highest = float(np.median(score[:num_good])), float(score[:num_good].max())
    return (score - offset) / max(highest - offset, 1e-12)


def _root_mean_square(values: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.mean(values**2)))
