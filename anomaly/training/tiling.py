"""From what is asked for at `fit` to how the model walks over large images, and what a model says of them window by window."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray

from anomaly.detectors.base import Detector
from anomaly.detectors.tiling_support import Seamless, WholeImages
from anomaly.errors import TrainingError, UsageError
from anomaly.inference.artifact import Brightness
from anomaly.inference.tiles import ScoreWindows, Tiling, score_tiled, seam
from anomaly.nn.receptive_field import reach

TARGET, REFUSE = 1e-5, 1e-3
"""Difference of the stitched map from the one without tiles in calibrated units: what fp32 reaches, and where a fit fails"""


def choose_tiling(
    detector: Detector, *, tile: str, windows: int, smallest: tuple[int, int], roi: str, brightness: Brightness
) -> Tiling | None:
    """Decide how a detector walks over images, before it is trained, and let it take their pixels as they are.

    Args:
        detector: as built.
        tile: `H,W` in pixels for seamless tiles; empty for none.
        windows: pixels from one overlapping window of the network's size to the next; 0 for none.
        smallest: the least height and the least width among the images.
        roi: the region of interest asked for.
        brightness: what is asked for of the images' brightness.

    Returns:
        The walk; None where images are scored whole.

    Raises:
        UsageError: both kinds at once, a size that cannot be, or a detector whose map cannot be stitched, with the reason.
    """
    if not tile and not windows:
        return None
    name, size = type(detector).__name__, detector.preprocess.size
    if tile and windows:
        raise UsageError(
            f"--tile {tile} and --windows {windows} at once: tiles are seamless, windows are not; give one"
        )
    if roi:
        raise UsageError(f"--roi {roi} with a walk over large images: cut the images to the region instead")
    if brightness == "levelled":
        raise UsageError(
            "--brightness levelled with a walk over large images: each window would be levelled by what it sees alone;"
            " leave one of the two out"
        )
    if isinstance(detector.tiling, WholeImages):
        raise UsageError(f"{name} cannot learn from parts of images: {detector.tiling.reason}")
    if size[0] > smallest[0] or size[1] > smallest[1]:
        raise UsageError(
            f"it learns from crops of {size[1]}×{size[0]} pixels, and the images are as small as"
            f" {smallest[1]}×{smallest[0]}: make --model.size smaller, or leave --tile and --windows out"
        )
    detector.preprocess.resize = "native"
    return _seamless(detector, tile, smallest=smallest) if tile else _windows(windows, size=size)


def _windows(step: int, *, size: tuple[int, int]) -> Tiling:
    if not 1 <= step <= min(size):
        raise UsageError(
            f"--windows {step}: windows of {size[1]}×{size[0]} pixels, the network's, lie 1 to {min(size)} pixels apart,"
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
            f"{name} has no seamless tiles: {support.reason}. Overlapping windows of its own size do without:"
            f" --windows {min(detector.preprocess.size) * 3 // 4} (each pixel takes the largest value of the windows that"
            " see it; there is no map of the whole image that this would equal)"
        )
    stride = support.stride
    if not all(step) or any(length % stride for length in step):
        fitting = ",".join(str(max(stride, length // stride * stride)) for length in step)
        raise UsageError(
            f"--tile {tile}: a side is a multiple of the network's stride, {stride}; e.g. --tile {fitting}"
        )
    if step[0] > smallest[0] or step[1] > smallest[1]:
        raise UsageError(
            f"--tile {tile} is larger than a image of {smallest[0]},{smallest[1]} (height,width): make it smaller, or"
            " leave it out, and images are scored whole"
        )
    training = detector.training
    detector.eval()
    try:
        wanted = reach(detector.dependence, stride=stride)
    except (UsageError, RuntimeError) as error:  # torch: a layer of a fixed size
        raise UsageError(f"{name} has no seamless tiles, whatever its class says: {error}; try --windows") from error
    finally:
        detector.train(training)
    halo = [math.ceil(length / stride) * stride for length in wanted]
    return Tiling("seamless", window=[s + 2 * h for s, h in zip(step, halo, strict=True)], step=step, stride=stride)


def window_scorer(detector: Detector) -> ScoreWindows:
    """Give what scores windows (n, h, w, 3) uint8 RGB by a detector on the CPU in eval mode."""

    def score(windows: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        with torch.no_grad():
            said = detector(torch.from_numpy(windows))
        return said.score.numpy(), said.anomaly_map.numpy()

    return score


def raw_scores(
    detector: Detector, images: Iterable[NDArray[np.uint8]], *, tiling: Tiling
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Score whole images (H, W, 3) window by window with a detector that is not calibrated yet.

    Returns:
        Scores (n,) and maxima of the maps (n,), raw.
    """
    detector.eval()
    score, peak = [], []
    for image in images:
        total, anomaly_map = score_tiled(window_scorer(detector), image[None], tiling=tiling)
        score.append(float(total[0]))
        peak.append(float(anomaly_map.max()))
    return np.array(score), np.array(peak)


def check_seam(detector: Detector, image: NDArray[np.uint8], *, tiling: Tiling) -> float:
    """Measure on a image how far the trained, calibrated detector's stitched map is from the one without tiles.

    Returns:
        The largest difference in calibrated units; 0 in the mode `windows`, which makes no such guarantee.

    Raises:
        TrainingError: more than rounding explains: the detector's class names a stride that its network has not.
    """
    if tiling.mode == "windows":
        return 0.0
    found = seam(window_scorer(detector), image, tiling=tiling)
    if not found <= REFUSE:
        raise TrainingError(
            f"the stitched map differs by {found:.3g} from the one without tiles, above {REFUSE:g}: {type(detector).__name__}"
            f" names the stride {tiling.stride}, which its network does not keep; correct it, or fit with --windows"
        )
    return found
