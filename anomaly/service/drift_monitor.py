"""Drift of the images of a served model against its calibration images, in bounded memory.

A conformal drift monitor stores 20 bytes per image, so an endless one would grow without limit. Each monitor therefore
ends after `WINDOW_LENGTH` images and a new one starts. Monitor j gets the share 1 / (j (j + 1)) of alpha, and the shares
sum to 1. By the union bound, the probability of any false alarm is at most alpha, however long the service runs.
"""

from __future__ import annotations

import threading
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from anomaly.conformal.drift import DriftMonitor
from anomaly.errors import ModelError
from anomaly.imaging.statistics import image_statistics
from anomaly.inference.artifact import Metadata
from anomaly.inference.scorer import OnnxScorer

ALPHA = 0.01
"""Probability of any false alarm during the life of one model file"""
WINDOW_LENGTH = 100_000
"""Images per conformal drift monitor: 2 MB"""


class WindowedDriftMonitor:
    """Consecutive conformal drift monitors over one model's images; an alarm stays until the model is loaded again.

    Args:
        metadata: metadata of the model; without image statistics there is no monitor.
        threshold: threshold of the verdict.
        window_length: images per conformal drift monitor.
    """

    def __init__(self, metadata: Metadata, *, threshold: float, window_length: int) -> None:
        self._metadata, self._threshold, self._window_length = metadata, threshold, window_length
        self._lock = threading.Lock()
        self._num_monitors = self._num_before = 0
        self._monitor: DriftMonitor | None = None
        self._disabled_reason = ""
        try:
            self._start_monitor()
        except ModelError as error:
            self._disabled_reason = str(error)

    def _start_monitor(self) -> None:
        self._num_monitors += 1
        self._num_in_window = 0
        stored, share = self._metadata, 1 / (self._num_monitors * (self._num_monitors + 1))
        self._monitor = DriftMonitor(
            stored.calibration.ranked(),
            stored.image_stats,
            threshold=self._threshold,
            alpha=ALPHA * share,
            seed=self._num_monitors,
        )
        self._is_alarmed = False

    def observe(self, image: NDArray[np.uint8], score: NDArray[np.float32]) -> None:
        """Add images (N, H, W, 3) uint8 RGB and their calibrated scores (N,); thread-safe."""
        if self._monitor is None:
            return
        for one, its_score in zip(image, score, strict=True):
            statistics = image_statistics(one)
            with self._lock:
                if self._num_in_window == self._window_length:
                    if self._is_alarmed:
                        return
                    self._num_before += self._num_in_window
                    self._start_monitor()
                self._num_in_window += 1
                self._is_alarmed |= bool(self._monitor.update(float(its_score), statistics))

    def state(self) -> dict[str, str | int]:
        """Report the drift.

        Returns:
            `drift`: `none`, `alarm` or `not watched`; `drift_cause`: its cause or ""; `drift_images`: images observed.
        """
        if self._monitor is None:
            return {"drift": "not watched", "drift_cause": self._disabled_reason, "drift_images": 0}
        with self._lock:
            cause = self._monitor.summary()["cause"] if self._is_alarmed else ""
            state = "alarm" if self._is_alarmed else "none"
            return {"drift": state, "drift_cause": cause, "drift_images": self._num_before + self._num_in_window}


class DriftMonitors:
    """One windowed drift monitor per scorer, deleted together with the scorer.

    Args:
        threshold: threshold of the verdict.
    """

    def __init__(self, *, threshold: float) -> None:
        self._threshold = threshold
        self._lock = threading.Lock()
        self._monitors: WeakKeyDictionary[OnnxScorer, WindowedDriftMonitor] = WeakKeyDictionary()

    def monitor_of(self, scorer: OnnxScorer) -> WindowedDriftMonitor:
        """Return the monitor of a scorer."""
        with self._lock:
            if scorer not in self._monitors:
                self._monitors[scorer] = WindowedDriftMonitor(
                    scorer.metadata, threshold=self._threshold, window_length=WINDOW_LENGTH
                )
            return self._monitors[scorer]
