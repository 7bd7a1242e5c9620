"""Raw scores of images that both train and calibrate.

The guarantee of each construction is that of `anomaly.conformal.guarantee`.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from anomaly.data.folders import Sample
from anomaly.detectors.base import Detector, RawScores
from anomaly.system.progress import progress_bar
from anomaly.training.construction import NUM_FOLDS
from anomaly.training.training_job import TrainingJob


@torch.no_grad()
def left_out_scores(
    detector: Detector,
    samples: Sequence[Sample],
    part_groups: Mapping[Path, str],
    *,
    read: Callable[[Sample], NDArray[np.uint8]],
) -> RawScores:
    """Score every training image without its own part group in the training set.

    Args:
        detector: fitted detector that supports leave-one-out.
        samples: all training images, ordered by path.
        part_groups: group of each image by its path.
        read: function that reads an image.
    """
    detector.eval()
    members = defaultdict(list)
    for number, sample in enumerate(samples):
        members[part_groups[sample.path]].append(number)
    score, peak = [], []
    with progress_bar("leave each image out") as report:
        for number, sample in enumerate(samples):
            x = detector.preprocess(torch.from_numpy(read(sample)[None]))
            raw = detector.anomaly_without(x, members[part_groups[sample.path]])
            score.append(float(raw.score[0]))
            peak.append(float(raw.anomaly_map.max()))
            report(number + 1, len(samples))
    return RawScores(np.array(score), np.array(peak))


def cross_scores(
    samples: Sequence[Sample],
    part_groups: Mapping[Path, str],
    *,
    job: TrainingJob,
) -> RawScores:
    """Score every image by a detector that was trained without the image's part of the images.

    The threshold is used with a detector that was trained on all images. No theorem covers this: the rate is near alpha
    if the scores hardly change with the training set.

    Args:
        samples: all good images.
        part_groups: group of each image by its path; a group stays in one part.
        job: detector to train, with the seed of the parts.
    """

    def key(group: str) -> bytes:
        return hashlib.sha256(f"{job.seed}:{group}".encode(errors="surrogateescape")).digest()

    ordered = sorted({part_groups[s.path] for s in samples}, key=key)
    fold = {group: n % NUM_FOLDS for n, group in enumerate(ordered)}
    found: dict[Path, tuple[float, float]] = {}
    for k in range(NUM_FOLDS):
        tested = [s for s in samples if fold[part_groups[s.path]] == k]
        raw = job.scores(job.fit([s for s in samples if fold[part_groups[s.path]] != k]), tested)
        found |= {s.path: (float(a), float(b)) for s, a, b in zip(tested, raw.score, raw.peak, strict=True)}
    return RawScores(*(np.array(values) for values in zip(*(found[s.path] for s in samples), strict=True)))
