"""Which convolutions may compute in 8-bit integers: those whose rounding moves scores least, judged on training images.

A flow on frozen features notices the rounding of an early convolution as it notices a defect, and that of a late one hardly at
all. So every convolution is rounded alone first; then as many as possible together, the most harmless first, while the scores
of good images and of defects drawn onto them stay where they were.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

from anomaly.errors import ParityError
from anomaly.export.passes.half import learned_convolutions
from anomaly.export.passes.int8 import Span, measure_spans, quantise
from anomaly.inference.artifact import INPUT, OUTPUTS
from anomaly.inference.difference import relative_difference
from anomaly.inference.session import open_session
from anomaly.system.progress import Report

MAX_DEVIATION = 0.03
"""Root of the mean square by which scores may move, in units of good parts' spread from the median to the highest"""

NUM_ALONE = 4
"""Good images, and as many with defects, on which each convolution is judged alone"""


class Choice(NamedTuple):
    """Convolutions to compute in integers, by the names of their outputs, and the spans of their tensors."""

    convolutions: list[str]
    spans: dict[str, Span]
    num_candidates: int


def choose(
    model: onnx.ModelProto,
    *,
    learned: Collection[str],
    good: Sequence[NDArray[np.uint8]],
    defects: Sequence[NDArray[np.uint8]],
    report: Report,
) -> Choice:
    """Choose the convolutions of a graph that may compute in 8-bit integers.

    Args:
        model: a bare graph in single precision.
        learned: names of the tensors that were learned; only convolutions with such weights are candidates.
        good: training images, (H, W, 3) uint8 RGB.
        defects: such images with defects drawn onto them.
        report: progress.

    Raises:
        UsageError: a graph without learned convolutions.
        ParityError: the most harmless convolution alone moves the scores too far.
    """
    images = [image[None] for image in (*good, *defects)]
    few = images[:NUM_ALONE] + images[-NUM_ALONE:]
    candidates = [node.output[0] for node in learned_convolutions(model, learned) if node.op_type == "Conv"]
    spans = measure_spans(model, candidates, images=images)
    exact, exact_few = _scores(model, images), _scores(model, few)
    unit = float(np.ptp(exact[: len(good)])) or 1.0
    alone: dict[str, float] = {}
    for name in candidates:
        rounded = _scores(quantise(model, [name], spans=spans), few)
        alone[name] = _root_mean_square(relative_difference(exact_few / unit, rounded / unit))
        report(len(alone), len(candidates))

    def deviation(convolutions: Collection[str]) -> float:
        rounded = _scores(quantise(model, convolutions, spans=spans), images)
        both = [_calibrated(values, num_good=len(good)) for values in (exact, rounded)]
        return _root_mean_square(relative_difference(*both))

    harmless = sorted(candidates, key=alone.__getitem__)
    fits, too_many = 0, len(harmless) + 1  # the first so many fit, so many do not
    while too_many - fits > 1:
        half = (fits + too_many) // 2
        if deviation(harmless[:half]) <= MAX_DEVIATION:
            fits = half
        else:
            too_many = half
    if not fits:
        raise ParityError(
            f"each of {len(candidates)} convolutions in 8-bit integers moves the scores of training images by more than"
            f" {MAX_DEVIATION:g} of good parts' spread: take fp16 or fp32"
        )
    return Choice(harmless[:fits], spans, len(candidates))


def _scores(model: onnx.ModelProto, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float64]:
    session, _ = open_session(
        model.SerializeToString(), name="the graph", device="cpu", num_threads=0, precision="int8", is_fixed=False
    )
    return np.array([session.run([OUTPUTS[0]], {INPUT: image})[0][0] for image in images], dtype=np.float64)


def _calibrated(score: NDArray[np.float64], *, num_good: int) -> NDArray[np.float64]:
    """Scores of images, 0 at the median of the good ones, which come first, and 1 at their highest."""
    zero, highest = float(np.median(score[:num_good])), float(score[:num_good].max())
    return (score - zero) / max(highest - zero, 1e-12)


def _root_mean_square(values: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.mean(values**2)))
