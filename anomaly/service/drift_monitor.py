"""Whether the images that a served model is asked about still come as its calibration images did, in memory that is bounded.

A watch keeps 20 bytes an image, so one that ran for ever would grow for ever. Here it ends after `STRETCH` images and a new
one begins, the j-th with the share 1 / (j (j + 1)) of alpha: the shares sum to 1, so the probability of any false alarm is at
most alpha however long the service runs, by the union bound over watches that each keep theirs.
"""

from __future__ import annotations

import threading
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from anomaly.conformal.drift import DriftWatch
from anomaly.errors import ModelError
from anomaly.imaging.statistics import image_statistics
from anomaly.inference.artifact import Metadata
from anomaly.inference.scorer import OnnxScorer

ALPHA = 0.01
"""Probability of a false alarm, ever, for one file of a model"""
STRETCH = 100_000
"""Images of one watch: 2 MB"""


class Drift:
    """The watches over the images of one model; an alarm stays until the file is replaced or the service started anew.

    Args:
        metadata: of the model; one whose file holds no image statistics is not watched.
        threshold: of the verdict.
        stretch: images of one watch.
    """

    def __init__(self, metadata: Metadata, *, threshold: float, stretch: int) -> None:
        self._metadata, self._threshold, self._stretch = metadata, threshold, stretch
        self._lock = threading.Lock()
        self._num_watches = self._num_before = 0
        self._watch: DriftWatch | None = None
        self._obstacle = ""
        try:
            self._begin()
        except ModelError as error:
            self._obstacle = str(error)

    def _begin(self) -> None:
        self._num_watches += 1
        self._num_here = 0
        stored, share = self._metadata, 1 / (self._num_watches * (self._num_watches + 1))
        self._watch = DriftWatch(
            stored.calibration.scores,
            stored.image_stats,
            threshold=self._threshold,
            alpha=ALPHA * share,
            seed=self._num_watches,
        )
        self._is_alarmed = False

    def observe(self, image: NDArray[np.uint8], score: NDArray[np.float32]) -> None:
        """Look at images (n, H, W, 3) uint8 RGB and their calibrated scores (n,); called from any thread."""
        if self._watch is None:
            return
        for one, its_score in zip(image, score, strict=True):
            statistics = image_statistics(one)
            with self._lock:
                if self._num_here == self._stretch:
                    if self._is_alarmed:
                        return
                    self._num_before += self._num_here
                    self._begin()
                self._num_here += 1
                self._is_alarmed |= bool(self._watch.update(float(its_score), statistics))

    def state(self) -> dict[str, str | int]:
        """Tell what was seen: `drift` is `none`, `alarm` or `not watched`, `drift_cause` why, `drift_images` in how many."""
        if self._watch is None:
            return {"drift": "not watched", "drift_cause": self._obstacle, "drift_images": 0}
        with self._lock:
            cause = self._watch.summary()["cause"] if self._is_alarmed else ""
            state = "alarm" if self._is_alarmed else "none"
            return {"drift": state, "drift_cause": cause, "drift_images": self._num_before + self._num_here}


class Drifts:
    """The drift of each scorer, which goes when the scorer goes.

    Args:
        threshold: of the verdict.
    """

    def __init__(self, *, threshold: float) -> None:
        self._threshold = threshold
        self._lock = threading.Lock()
        self._of: WeakKeyDictionary[OnnxScorer, Drift] = WeakKeyDictionary()

    def of(self, scorer: OnnxScorer) -> Drift:
        """Give the drift of a scorer."""
        with self._lock:
            if scorer not in self._of:
                self._of[scorer] = Drift(scorer.metadata, threshold=self._threshold, stretch=STRETCH)
            return self._of[scorer]
