"""Tiling of large images in training: choice of the tiling, raw scores through it, and the check of its seams."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from anomaly.detectors.base import Detector
from anomaly.detectors.tiling_support import Seamless, WholeImages
from anomaly.errors import TrainingError, UsageError
from anomaly.inference.artifact import Brightness
from anomaly.inference.tiles import ScoreWindows, Tiling, score_tiled, seam
from anomaly.nn.receptive_field import reach
from anomaly.samplers.base import Sampler

TARGET, REFUSE = 1e-5, 1e-3
"""Difference between the stitched and the whole map in calibrated units: target of fp32, and bound of an accepted fit"""


def choose_tiling(
    model: Detector | Sampler,
    *,
    tile: str | None,
    windows: int | None,
    smallest: tuple[int, int],
    roi: str | Path | None,
    brightness: Brightness,
) -> Tiling | None:
    """Choose the tiling of an untrained model, and switch its preprocessing to the images' own pixels.

    Args:
        model: untrained detector. A sampler is refused.
        tile: size H,W in pixels of seamless tiles; None for no tiles.
        windows: distance in pixels between overlapping windows of the network's size; None for no windows.
        smallest: smallest height and smallest width among the images.
        roi: requested region of interest.
        brightness: requested treatment of the images' brightness.

    Returns:
        The tiling; None where images are scored whole.

    Raises:
        UsageError: both kinds at once, an invalid size, or a detector without support, with the reason.
    """
    if tile is None and windows is None:
        return None
    name, size = type(model).__name__, model.preprocess.size
    if tile is not None and windows is not None:
        raise UsageError(
            f"--tile {tile} and --windows {windows} together: tiles are seamless, windows are not; give one"
        )
    if roi is not None:
        raise UsageError(f"--roi {roi} with tiles or windows: cut the images to the region instead")
    if brightness == "levelled":
        raise UsageError(
            "--brightness levelled with tiles or windows: each window would be levelled by its own content; omit one of both"
        )
    if isinstance(model, Sampler):
        raise UsageError(f"{name} cannot learn from parts of images: a sampler draws and reconstructs whole images")
    if isinstance(model.tiling, WholeImages):
        raise UsageError(f"{name} cannot learn from parts of images: {model.tiling.reason}")
    if size[0] > smallest[0] or size[1] > smallest[1]:
        raise UsageError(
            f"training crops have {size[1]}×{size[0]} pixels, but the smallest image has {smallest[1]}×{smallest[0]}:"
            " make --model.size smaller, or omit --tile and --windows"
        )
    model.preprocess.resize = "native"
    if tile is not None:
        return _seamless(model, tile, smallest=smallest)
    return _windows(windows or 0, size=size)


def _windows(step: int, *, size: tuple[int, int]) -> Tiling:
    if not 1 <= step <= min(size):
        raise UsageError(
            f"--windows {step}: windows of the network's {size[1]}×{size[0]} pixels lie 1 to {min(size)} pixels apart,"
            f" e.g. --windows {min(size) * 3 // 4}"
        )
    return Tiling("windows", window=list(size), step=[step, step], stride=1)


def _seamless(detector: Detector, tile: str, *, smallest: tuple[int, int]) -> Tiling:
    name, support = type(detector).__name__, detector.tiling
    numbers = tile.split(",")
    if len(numbers) != 2 or not all(number.strip().isdigit() for number in numbers):
        raise UsageError(f"--tile {tile!r}: give height and width in pixels, e.g. --tile 512,512")
    step = [int(number) for number in numbers]
    if not isinstance(support, Seamless):
        raise UsageError(
            f"{name} has no seamless tiles: {support.reason}. It can score overlapping windows of its own size:"
            f" --windows {min(detector.preprocess.size) * 3 // 4}. Each pixel takes the largest value of its windows;"
            " a map of the whole image does not exist."
        )
    stride = support.stride
    if not all(step) or any(length % stride for length in step):
        nearest = ",".join(str(max(stride, length // stride * stride)) for length in step)
        raise UsageError(
            f"--tile {tile}: each side is a multiple of the network's stride, {stride}; e.g. --tile {nearest}"
        )
    if step[0] > smallest[0] or step[1] > smallest[1]:
        raise UsageError(
            f"--tile {tile} is larger than an image of {smallest[0]},{smallest[1]} (height,width): make it smaller, or"
            " omit it to score whole images"
        )
    training = detector.training
    detector.eval()
    try:
        lengths = reach(detector.dependence, stride=stride)
    except (UsageError, RuntimeError) as error:  # torch: a layer of fixed size
        raise UsageError(f"{name} declares seamless tiles, but has none: {error}; try --windows") from error
    finally:
        detector.train(training)
    halo = [math.ceil(length / stride) * stride for length in lengths]
    return Tiling("seamless", window=[s + 2 * h for s, h in zip(step, halo, strict=True)], step=step, stride=stride)


def window_scorer(detector: Detector) -> ScoreWindows:
    """Return a function that scores windows (n, h, w, 3) uint8 RGB by a detector on the CPU in eval mode."""

    def score(windows: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        with torch.no_grad():
            output = detector(torch.from_numpy(windows))
        return output.score.numpy(), output.anomaly_map.numpy()

    return score


def raw_scores(
    detector: Detector, images: Iterable[NDArray[np.uint8]], *, tiling: Tiling
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Score whole images (H, W, 3) uint8 through a tiling, with an uncalibrated detector.

    Returns:
        Raw scores (n,) and maxima of the raw maps (n,).
    """
    detector.eval()
    score, peak = [], []
    for image in images:
        total, anomaly_map = score_tiled(window_scorer(detector), image[None], tiling=tiling)
        score.append(float(total[0]))
        peak.append(float(anomaly_map.max()))
    return np.array(score), np.array(peak)


def check_seam(detector: Detector, image: NDArray[np.uint8], *, tiling: Tiling) -> float:
    """Measure the difference between the stitched and the whole map of a calibrated detector on one image.

    Returns:
        The largest difference in calibrated units; 0 in the mode `windows`, which has no whole map.

    Raises:
        TrainingError: the difference exceeds rounding: the network does not keep the declared stride.
    """
    if tiling.mode == "windows":
        return 0.0
    difference = seam(window_scorer(detector), image, tiling=tiling)
    if not difference <= REFUSE:
        raise TrainingError(
            f"the stitched map differs from the whole map by {difference:.3g}, above {REFUSE:g}: {type(detector).__name__}"
            f" declares the stride {tiling.stride}, which its network does not keep; correct it, or fit with --windows"
        )
    return difference
