"""Suspects: training images that look unlike the others. A good folder may hold defects and oddities.

The distance to all other images ranks an image. It is divided by the square root of the usual distance at each place. The
share of good images among the named ones is bounded, if the estimated null holds (`empirical_null`). The ranking is repeated
without the named images, because similar defects hide each other. Nothing is excluded here: `fit --exclude` does it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from anomaly.conformal.guarantee import tightest_alpha
from anomaly.conformal.scale import fit_scale
from anomaly.data.folders import Sample
from anomaly.detectors.mutual_distances import MutualDistances, Patches, mutual_distances
from anomaly.errors import CalibrationError, UsageError, WeightsError
from anomaly.nn.map_scaling import smoothed
from anomaly.training.empirical_null import benjamini_hochberg, null_of, p_values, skewed_null_of, value_at
from anomaly.training.fitted_model import Description

Ranking = Literal["mutual", "calibration", "none"]
FALSE_DISCOVERY_RATE = 0.1
TOP = 0.03
"""Share of an image's cells that its distance averages, the largest ones"""
PRIOR_IMAGES = 10
SMOOTH_CELLS = 1.0
"""Standard deviation, in cells, of the Gaussian that smooths the usual distance"""
MIN_IMAGES = 10
"""Smallest number of images that supports p-values"""
MAX_IMAGES = 5000
"""Largest number of images that are compared with each other; they take 250 KB each"""
MAX_ROUNDS = 8
"""Repetitions without the named images"""


@dataclass(frozen=True, eq=False)
class RankedImage:
    """A training image in the ranking."""

    path: Path
    name: str
    """shortest end of the path that names no other image, for the list of --exclude"""
    score: float
    """distance to the other images; 1 is the limit above which images are named"""
    p_value: float
    """chance that a good image of this folder has such a distance"""
    suspicious: bool
    anomaly_map: NDArray[np.float32] | None
    """distance of each place (h, w), in the unit of the score; None where the calibration ranks"""


@dataclass(frozen=True, eq=False)
class Suspects:
    """Training images, the most suspicious first."""

    ranked: tuple[RankedImage, ...]
    threshold_without: float | None = None
    """threshold without the suspicious images, in units of the present one; None if it cannot be computed"""
    reason: str | None = None
    """reason why no image can be named; None if the ranking is usable"""

    @property
    def named(self) -> tuple[RankedImage, ...]:
        """The suspicious images."""
        return tuple(image for image in self.ranked if image.suspicious)


@dataclass(frozen=True, eq=False)
class NullTest:
    """Test of n values against the null."""

    p: NDArray[np.float64]
    """(n,)"""
    suspicious: NDArray[np.bool_]
    """(n,)"""
    centre: float
    limit: float
    """value above which images are suspicious"""


def find_suspects(
    samples: Sequence[Sample],
    description: Description,
    part_groups: Mapping[Path, str],
    *,
    ranking: Ranking,
    read: Callable[[Sample], NDArray[np.uint8]],
) -> Suspects | None:
    """Rank the good images of a fitted model by how little they look like the others.

    Args:
        samples: good images that train, calibrate or stop early.
        description: description of the fitted model.
        part_groups: group of each image by its path; images of one group are not compared.
        ranking: `mutual` compares the patches of all images by a pretrained network. `calibration` takes the calibration
            scores, which costs nothing. `none` ranks nothing.
        read: function that reads an image.

    Returns:
        The ranking; None without one.
    """
    if ranking == "none":
        return None
    if ranking == "calibration":
        if not description.calibration_scores:
            return Suspects((), reason=f"{description.detector} has no calibration scores: give --suspects mutual")
        score_of = dict(zip(description.calibration_images, description.calibration_scores, strict=True))
        samples = [s for s in samples if str(s.path) in score_of]
        if len(samples) < MIN_IMAGES:
            return Suspects((), reason=_too_few(len(samples)))
        values = np.array([score_of[str(s.path)] for s in samples])
        test = _test_fixed(values)
        score, maps = (values - test.centre) / max(test.limit - test.centre, 1e-12), None
    else:
        number = {group: n for n, group in enumerate(sorted({part_groups[s.path] for s in samples}))}
        if len(number) < MIN_IMAGES:
            return Suspects((), reason=_too_few(len(number)))
        if len(samples) > MAX_IMAGES:
            return Suspects(
                (), reason=f"{len(samples)} images are more than {MAX_IMAGES}: rank them with --suspects calibration"
            )
        try:
            patches = Patches(*read(samples[0]).shape[:2])
            distances = mutual_distances(
                patches,
                lambda n: patches.features(read(samples[n])),
                [number[part_groups[s.path]] for s in samples],
                seed=description.seed,
            )
        except (UsageError, WeightsError) as error:
            return Suspects((), reason=str(error))
        test, maps = rank_mutually(distances)
        score = _pooled(maps)
    if test.suspicious.mean() > 0.5:
        num = int(test.suspicious.sum())
        return Suspects(
            _collect(samples, score, np.ones(len(score)), maps, suspicious=np.zeros(len(score), dtype=bool)),
            reason=f"{num} of {len(samples)} images look unlike the others, so the folder has no clear majority",
        )
    ranked = _collect(samples, score, test.p, maps, suspicious=test.suspicious)
    named = {str(image.path) for image in ranked if image.suspicious}
    return Suspects(ranked, threshold_without=threshold_without(named, description, part_groups))


def threshold_without(
    paths: Collection[str], description: Description, part_groups: Mapping[Path, str]
) -> float | None:
    """Threshold without some calibration images, in units of the present threshold.

    Only the calibration changes: a refitted detector has other scores.

    Args:
        paths: paths of the images.
        description: description of the fitted model.
        part_groups: group of each image by its path.

    Returns:
        The threshold; None if no calibration image is among them, or too few would remain.
    """
    if not description.calibration_scores:  # a sampler that cannot score
        return None
    record = zip(description.calibration_images, description.calibration_scores, strict=True)
    kept = [(part_groups[Path(path)], score) for path, score in record if path not in paths]
    if not kept or len(kept) == len(description.calibration_scores):
        return None
    sizes = Counter(group for group, _ in kept)
    alpha = max(description.alpha, tightest_alpha(len(sizes), guarantee=description.guarantee))
    try:
        scale = fit_scale(
            np.array([score for _, score in kept]),
            alpha=alpha,
            guarantee=description.guarantee,
            group_sizes=[sizes[group] for group, _ in kept],
        )
    except (CalibrationError, UsageError):
        return None
    return scale.offset + scale.scale


def _collect(
    samples: Sequence[Sample],
    score: NDArray[np.float64],
    p: NDArray[np.float64],
    maps: NDArray[np.float32] | None,
    *,
    suspicious: NDArray[np.bool_],
) -> tuple[RankedImage, ...]:
    """Order images: the suspicious ones first, then by score."""
    names = unique_names([s.path for s in samples])
    return tuple(
        RankedImage(
            path=samples[n].path,
            name=names[samples[n].path],
            score=float(score[n]),
            p_value=float(p[n]),
            suspicious=bool(suspicious[n]),
            anomaly_map=None if maps is None else maps[n],
        )
        for n in np.lexsort((-score, ~suspicious))
    )


def unique_names(paths: Sequence[Path]) -> dict[Path, str]:
    """Shortest end of each path that fits no other path, with slashes."""
    names = {}
    counts = Counter("/".join(path.parts[-k:]) for path in paths for k in range(1, len(path.parts) + 1))
    for path in paths:
        ends = ["/".join(path.parts[-k:]) for k in range(1, len(path.parts))]
        names[path] = next((end for end in ends if counts[end] == 1), path.as_posix())
    return names


def _too_few(num: int) -> str:
    return f"{num} images of different parts are too few to tell odd images from good ones: give {MIN_IMAGES} or more"


def _test_fixed(values: NDArray[np.float64]) -> NullTest:
    """Test fixed values; the null is estimated again without the suspicious images until these stay the same."""
    suspicious: NDArray[np.bool_] = np.zeros(len(values), dtype=bool)
    for _ in range(MAX_ROUNDS):
        test = _test(values, null=skewed_null_of(values[~suspicious]))
        if (test.suspicious == suspicious).all() or test.suspicious.mean() > 0.5:
            break
        suspicious = test.suspicious
    return test


def rank_mutually(distances: MutualDistances) -> tuple[NullTest, NDArray[np.float32]]:
    """Test images by their distance to the images that are not suspicious.

    Args:
        distances: mutual distances of n images.

    Returns:
        The test of the logarithms of the scores, and the distance maps (n, h, w) in units of the limit.
    """
    suspicious: NDArray[np.bool_] = np.zeros(len(distances.distance), dtype=bool)
    for _ in range(MAX_ROUNDS):
        maps = distances.maps(without=np.flatnonzero(suspicious).tolist())
        maps /= np.sqrt(_usual_distance(maps[~suspicious]))
        values = np.log(np.maximum(_pooled(maps), 1e-12))
        test = _test(values, null=null_of(values[~suspicious]))
        if (test.suspicious == suspicious).all() or test.suspicious.mean() > 0.5:
            break
        suspicious = test.suspicious
    return test, maps * np.float32(np.exp(-test.limit))


def _usual_distance(maps: NDArray[np.float32]) -> NDArray[np.float32]:
    """Usual distance at each place, (h, w), from maps (n, h, w), most of them of good images.

    Median plus two deviations; the deviation is drawn towards its mean with the weight of `PRIOR_IMAGES` images.
    """
    num, centre = len(maps), np.median(maps, axis=0)
    deviation = 1.4826 * np.median(np.abs(maps - centre), axis=0)
    deviation = (num * deviation + PRIOR_IMAGES * deviation.mean()) / (num + PRIOR_IMAGES)
    smooth = gaussian_filter(centre + 2 * deviation, sigma=SMOOTH_CELLS, mode="nearest")
    usual: NDArray[np.float32] = np.maximum(smooth / max(float(smooth.mean()), 1e-12), 1e-3)
    return usual


def _pooled(maps: NDArray[np.float32]) -> NDArray[np.float64]:
    """Mean (n,) of the largest cells of maps (n, h, w), averaged over 3×3 cells."""
    cells = smoothed(torch.from_numpy(maps), window=3).flatten(1)
    largest = cells.topk(max(1, round(TOP * cells.shape[1])), dim=1).values
    pooled: NDArray[np.float64] = largest.mean(dim=1).double().numpy()
    return pooled


def _test(values: NDArray[np.float64], *, null: tuple[float, float]) -> NullTest:
    """Test values (n,) against a null with a centre and a spread."""
    centre, spread = null
    p = p_values(values, centre=centre, spread=spread)
    rejected = benjamini_hochberg(p, rate=FALSE_DISCOVERY_RATE)
    if rejected.any() and not rejected.all():
        limit = float(values[rejected].min() + values[~rejected].max()) / 2
    else:
        limit = value_at(FALSE_DISCOVERY_RATE / len(values), centre=centre, spread=spread)
    return NullTest(p, rejected, centre, limit)
