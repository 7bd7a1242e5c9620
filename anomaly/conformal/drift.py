"""Watch a run for drift: do its scores and image statistics still come as those of the model's calibration images did?

Conformal test martingales: V. Vovk, A. Gammerman, G. Shafer, "Algorithmic Learning in a Random World", 2005, §7.1 (and
§4.5 for ranks within a category, here the accepted images); V. Vovk, "Testing Randomness Online", 2021, arXiv 1906.09256.
Switching between bets: M. Herbster, M. Warmuth, "Tracking the Best Expert", 1998.

    x_i      values of one stream in order, the calibration images' first
    u_n      conformal p-value of x_n: (#{i < n: x_i < x_n} + θ #{i <= n: x_i = x_n}) / n, θ uniform on [0, 1]
    f_e      a bet: a density on [0, 1], of the Beta family; f_0 = 1 bets nothing
    M_n      capital after n images; it begins at 1

If the images come in exchangeable order the u_n are independent and uniform, whatever the scores' distribution and with
any ties, so M is a martingale and P(sup M >= 1/alpha) <= alpha: Ville's inequality, for the run as a whole, however long.
Ranks against the calibration images alone would share their luck for the whole run, and have no such bound. The streams
share alpha (Bonferroni): a mean of their capitals would be no martingale, each having a past of its own.
"""

from __future__ import annotations

import math
import struct
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly.conformal.beta_distribution import beta_cdf, beta_quantile
from anomaly.errors import DataError, ModelError, UsageError

STATISTICS = ("brightness", "contrast", "sharpness", "colour")
STREAMS = ("score", "accepted", *STATISTICS)
"""`accepted` ranks the scores below the threshold among themselves, which a changed rate of defects leaves as they were"""
RECORD = struct.Struct("<5f")
"""What is kept of an image: score and the four statistics, NaN for an image that has none"""

_SINGLE, _BITS = struct.Struct("<f"), struct.Struct("<i")

BETS = np.array(
    [(1, 1), (1, 0.8), (1.5, 0.7), (2, 0.4), (1, 0.15), (0.8, 1), (0.7, 1.5), (0.4, 2), (0.15, 1), (0.5, 0.5), (3, 3)]
)
"""Shapes (a, b) of the bets: none; higher, from slightly to far; lower; both tails; the middle"""
SWITCH = 0.01
"""Share of the capital at bet that moves to the other bets before each image"""
PATIENCE = 50
"""The capital not at bet falls as PATIENCE / (PATIENCE + n), so that late drift is still met with capital"""
EDGE = 1e-12
"""P-values nearer to 0 or 1 count as this: a capital can only lose by it"""
BEFORE, WINDOW = 8, 256
"""Images that tell the cause: this many up to the first alarm, and in all, with those after it"""
FIRST_LOOK = 32
"""Images after which means are first compared; then after twice as many, and so on"""
CONFIDENCE = 0.95
WORDS = {
    "brightness": ("darker", "brighter"),
    "contrast": ("less contrast", "more contrast"),
    "sharpness": ("blurred", "sharper or noisier"),
    "colour": ("colour cast (less colour)", "colour cast (more colour)"),
}
TOGETHER = {
    ("blurred", "less contrast"): "blurred",
    ("sharper or noisier", "colour cast (more colour)"): "noisier",
}
"""What one cause changes at once: blur takes contrast with it, and noise spreads the channels"""


def cell_of(value: float) -> int:
    """Place of a value among 2^20 cells in order of size: the upper 20 bits of its single precision, 0.05 % apart."""
    bits: int = _BITS.unpack(_SINGLE.pack(value))[0]
    return ((bits if bits >= 0 else -(bits & 0x7FFFFFFF)) >> 12) + 2**19


class Ranks:
    """How many values lie in each cell, of which new ones are told their place; its memory does not grow with them.

    Cells that no value decides keep exchangeable values exchangeable, and values of one cell are ties.

    Args:
        values: the first ones.
    """

    def __init__(self, values: Sequence[float]) -> None:
        self._num = np.zeros((1024, 1024), dtype=np.uint32)  # pages that no value meets take no memory
        self._num_of_row: NDArray[np.int64] = np.zeros(1024, dtype=np.int64)
        self._total = 0
        for value in values:
            self.add(value)

    def __len__(self) -> int:
        return self._total

    def add(self, value: float) -> tuple[int, int]:
        """Add a value; gives how many of the earlier ones lie in cells below its own and how many in its own."""
        row, column = divmod(cell_of(value), 1024)
        below = int(self._num_of_row[:row].sum()) + int(self._num[row, :column].sum())
        equal = int(self._num[row, column])
        self._num[row, column] += 1
        self._num_of_row[row] += 1
        self._total += 1
        return below, equal


class Bets:
    """Capitals that bet against the uniform distribution, one for each stream.

    Args:
        num_streams: s.
    """

    def __init__(self, num_streams: int) -> None:
        a, b = BETS[:, 0], BETS[:, 1]
        self._powers = np.stack([a - 1, b - 1])
        self._log_norm = np.array([math.lgamma(p + q) - math.lgamma(p) - math.lgamma(q) for p, q in BETS])
        active = len(BETS) - 1
        self._share = np.full((num_streams, len(BETS)), 0.5 / active)
        self._share[:, 0] = 0.5
        self._num = 0
        self.log_capital: NDArray[np.float64] = np.zeros(num_streams)

    def bet(self, u: NDArray[np.float64]) -> None:
        """Bet, then see the p-values (s,) in [0, 1]; NaN where a stream has none this time."""
        self._num += 1
        share = self._share
        # prior over sequences of bets: a Markov chain, independent of the p-value that is to come
        moved = share[:, 0] / (PATIENCE + self._num) + SWITCH * share[:, 1:].sum(axis=1)
        share[:, 0] *= 1 - 1 / (PATIENCE + self._num)
        share[:, 1:] *= 1 - SWITCH
        share[:, 1:] += moved[:, None] / (len(BETS) - 1)
        inside = np.minimum(np.maximum(u, EDGE), 1 - EDGE)
        logs = np.stack([np.log(inside), np.log1p(-inside)], axis=1)
        gain = np.exp(logs @ self._powers + self._log_norm)
        gain[np.isnan(u)] = 1
        share *= gain
        total = share.sum(axis=1)
        share /= total[:, None]
        self.log_capital += np.log(total)


class DriftWatch:
    """Rank every image of a run among the calibration images and all earlier ones, and tell when the order is no chance.

    The same images in the same order with the same seed give the same summary, also through `replay`. Its memory does not
    grow with them. A statistic with `values` in the metadata is ranked as the score is. One of which only mean and deviation
    are kept is ranked among the run's own images, exactly, and its mean is compared with the calibration images' after 32,
    64, 128 … images by Student's test with pooled variance, the j-th look at its share / (j (j + 1)): this half of its
    alpha holds as far as means of so many images are normal.

    Args:
        scores: (n,) calibrated scores of the calibration images.
        image_stats: of the model's metadata: `brightness`, `contrast`, `sharpness`, `colour`, each with `mean`, `deviation`
            and, where kept, `values` (n,).
        threshold: of the verdict.
        alpha: probability of a false alarm over the whole run, all streams together.
        seed: of the ties.

    Raises:
        UsageError: alpha outside (0, 1).
        ModelError: metadata that lack a statistic.
    """

    def __init__(
        self,
        scores: Sequence[float],
        image_stats: Mapping[str, Mapping[str, Any]],
        *,
        threshold: float,
        alpha: float,
        seed: int,
    ) -> None:
        if not 0 < alpha < 1:
            raise UsageError(
                f"alpha {alpha} is no probability of a false alarm: give a number between 0 and 1, e.g. 0.01"
            )
        if missing := [name for name in STATISTICS if name not in image_stats]:
            raise ModelError(f"the model's image statistics lack {', '.join(missing)}: calibrate it again")
        self._threshold, self._alpha = threshold, alpha
        calibration_images = np.asarray(scores, dtype=np.float32)
        self._num_scores = len(calibration_images)
        self._num_calibration_above = int((calibration_images > threshold).sum())
        kept = [image_stats[name].get("values", ()) for name in STATISTICS]
        first = [calibration_images.tolist(), *(np.asarray(v, dtype=np.float32).tolist() for v in kept)]
        self._ranks = [Ranks(values) for values in first]
        # the threshold is itself a calibration score: only below the highest accepted one are both alike by chance alone
        self._accepted_below = cell_of(calibration_images[calibration_images <= threshold].max(initial=-math.inf))
        self._num_accepted = sum(cell_of(score) < self._accepted_below for score in calibration_images)
        self._num_calibration = [len(calibration_images), self._num_accepted, *map(len, kept)]
        self._compares = np.array([not len(values) for values in kept])
        shares = np.full(len(STREAMS), alpha / len(STREAMS))
        shares[2:][self._compares] /= 2
        self._shares = shares
        self._bets = Bets(len(STREAMS))
        self._maximum: NDArray[np.float64] = np.zeros(len(STREAMS))
        self._rng = np.random.default_rng(seed)
        self._typical = np.array([np.median(calibration_images), *(image_stats[name]["mean"] for name in STATISTICS)])
        spread = np.array([calibration_images.std(), *(image_stats[name]["deviation"] for name in STATISTICS)])
        self._spread = np.maximum(spread, np.maximum(0.01, 0.001 * np.abs(self._typical)))  # identical images
        self._sums: NDArray[np.float64] = np.zeros((2, len(STATISTICS)))
        self._num = self._num_scored = self._num_above = 0
        self._alarms: dict[str, int] = {}
        self._recent: deque[tuple[float, ...]] = deque(maxlen=BEFORE)
        self._window: list[tuple[float, ...]] = []

    def update(self, score: float | None, statistics: Mapping[str, float] | None) -> tuple[str, ...]:
        """Take the next row of the run.

        Args:
            score: calibrated; None or NaN for a row that was not scored, which counts in the numbering alone.
            statistics: of the image, see `image_statistics`; None or NaN likewise.

        Returns:
            The streams that alarm at this image for the first time.
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
            if not at and accepted:  # all that lies below it was accepted too
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
        """The statistics whose mean over the run is not the calibration images', by two-sided tests."""
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
        """Take the rows (n, 5) of `read_records`, as `update` took them."""
        for score, *statistics in records.tolist():
            self.update(score, dict(zip(STATISTICS, statistics, strict=True)))

    def summary(self) -> dict[str, Any]:
        """Tell what was seen so far, as JSON values; images are numbered from 0, rows without a score included."""
        names = [*STREAMS, *(f"mean {name}" for name, is_one in zip(STATISTICS, self._compares, strict=True) if is_one)]
        rejects = self._rejects()
        moved = self._moved(np.array(self._window)) if self._window else None
        named = _named(np.array(self._window), self._typical, self._spread, self._num_scores) if moved else []
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
            "alarms": {name: self._alarms[name] for name in names if name in self._alarms},
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
        """Medians of the score and means of the statistics since the alarm against the calibration images', in deviations."""
        centre = np.array([np.median(window[:, 0]), *window[:, 1:].mean(axis=0)])
        away = (centre - self._typical) / self._spread
        return {name: round(float(v), 2) for name, v in zip(("score", *STATISTICS), away, strict=True)}

    def _rejects(self) -> dict[str, Any]:
        n, k = self._num_scores, 1 + self._num_calibration_above
        m, x = self._num_scored, self._num_above
        bound = beta_quantile(CONFIDENCE, k, n + 1 - k) if k <= n else 1.0
        low = beta_quantile((1 - CONFIDENCE) / 2, x, m + 1 - x) if x else 0.0
        high = beta_quantile((1 + CONFIDENCE) / 2, x + 1, m - x) if x < m else 1.0
        return {
            "num": x,
            "rate": round(x / m, 6) if m else None,
            "interval": [round(low, 6), round(high, 6)],
            "expected": round(k / (n + 1), 6),
            "bound": round(bound, 6),
            "changed": low > bound,
        }

    def _cause(self, named: list[str], rejects: Mapping[str, Any], *, explained: bool) -> str:
        rate = f"{rejects['rate']:.2%} of the images are above the threshold, {rejects['bound']:.2%} at most were guaranteed"
        if named:
            text = f"the images against those of calibration: {', '.join(named)}"
            return f"{text}; {rate}" if rejects["changed"] else text
        if explained:
            return f"{rate}, the accepted ones score as before and the image statistics did not move: more defects"
        if {"score", "accepted"} & set(self._alarms):
            text = "the score moved, the image statistics did not: a shifted or turned part, other material, or more defects"
            return f"{text}; {rate}" if rejects["changed"] else text
        changed = ", ".join(name for name in self._alarms)
        return f"{changed} changed by little: it lies near the calibration images' but does not come in random order"

    def _guarantee(self) -> str:
        text = (
            f"if the calibration images and the run's come in exchangeable order, the probability of any alarm in the whole"
            f" run is at most {self._alpha:g}, however long it is"
        )
        if self._compares.any():
            text += "; of this the part of the compared means holds as far as means of 32 and more images are normal"
        return (
            text
            + ". An alarm tells that the images changed, or their order is none of chance, not that scores are wrong"
        )


def _named(
    window: NDArray[np.float64], typical: NDArray[np.float64], spread: NDArray[np.float64], num_calibration: int
) -> list[str]:
    """Name how images (n, 5) differ from the calibration images, the largest change first.

    A change counts as far as those before it do not bring it about: gain scales brightness, contrast and colour alike, and
    the variance of the Laplacian goes with the square of the contrast.
    """
    floor = max(0.5, 4 * math.sqrt(1 / num_calibration + 1 / len(window)))
    now, before, unit = window.mean(axis=0)[1:], typical[1:], spread[1:]
    gain, spreads = (now[:2] / np.maximum(before[:2], 1e-6)).tolist()
    explained = {"brightness": (), "contrast": (gain,), "sharpness": (spreads**2,), "colour": (gain, spreads)}
    found = []
    for at, name in enumerate(STATISTICS):
        away = [(now[at] - before[at] * factor) / unit[at] for factor in (1.0, *explained[name])]
        size = min(map(abs, away))
        if size >= floor and len({a > 0 for a in away}) == 1:
            found.append((size, WORDS[name][int(away[0] > 0)]))
    words = [word for _, word in sorted(found, reverse=True)]
    for pair, one in TOGETHER.items():
        if set(pair) <= set(words):
            words = [one, *(word for word in words if word not in pair)]
    return words


def to_record(score: float | None, statistics: Mapping[str, float] | None) -> bytes:
    """Give the 20 bytes that are kept of a row: little-endian single precision, NaN where there is nothing."""
    if score is None or statistics is None:
        return RECORD.pack(*[math.nan] * 5)
    return RECORD.pack(score, *[statistics[name] for name in STATISTICS])


def read_records(path: Path, *, num: int) -> NDArray[np.float32]:
    """Read the first `num` records, (num, 5); what lies beyond them is ignored.

    Raises:
        DataError: fewer are there.
    """
    values = np.fromfile(path, dtype="<f4", count=5 * num)
    if len(values) < 5 * num:
        raise DataError(f"{path} holds {len(values) // 5} of {num} records: it was cut; score again into a new folder")
    return values.reshape(num, 5)
