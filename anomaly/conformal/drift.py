"""The drift monitor: compare the scores and image statistics of a run with those of the calibration images.

Each stream of values has a conformal test martingale, see `anomaly.conformal.martingale`. Ranks within the accepted images:
V. Vovk, A. Gammerman, G. Shafer, "Algorithmic Learning in a Random World", 2005, §4.5. The streams share alpha (Bonferroni):
each stream has a separate past, so the mean of their capitals would not be a martingale.
"""

from __future__ import annotations

import math
import struct
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly.conformal.beta_distribution import beta_cdf, beta_quantile
from anomaly.conformal.calibration import CalibrationScores
from anomaly.conformal.martingale import Bets, Ranks, cell_of
from anomaly.errors import DataError, ModelError, UsageError

STATISTICS = ("brightness", "contrast", "sharpness", "colour")
STREAMS = ("score", "accepted", *STATISTICS)
"""`accepted` ranks only the scores below the threshold; a changed rate of defects does not affect it"""
RECORD = struct.Struct("<5f")
"""Record of an image: score and the four statistics, all NaN for an image without a score"""
BEFORE, WINDOW = 8, 256
"""Images that decide the cause: BEFORE images up to the first alarm, WINDOW images in total"""
FIRST_LOOK = 32
"""Number of images at the first comparison of means; later comparisons follow at each doubling"""
CONFIDENCE = 0.95
WORDS = {
    "brightness": ("darker", "brighter"),
    "contrast": ("less contrast", "more contrast"),
    "sharpness": ("blurred", "sharper or noisier"),
    "colour": ("colour cast (less colour)", "colour cast (more colour)"),
}
"""Statistic -> words for a lower and for a higher value"""
TOGETHER = {
    ("blurred", "less contrast"): "blurred",
    ("sharper or noisier", "colour cast (more colour)"): "noisier",
}
"""Changes with one common cause: blur lowers the contrast, and noise spreads the channels"""


class DriftMonitor:
    """Ranks every image of a run among the calibration images and all earlier images, and raises alarms.

    The same images in the same order with the same seed give the same summary, also through `replay`. The memory does not
    grow with the images.

    A statistic with `values` in the metadata is ranked like the score. A statistic with only mean and deviation is ranked
    exactly among the run's own images. After 32, 64, 128 … images its mean is also compared with the calibration images'
    mean. The comparison is Student's test with pooled variance. The j-th comparison has its share / (j (j + 1)) of alpha.
    This half of the stream's alpha assumes that the means of so many images are normal.

    Args:
        calibration: scores of the calibration images.
        image_stats: statistics in the model's metadata: `brightness`, `contrast`, `sharpness` and `colour`, each with `mean`,
            `deviation` and, if stored, `values` (n,).
        threshold: threshold of the verdict in calibrated units.
        alpha: probability of a false alarm over the whole run, for all streams together, in (0, 1).
        seed: seed of the random order of ties.

    Raises:
        UsageError: alpha is outside (0, 1).
        ModelError: a statistic is missing in the metadata.
    """

    def __init__(
        self,
        calibration: CalibrationScores,
        image_stats: Mapping[str, Mapping[str, Any]],
        *,
        threshold: float,
        alpha: float,
        seed: int,
    ) -> None:
        if not 0 < alpha < 1:
            raise UsageError(
                f"alpha {alpha} is not a probability of a false alarm: give a number between 0 and 1, e.g. 0.01"
            )
        if missing := [name for name in STATISTICS if name not in image_stats]:
            raise ModelError(f"the model's image statistics {', '.join(missing)} are missing: calibrate it again")
        self._threshold, self._alpha = threshold, alpha
        self._calibration = calibration
        calibration_scores = calibration.scores.astype(np.float32)
        self._num_scores = len(calibration_scores)
        self._num_calibration_above = int((calibration_scores > threshold).sum())
        kept = [image_stats[name].get("values", ()) for name in STATISTICS]
        first = [calibration_scores.tolist(), *(np.asarray(v, dtype=np.float32).tolist() for v in kept)]
        self._ranks = [Ranks(values) for values in first]
        # the threshold is itself a calibration score: only scores below the highest accepted score are exchangeable
        self._accepted_below = cell_of(calibration_scores[calibration_scores <= threshold].max(initial=-math.inf))
        self._num_accepted = sum(cell_of(score) < self._accepted_below for score in calibration_scores)
        self._num_calibration = [len(calibration_scores), self._num_accepted, *map(len, kept)]
        self._compares = np.array([not len(values) for values in kept])
        shares = np.full(len(STREAMS), alpha / len(STREAMS))
        shares[2:][self._compares] /= 2
        self._shares = shares
        self._bets = Bets(len(STREAMS))
        self._maximum: NDArray[np.float64] = np.zeros(len(STREAMS))
        self._rng = np.random.default_rng(seed)
        self._typical = np.array([np.median(calibration_scores), *(image_stats[name]["mean"] for name in STATISTICS)])
        spread = np.array([calibration_scores.std(), *(image_stats[name]["deviation"] for name in STATISTICS)])
        self._spread = np.maximum(spread, np.maximum(0.01, 0.001 * np.abs(self._typical)))  # for identical images
        self._sums: NDArray[np.float64] = np.zeros((2, len(STATISTICS)))
        self._num = self._num_scored = self._num_above = 0
        self._alarms: dict[str, int] = {}
        self._recent: deque[tuple[float, ...]] = deque(maxlen=BEFORE)
        self._window: list[tuple[float, ...]] = []

    def update(self, score: float | None, statistics: Mapping[str, float] | None) -> tuple[str, ...]:
        """Add the next row of the run. A row without a score only counts in the numbering of images.

        Args:
            score: calibrated score; None or NaN for a row without a score.
            statistics: statistics of the image, see `image_statistics`; None or NaN for a row without a score.

        Returns:
            Names of the streams with their first alarm at this image.
        """
        number, self._num = self._num, self._num + 1
        values = RECORD.unpack(to_record(score, statistics))
        if any(map(math.isnan, values)):
            return ()
        self._num_scored += 1
        self._num_above += values[0] > self._threshold
        accepted = cell_of(values[0]) < self._accepted_below
        theta = self._rng.random(len(STREAMS)).tolist()
        u = [math.nan] * len(STREAMS)
        for at, (value, ranks) in enumerate(zip(values, self._ranks, strict=True)):
            stream = at and at + 1
            below, equal = ranks.add(value)
            u[stream] = (below + theta[stream] * (equal + 1)) / len(ranks)
            if not at and accepted:  # all lower scores were accepted too
                self._num_accepted += 1
                u[1] = (below + theta[1] * (equal + 1)) / self._num_accepted
        self._bets.bet(np.array(u))
        np.maximum(self._maximum, self._bets.log_capital, out=self._maximum)
        away = np.array(values[1:]) - self._typical[1:]
        self._sums += away, away * away
        over = [STREAMS[n] for n in np.flatnonzero(self._bets.log_capital >= -np.log(self._shares))]
        looks, rest = divmod(self._num_scored, FIRST_LOOK)
        if not rest and looks & (looks - 1) == 0:
            over += self._compare_means(looks.bit_length())
        self._recent.append(values)
        if not self._alarms and over:
            self._window = list(self._recent)
        elif self._alarms and len(self._window) < WINDOW:
            self._window.append(values)
        new = tuple(name for name in over if name not in self._alarms)
        self._alarms.update(dict.fromkeys(new, number))
        return new

    def _compare_means(self, look: int) -> list[str]:
        """Find the statistics whose means differ from those of the calibration images, by two-sided tests."""
        n, m = self._num_scores, self._num_scored
        total, squares = self._sums
        variance = (n * self._spread[1:] ** 2 + squares - total**2 / m) / (n + m - 2)
        t_squared = (total / m) ** 2 / (variance * (1 / n + 1 / m))
        freedom = n + m - 2
        found = []
        for at in np.flatnonzero(self._compares):
            p_value = beta_cdf(freedom / (freedom + float(t_squared[at])), freedom / 2, 0.5)
            if p_value <= self._shares[2 + at] / (look * (look + 1)):
                found.append(f"mean {STATISTICS[at]}")
        return found

    def replay(self, records: NDArray[np.float32]) -> None:
        """Add the rows (n, 5) of `read_records` again, as `update` did."""
        for score, *statistics in records.tolist():
            self.update(score, dict(zip(STATISTICS, statistics, strict=True)))

    def summary(self) -> dict[str, Any]:
        """Summarise the run so far, as JSON values. Image numbers begin at 0 and include rows without a score."""
        compared = [f"mean {STATISTICS[n]}" for n in np.flatnonzero(self._compares)]
        rejects = self._rejects()
        moved = self._moved(np.array(self._window)) if self._window else None
        named = _differences(np.array(self._window), self._typical, self._spread, self._num_scores) if moved else []
        explained = bool(
            moved
            and not named
            and rejects["changed"]
            and "score" in self._alarms
            and not set(self._alarms) - {"score"}
            and np.mean([values[0] <= self._threshold for values in self._window]) >= 0.5
        )
        return {
            "alarmed": bool(self._alarms),
            "alpha": self._alpha,
            "num_images": self._num,
            "num_scored": self._num_scored,
            "first_alarm": min(self._alarms.values(), default=None),
            "alarms": {name: self._alarms[name] for name in (*STREAMS, *compared) if name in self._alarms},
            "cause": self._cause(named, rejects, explained=explained) if self._alarms else "",
            "explained_by_reject_rate": explained,
            "moved_by_deviations": moved,
            "rejects": rejects,
            "streams": {
                name: {
                    "log10_martingale": round(float(self._bets.log_capital[n]) / math.log(10), 3),
                    "log10_maximum": round(float(self._maximum[n]) / math.log(10), 3),
                    "log10_threshold": round(-math.log10(self._shares[n]), 3),
                    "num_calibration": self._num_calibration[n],
                }
                for n, name in enumerate(STREAMS)
            },
            "guarantee": self._guarantee(),
        }

    def _moved(self, window: NDArray[np.float64]) -> dict[str, float]:
        """Compare the median score and mean statistics since the alarm with the calibration images, in deviations."""
        centre = np.array([np.median(window[:, 0]), *window[:, 1:].mean(axis=0)])
        away = (centre - self._typical) / self._spread
        return {name: round(float(v), 2) for name, v in zip(("score", *STATISTICS), away, strict=True)}

    def _rejects(self) -> dict[str, Any]:
        # an image above the threshold counts as a whole part group: see the bound in `anomaly.conformal.calibration`
        groups, k = self._calibration.num_groups, 1 + self._num_calibration_above
        m, x = self._num_scored, self._num_above
        bound = beta_quantile(CONFIDENCE, k, groups + 1 - k) if k <= groups else 1.0
        low = beta_quantile((1 - CONFIDENCE) / 2, x, m + 1 - x) if x else 0.0
        high = beta_quantile((1 + CONFIDENCE) / 2, x + 1, m - x) if x < m else 1.0
        return {
            "num": x,
            "rate": round(x / m, 6) if m else None,
            "interval": [round(low, 6), round(high, 6)],
            "expected": round(self._calibration.expected_rate_above(self._threshold), 6),
            "bound": round(bound, 6),
            "changed": low > bound,
        }

    def _cause(self, named: list[str], rejects: Mapping[str, Any], *, explained: bool) -> str:
        rate = f"{rejects['rate']:.2%} of the images are above the threshold; {self._rate_text(rejects)}"
        if named:
            text = f"compared with the calibration images: {', '.join(named)}"
            return f"{text}; {rate}" if rejects["changed"] else text
        if explained:
            return f"{rate}; accepted images score as before and the image statistics did not change: more defects"
        if {"score", "accepted"} & set(self._alarms):
            text = (
                "the scores changed, the image statistics did not:"
                " a shifted or rotated part, another material, or more defects"
            )
            return f"{text}; {rate}" if rejects["changed"] else text
        changed = ", ".join(self._alarms)
        return (
            f"{changed}: a slight change; the values are near those of the calibration images, but not in random order"
        )

    def _rate_text(self, rejects: Mapping[str, Any]) -> str:
        if self._calibration.construction == "split" and self._calibration.exact:
            return f"the guarantee is at most {rejects['bound']:.2%}"
        return f"{rejects['expected']:.2%} are expected"

    def _guarantee(self) -> str:
        text = (
            "If the images of calibration and run are in exchangeable order,"
            f" the probability of any alarm is at most {self._alpha:g}. This holds for a run of any length."
        )
        if self._calibration.construction != "split":
            text += " Calibration scores of training images make this probability approximate."
        if self._compares.any():
            text += " The comparison of means assumes that means of 32 or more images are normal."
        return (
            f"{text} An alarm shows that the images changed or did not arrive in random order."
            " It does not show that scores are wrong."
        )


def _differences(
    window: NDArray[np.float64], typical: NDArray[np.float64], spread: NDArray[np.float64], num_calibration: int
) -> list[str]:
    """Name the differences of images from the calibration images, the largest first.

    A change counts only if the changes before it do not explain it. A gain scales brightness, contrast and colour alike. The
    variance of the Laplacian grows with the square of the contrast.

    Args:
        window: (m, 5) records of the images.
        typical: (5,) median score and mean statistics of the calibration images.
        spread: (5,) deviations of the calibration images.
        num_calibration: number of calibration images.
    """
    floor = max(0.5, 4 * math.sqrt(1 / num_calibration + 1 / len(window)))
    now, before, deviation = window.mean(axis=0)[1:], typical[1:], spread[1:]
    gain, spreads = (now[:2] / np.maximum(before[:2], 1e-6)).tolist()
    explained = {"brightness": (), "contrast": (gain,), "sharpness": (spreads**2,), "colour": (gain, spreads)}
    found = []
    for at, name in enumerate(STATISTICS):
        away = [(now[at] - before[at] * factor) / deviation[at] for factor in (1.0, *explained[name])]
        size = min(map(abs, away))
        if size >= floor and len({a > 0 for a in away}) == 1:
            found.append((size, WORDS[name][int(away[0] > 0)]))
    words = [word for _, word in sorted(found, reverse=True)]
    for pair, one in TOGETHER.items():
        if set(pair) <= set(words):
            words = [one, *(word for word in words if word not in pair)]
    return words


def to_record(score: float | None, statistics: Mapping[str, float] | None) -> bytes:
    """Pack a row into 20 bytes: little-endian single precision, all NaN for a row without a score."""
    if score is None or statistics is None:
        return RECORD.pack(*[math.nan] * 5)
    return RECORD.pack(score, *[statistics[name] for name in STATISTICS])


def read_records(path: str | Path, *, num: int) -> NDArray[np.float32]:
    """Read the first records of a file and ignore the rest.

    Args:
        path: file of records.
        num: number of records to read.

    Returns:
        (num, 5) float32.

    Raises:
        DataError: the file holds fewer records.
    """
    values = np.fromfile(path, dtype="<f4", count=5 * num)
    if len(values) < 5 * num:
        raise DataError(
            f"{path} holds {len(values) // 5} of {num} records: the file was cut; score the images again into a new folder"
        )
    return values.reshape(num, 5)
