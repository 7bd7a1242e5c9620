"""The drift monitor: false alarms on runs without drift, and delay of the alarm on nine corruptions.

    python -m benchmarks.drift_monitor --out benchmarks/results/drift_monitor.json

Runs without drift are drawn scores and statistics in random order. Corruptions are applied to images of synthetic parts.
Each repetition deals the images into calibration images, a clean beginning and a corrupted rest. Without `--model` a simple
score takes its place: the distance of a 24 × 24 thumbnail from the mean thumbnail, in standard deviations per pixel.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from anomaly.conformal.calibration import CalibrationScores
from anomaly.conformal.drift import STATISTICS, DriftMonitor
from anomaly.conformal.guarantee import tightest_alpha
from anomaly.conformal.martingale import Bets, Ranks
from anomaly.conformal.scale import fit_scale
from anomaly.data.synthetic import make_part
from anomaly.imaging.statistics import image_statistics, summarise
from anomaly.inference.scorer import OnnxScorer
from anomaly.system.run_card import RunCard

Image = NDArray[np.uint8]
Floats = NDArray[np.float64]
ALPHA = 0.01
SIZE = 256
NUM_CLEAN = 200
"""Clean images before the corruption, in runs with a clean beginning"""
NUM_PARTS = 500
NUM_TEMPLATE = 60
"""Parts for fitting the simple score, used for nothing else"""


def scaled(image: NDArray[Any]) -> Image:
    """Round and clip to grey levels."""
    return np.asarray(np.clip(np.rint(image), 0, 255), dtype=np.uint8)


def rotated(image: Image, *, degrees: float) -> Image:
    """Rotate about the centre, with a mirrored border."""
    half = image.shape[1] / 2, image.shape[0] / 2
    matrix = cv2.getRotationMatrix2D(half, degrees, 1)
    out = cv2.warpAffine(image, matrix, image.shape[1::-1], flags=cv2.INTER_LANCZOS4, borderMode=cv2.BORDER_REFLECT)
    return np.asarray(out, dtype=np.uint8)


def recompressed(image: Image, *, quality: int) -> Image:
    """Compress and decode as JPEG."""
    data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), dtype=np.uint8)


def noisy(image: Image, *, deviation: float, rng: np.random.Generator) -> Image:
    """Add independent normal noise to every value."""
    return scaled(image + rng.normal(0, deviation, image.shape))


CORRUPTIONS: dict[str, tuple[str, Callable[[Image, int, np.random.Generator], Image]]] = {
    "darker": ("×0.92 | ×0.80", lambda i, s, rng: scaled(i * (1.0, 0.92, 0.80)[s])),
    "brighter": ("×1.08 | ×1.20", lambda i, s, rng: scaled(i * (1.0, 1.08, 1.20)[s])),
    "blurred": (
        "sigma 0.7 | 1.5 px",
        lambda i, s, rng: np.asarray(cv2.GaussianBlur(i, (0, 0), (0, 0.7, 1.5)[s]), dtype=np.uint8),
    ),
    "noise": ("sigma 4 | 10", lambda i, s, rng: noisy(i, deviation=(0, 4, 10)[s], rng=rng)),
    "contrast loss": ("×0.9 | ×0.7", lambda i, s, rng: scaled(i.mean() + (i - i.mean()) * (1.0, 0.9, 0.7)[s])),
    "colour cast": ("red ×1.05, blue ×0.95 | 1.15, 0.85",
                    lambda i, s, rng: scaled(i * np.array((1 + (0, 0.05, 0.15)[s], 1.0, 1 - (0, 0.05, 0.15)[s])))),
    "shifted": ("4 | 12 px", lambda i, s, rng: np.roll(i, ((0, 4, 12)[s], (0, 4, 12)[s]), axis=(0, 1))),
    "rotated": ("2° | 6°", lambda i, s, rng: rotated(i, degrees=(0, 2, 6)[s])),
    "JPEG": ("quality 40 | 10", lambda i, s, rng: recompressed(i, quality=(100, 40, 10)[s])),
}  # fmt: skip
"""Name -> its strengths (slight | strong), and its function of strength 1 or 2"""


def alarms_of_scores(*, num_calibration: int, num_runs: int, length: int, ties: bool, is_fixed: bool) -> dict[str, Any]:
    """Measure the share of score streams without drift that alarm, ranked online or against the calibration images only."""
    rng = np.random.default_rng([num_calibration, ties])
    u = np.empty((length, num_runs))
    for run in range(num_runs):
        values = rng.gamma(2, 1, num_calibration + length)
        values = (np.round(values, 1) if ties else values).astype(np.float32)
        first, theta = values[:num_calibration], rng.random(length)
        if is_fixed:
            order = np.sort(first)
            fewer, upto = (order.searchsorted(values[num_calibration:], side=side) for side in ("left", "right"))
            u[:, run] = (fewer + theta * (upto - fewer + 1)) / (num_calibration + 1)
        else:
            ranks = Ranks(first.tolist())
            for n, value in enumerate(values[num_calibration:].tolist()):
                below, equal = ranks.add(value)
                u[n, run] = (below + theta[n] * (equal + 1)) / len(ranks)
    bets = Bets(num_runs)
    maximum: Floats = np.zeros(num_runs)
    for row in u:
        bets.bet(row)
        np.maximum(maximum, bets.log_capital, out=maximum)
    return {
        "n": num_calibration, "ties": ties, "ranked": "fixed" if is_fixed else "online", "num_runs": num_runs,
        "length": length, "alarmed": float((maximum >= math.log(1 / ALPHA)).mean()),
    }  # fmt: skip


def alarms_of_monitors(*, num_calibration: int, num_runs: int, length: int, keeps_values: bool) -> dict[str, Any]:
    """Measure the share of monitored runs without drift that alarm; the statistics are skewed (log-normal)."""
    rng = np.random.default_rng([num_calibration, keeps_values])
    alarms: Counter[str] = Counter()
    begin = time.perf_counter()
    for run in range(num_runs):
        values = rng.standard_normal((num_calibration + length, 5)).astype(np.float32)
        values[:, 1:] = np.exp(values[:, 1:] / 2)
        monitor = make_monitor(
            values[:num_calibration].astype(np.float64), threshold=3.0, keeps_values=keeps_values, seed=run
        )
        monitor.replay(values[num_calibration:])
        alarms.update(["any"] if monitor.summary()["alarmed"] else [], **dict.fromkeys(monitor.summary()["alarms"], 1))
    seconds = time.perf_counter() - begin
    return {
        "n": num_calibration, "values_in_metadata": keeps_values, "num_runs": num_runs, "length": length,
        "alarmed": alarms["any"] / num_runs, "streams": dict(alarms),
        "microseconds_per_image": round(seconds / num_runs / length * 1e6, 1),
    }  # fmt: skip


def make_monitor(calibration_images: Floats, *, threshold: float, keeps_values: bool, seed: int) -> DriftMonitor:
    """Make a monitor calibrated on rows (n, 5) of score and statistics."""
    stats: dict[str, dict[str, Any]] = summarise(
        [dict(zip(STATISTICS, row[1:], strict=True)) for row in calibration_images]
    )
    if not keeps_values:
        for name in STATISTICS:
            del stats[name]["values"]
    return DriftMonitor(
        CalibrationScores(np.sort(calibration_images[:, 0])), stats, threshold=threshold, alpha=ALPHA, seed=seed
    )


def simple_score(template: list[Image]) -> Callable[[Image], float]:
    """Fit a raw score: root mean square difference of a thumbnail from the mean one, in standard deviations."""
    small = np.stack([thumbnail(image) for image in template])
    mean, deviation = small.mean(axis=0), small.std(axis=0) + 1.0
    return lambda image: float(np.sqrt((((thumbnail(image) - mean) / deviation) ** 2).mean()))


def thumbnail(image: Image) -> Floats:
    """Reduce an image to (24, 24, 3)."""
    return np.asarray(cv2.resize(image, (24, 24), interpolation=cv2.INTER_AREA), dtype=np.float64)


def statistics_of(images: list[Image], score: Callable[[Image], float]) -> Floats:
    """Compute scores and statistics (n, 5)."""
    return np.array([[score(image), *image_statistics(image).values()] for image in images])


def delays(
    clean: Floats, corrupted: Floats, *, num_calibration: int, num_clean: int, num_repeats: int, keeps_values: bool
) -> dict[str, Any]:
    """Measure the number of images from the first corrupted one to the alarm, over random deals of the images."""
    rng = np.random.default_rng([0, num_calibration])
    found: list[int] = []
    false = 0
    causes: Counter[str] = Counter()
    streams: Counter[str] = Counter()
    for seed in range(num_repeats):
        order = rng.permutation(len(clean))
        calibration_images = clean[order[:num_calibration]]
        scale = fit_scale(
            calibration_images[:, 0], alpha=tightest_alpha(num_calibration, guarantee="expected"), guarantee="expected"
        )
        offset = np.array([scale.offset, 0, 0, 0, 0])
        deviation = np.array([scale.scale, 1, 1, 1, 1])
        monitor = make_monitor(
            (calibration_images - offset) / deviation, threshold=1.0, keeps_values=keeps_values, seed=seed
        )
        rest = order[num_calibration:]
        rows = np.concatenate([clean[rest[:num_clean]], corrupted[rest[num_clean:]]])
        monitor.replay(((rows - offset) / deviation).astype(np.float32))
        summary = monitor.summary()
        if summary["alarmed"] and summary["first_alarm"] < num_clean:
            false += 1
        elif summary["alarmed"]:
            found.append(summary["first_alarm"] - num_clean + 1)
            text = summary["cause"].partition(";")[0].removeprefix("compared with the calibration images: ")
            causes["more defects" if summary["explained_by_reject_rate"] else text] += 1
            streams.update(name for name, at in summary["alarms"].items() if at == summary["first_alarm"])
    return {
        "n": num_calibration, "clean_before": num_clean, "values_in_metadata": keeps_values, "num_repeats": num_repeats,
        "false_alarms": false, "detected": len(found), "median_delay": float(np.median(found)) if found else None,
        "worst_delay": max(found, default=None), "first_streams": dict(streams.most_common()),
        "causes": dict(causes.most_common()),
    }  # fmt: skip


def rows_with_defects(num: int, *, rate: float) -> tuple[Floats, Floats]:
    """Draw scores and statistics (num, 5), and the same rows with a share of defects that score above all others."""
    rng = np.random.default_rng(1)
    clean = rng.standard_normal((num, 5))
    rows = clean.copy()
    defects = rng.random(num) < rate
    rows[defects, 0] = clean[:, 0].max() * rng.uniform(1.3, 3, int(defects.sum()))
    return clean, rows


def main() -> None:
    """Measure false alarms and delays, print each, and write all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--part", default="assembly")
    parser.add_argument("--model", type=Path, help="exported model of that part, in place of the simple score")
    parser.add_argument("--num-runs", type=int, default=200)
    parser.add_argument("--num-monitors", type=int, default=40)
    parser.add_argument("--num-repeats", type=int, default=20)
    parser.add_argument("--length", type=int, default=20_000)
    arguments = parser.parse_args()
    card = RunCard("benchmarks/drift_monitor.py", config=vars(arguments))
    result: dict[str, list[dict[str, Any]]] = {"error": [], "error_of_watch": [], "delay": [], "defects": []}

    def record(table: str, row: dict[str, Any]) -> None:
        result[table].append(row)
        print(table, row, flush=True)

    rng = np.random.default_rng(0)
    parts = [make_part(arguments.part, size=SIZE, rng=rng).image for _ in range(NUM_TEMPLATE + NUM_PARTS)]
    score = simple_score(parts[:NUM_TEMPLATE])
    if arguments.model:
        scorer = OnnxScorer(arguments.model, device="cpu", num_threads=1)

        def score(image: Image) -> float:
            return float(scorer.score(image[None]).score[0])

    images = parts[NUM_TEMPLATE:]
    clean = statistics_of(images, score)
    for n in (42, 200):
        record("delay", {"corruption": "none"} | delays(
            clean, clean, num_calibration=n, num_clean=0, num_repeats=5 * arguments.num_repeats, keeps_values=False,
        ))  # fmt: skip
    for name, (strengths, corrupt) in CORRUPTIONS.items():
        for strength in (1, 2):
            corrupted = statistics_of([corrupt(image, strength, rng) for image in images], score)
            for num_clean, keeps_values in ((0, False), (0, True), (NUM_CLEAN, False), (NUM_CLEAN, True)):
                row = {"corruption": name, "strength": strengths.split(" | ")[strength - 1]}
                record("delay", row | delays(
                    clean, corrupted, num_calibration=100, num_clean=num_clean, num_repeats=arguments.num_repeats,
                    keeps_values=keeps_values,
                ))  # fmt: skip
    for rate in (0.02, 0.05, 0.1, 0.3):
        for n in (100, 300):
            record("defects", {"rate": rate} | delays(
                *rows_with_defects(n + 5000, rate=rate), num_calibration=n, num_clean=0,
                num_repeats=arguments.num_repeats, keeps_values=True,
            ))  # fmt: skip
    for n in (42, 200):
        for ties, is_fixed in ((False, False), (True, False), (False, True)):
            record("error", alarms_of_scores(
                num_calibration=n, num_runs=arguments.num_runs, length=arguments.length, ties=ties, is_fixed=is_fixed,
            ))  # fmt: skip
        for keeps_values in (False, True):
            record("error_of_watch", alarms_of_monitors(
                num_calibration=n, num_runs=arguments.num_monitors, length=arguments.length, keeps_values=keeps_values,
            ))  # fmt: skip
    card.facts["result"] = result
    card.write(arguments.out)


if __name__ == "__main__":
    main()
