"""Rate of the guarantee after a race: the same good images choose the detector and calibrate it.

    ANOMALY_DATA=DATA python -m benchmarks.race_guarantee --out benchmarks/results/race_guarantee.json

Of the good images of a set, n are drawn. A part of them races the candidates of a shared memory bank, with defects drawn
onto the rest. The winner is then fitted on all n images and calibrated by leaving each image out. The other good images
are fresh. This is repeated, and the share of fresh images above the threshold is averaged. Beside it stands the rate of
each candidate without a race. The input and the bank are smaller than by default; features are computed once per image.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anomaly.conformal.guarantee import images_needed
from anomaly.data.folders import find_category
from anomaly.detectors.memory_bank import MemoryBank, nearest
from anomaly.imaging.image_file import read_image
from anomaly.system.progress import progress_bar, show_progress
from anomaly.system.run_card import RunCard
from anomaly.training.race_bank import BankChoice, distances_of, score_choice
from anomaly.training.race_images import HELD_OUT_SHARE, draw_defects
from anomaly.training.race_ranking import Measured, rank
from benchmarks.leave_one_out import SMALL, rates

SIZE = (256, 256)
CHOICES = {
    "memory bank": BankChoice(1, True, "top"),
    "memory bank, maximum": BankChoice(1, True, "maximum"),
    "memory bank, no position scale": BankChoice(1, False, "top"),
    "memory bank, no position scale, maximum": BankChoice(1, False, "maximum"),
}
ALPHAS = (0.02, 0.05, 0.1, 0.2)
NUM_DRAWN_ON = 64
"""Images with drawn defects; the held-out images of every race are among them"""


@dataclass(frozen=True)
class Features:
    """Pooled features (h, w, C) of one set."""

    good: list[Tensor]
    """of all good images, those with drawn defects first"""
    drawn: list[Tensor]
    bases: NDArray[np.intp]
    """number of the good image under each drawn defect"""


def features_of(root: Path) -> Features:
    """Compute the features of all good images of a category, in random order, and of defects drawn onto some."""
    category = find_category(root)
    samples = [*category.train, *category.calibration_images, *(s for s in category.test if not s.label)]
    order = np.random.default_rng(0).permutation(len(samples))
    images = [read_image(samples[n].path, white=255, max_pixels=10**8) for n in order]
    drawn = draw_defects(images[:NUM_DRAWN_ON], seed=0)
    bank = bank_of(seed=0)
    embedding: Any = bank.embeddings[0]
    found = []
    with progress_bar("features") as report, torch.no_grad():
        for number, image in enumerate((*images, *drawn.images)):
            x = bank.preprocess(torch.from_numpy(image)[None])
            found.append(embedding.features(x)[0].half())
            report(number + 1, len(images) + len(drawn.images))
    return Features(found[: len(images)], found[len(images) :], np.array(drawn.bases))


def bank_of(*, seed: int) -> MemoryBank:
    """Build an untrained bank of the simulation."""
    return MemoryBank(size=SIZE, seed=seed, **SMALL).eval()


def fit_bank(features: Sequence[Tensor], *, seed: int) -> MemoryBank:
    """Fit a bank on features of images."""
    bank = bank_of(seed=seed)
    named = [(f"{n:04d}", f.float()) for n, f in enumerate(features)]
    bank.fit_bank(0, lambda: named)
    return bank


def scores_of(bank: MemoryBank, features: Sequence[Tensor]) -> dict[str, NDArray[np.float64]]:
    """Score images by every candidate."""
    found: dict[str, list[float]] = {name: [] for name in CHOICES}
    for f in features:
        distances = distances_of(bank, [f.float()[None]])
        for name, choice in CHOICES.items():
            found[name].append(score_choice(bank, distances, choice)[0])
    return {name: np.array(values) for name, values in found.items()}


@torch.no_grad()
def left_out_scores(bank: MemoryBank, features: Sequence[Tensor]) -> dict[str, NDArray[np.float64]]:
    """Score the training images by every candidate, each without its own rows."""
    own: Any = bank.banks[0]
    embedding: Any = bank.embeddings[0]
    found: dict[str, list[float]] = {name: [] for name in CHOICES}
    for n, f in enumerate(features):
        distances = [nearest(embedding.project(f.float()[None]), own.rows[own.image != n])]
        for name, choice in CHOICES.items():
            found[name].append(score_choice(bank, distances, choice)[0])
    return {name: np.array(values) for name, values in found.items()}


def race(features: Features, train: NDArray[np.intp], held_out: NDArray[np.intp], *, seed: int) -> str:
    """Choose a candidate on some of the good images."""
    bank = fit_bank([features.good[n] for n in train], seed=seed)
    good = scores_of(bank, [features.good[n] for n in held_out])
    place = {int(n): at for at, n in enumerate(held_out)}
    shown = [n for n, base in enumerate(features.bases) if int(base) in place]
    drawn = scores_of(bank, [features.drawn[n] for n in shown])
    measured = {name: Measured(good[name], good[name], drawn[name], 0.0, 0.0) for name in CHOICES}
    return rank(measured, bases=[place[int(features.bases[n])] for n in shown], budget_ms=None, seed=seed)[0]


def simulate(features: Features, *, num: int, num_draws: int) -> dict[str, Any]:
    """Draw images, race, fit and calibrate, and measure the rate on fresh images, many times."""
    results: dict[str, list[tuple[NDArray[np.float64], NDArray[np.float64]]]] = {"race": []}
    results |= {name: [] for name in CHOICES}
    chosen = []
    for seed in range(num_draws):
        rng = np.random.default_rng(seed)
        num_held_out = round(HELD_OUT_SHARE * num)
        # which images have drawn defects is random, so this is a uniform draw of the images
        held_out = rng.permutation(NUM_DRAWN_ON)[:num_held_out]
        rest = np.setdiff1d(np.arange(len(features.good)), held_out)
        train = rng.permutation(rest)[: num - num_held_out]
        winner = race(features, train, held_out, seed=seed)
        used = np.concatenate([train, held_out])
        bank = fit_bank([features.good[n] for n in used], seed=seed)
        calibration = left_out_scores(bank, [features.good[n] for n in used])
        fresh = scores_of(bank, [features.good[n] for n in np.setdiff1d(np.arange(len(features.good)), used)])
        chosen.append(winner)
        for name in CHOICES:
            results[name].append((calibration[name], fresh[name]))
        results["race"].append((calibration[winner], fresh[winner]))
    supported = [alpha for alpha in ALPHAS if images_needed(alpha, guarantee="expected") <= num]
    return {
        "chosen": {name: chosen.count(name) for name in CHOICES},
        "rates": {name: [rates(draws, alpha=alpha) for alpha in supported] for name, draws in results.items()},
    }


def summary(row: Mapping[str, Any]) -> str:
    """One line about a simulated row."""
    found = [f"{r['alpha']:g}: {r['mean_rate']:.3f} ± {r['standard_error']:.3f}" for r in row["rates"]["race"]]
    return f"{row['set']} n={row['num_images']}: {', '.join(found)}; chosen {row['chosen']}"


def main() -> None:
    """Simulate every set and number of images, and write the rates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=os.environ.get("ANOMALY_DATA"))
    parser.add_argument("--sets", nargs="+", default=["mvtec_ad/screw", "mvtec_ad/bottle"])
    parser.add_argument("--numbers", nargs="+", type=int, default=[50, 100])
    parser.add_argument("--draws", type=int, default=12)
    arguments = parser.parse_args()
    if arguments.data is None:
        parser.error("set ANOMALY_DATA, or give --data")
    card = RunCard("benchmarks/race_guarantee.py", config={k: v for k, v in vars(arguments).items() if k != "data"})
    card.facts["result"] = []
    with show_progress():
        for name in arguments.sets:
            features = features_of(Path(arguments.data) / name)
            for num in arguments.numbers:
                row = {"set": name, "num_images": num, "num_fresh": len(features.good) - num}
                row |= simulate(features, num=num, num_draws=arguments.draws)
                card.facts["result"].append(row)
                card.write(arguments.out)
                print(summary(row), flush=True)


if __name__ == "__main__":
    main()
