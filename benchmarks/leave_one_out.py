"""Rate of the leave-one-out guarantee on real images, by resampling: share of fresh good images above the threshold.

    ANOMALY_DATA=DATA python -m benchmarks.leave_one_out --out benchmarks/results/leave_one_out.json

Of the good images of a set, n are drawn. They train a memory bank and calibrate it, each scored without itself. The other
good images are fresh. This is repeated, and the share of fresh images above the threshold is averaged. Beside it stand
the exact construction, and the split form, which calibrates on a fifth of the n images.

Features are computed once per image. `--full` takes the default size of input and bank; the default here is smaller.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anomaly.conformal.guarantee import guarantee_for, images_needed
from anomaly.data.folders import find_category
from anomaly.detectors.memory_bank import MemoryBank, proportional_size
from anomaly.imaging.image_file import read_image
from anomaly.system.progress import progress_bar, show_progress
from anomaly.system.run_card import RunCard

SETS = (
    "mvtec_ad/bottle", "mvtec_ad/capsule", "mvtec_ad/screw", "kolektorsdd/commutator", "piped_paper/PA_FVN01_TL",
    "aws_cookie/cookie",
)  # fmt: skip
NUMBERS = (10, 20, 50, 100, 200)
ALPHAS = (0.01, 0.02, 0.05, 0.1, 0.2)
LEAST_FRESH = 8
"""Smallest number of fresh images for a row of the table"""
SMALL: dict[str, Any] = {"dimensions": 64, "bank_size": 500, "num_candidates": 8000, "num_projected": 8000}
Form = Literal["leave_one_out", "exact", "split"]


def good_features(root: Path, *, full: bool, report: Any) -> tuple[list[Tensor], dict[str, Any]]:
    """Compute the pooled features (h, w, C) of all good images of a category, and the options of its bank."""
    category = find_category(root)
    samples = [*category.train, *category.calibration_images, *(s for s in category.test if not s.label)]
    images = [read_image(s.path, white=255, max_pixels=10**8) for s in samples]
    size = proportional_size(*np.median([i.shape[:2] for i in images], axis=0))
    if not full:
        size = (max(32, size[0] * 2 // 3 // 32 * 32), max(32, size[1] * 2 // 3 // 32 * 32))
    options = {"size": size} | ({} if full else SMALL)
    bank, features = MemoryBank(**options).eval(), []
    embedding: Any = bank.embeddings[0]
    with torch.no_grad():
        for number, image in enumerate(images):
            x = bank.preprocess(torch.from_numpy(image[None]))
            features.append(embedding.features(x)[0].half())
            report(number + 1, len(images))
    return features, options


@torch.no_grad()
def scores_of(
    features: Sequence[Tensor], drawn: NDArray[np.intp], *, bank: MemoryBank, form: Form
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Fit a bank on drawn images; give the scores of the calibration images and of all images that were not drawn."""
    num_calibrating = math.ceil(0.2 * len(drawn)) if form == "split" else 0
    train, calibrate = drawn[num_calibrating:], drawn[:num_calibrating]
    named = [(f"{n:04d}", features[at].float()) for n, at in enumerate(train)]
    bank.fit_bank(0, lambda: named)
    embedding: Any = bank.embeddings[0]

    def score(f: Tensor, without: Sequence[int] = ()) -> float:
        raw = bank.score_embeddings([embedding.project(f.float())[None]], size=bank.grid, without=without)
        return float(raw.score[0])

    fresh = np.setdiff1d(np.arange(len(features)), drawn)
    if form == "split":
        calibration = [score(features[n]) for n in calibrate]
    else:
        calibration = [score(f, without=[n]) for n, (_, f) in enumerate(named)]
    return np.array(calibration), np.array([score(features[n]) for n in fresh])


def rates(draws: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]], *, alpha: float) -> dict[str, Any]:
    """Mean share of fresh images above the threshold of `alpha` over draws, and its largest allowed value."""
    guaranteed = guarantee_for(len(draws[0][0]), alpha=alpha, guarantee="expected")
    found = [float((fresh > np.sort(scores)[guaranteed.rank - 1]).mean()) for scores, fresh in draws]
    # draws share images: the images, not the draws, bound the precision
    error = max(float(np.std(found)) / math.sqrt(len(found)), math.sqrt(alpha * (1 - alpha) / len(draws[0][1])))
    return {
        "alpha": alpha,
        "expected_rate": guaranteed.expected_rate,
        "mean_rate": float(np.mean(found)),
        "standard_error": error,
        "kept": bool(np.mean(found) <= alpha + 3 * error),
    }


def main() -> None:
    """Simulate every set, number of images and construction, and write the rates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=os.environ.get("ANOMALY_DATA"))
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--numbers", nargs="+", type=int, default=list(NUMBERS))
    parser.add_argument("--forms", nargs="+", default=["leave_one_out", "exact", "split"])
    parser.add_argument("--draws", type=int, default=12)
    parser.add_argument("--full", action="store_true")
    arguments = parser.parse_args()
    if arguments.data is None:
        parser.error("set ANOMALY_DATA, or give --data")
    card = RunCard("benchmarks/leave_one_out.py", config={k: v for k, v in vars(arguments).items() if k != "data"})
    card.facts["result"] = []
    with show_progress():
        for name in arguments.sets:
            with progress_bar(name) as report:
                features, options = good_features(arguments.data / name, full=arguments.full, report=report)
            for num in arguments.numbers:
                if num + LEAST_FRESH > len(features):
                    continue
                for form in arguments.forms:
                    bank = MemoryBank(**options, exact=form == "exact").eval()
                    draws = [
                        scores_of(
                            features, np.random.default_rng(d).permutation(len(features))[:num], bank=bank, form=form
                        )
                        for d in range(arguments.draws)
                    ]
                    supported = [a for a in ALPHAS if images_needed(a, guarantee="expected") <= len(draws[0][0])]
                    row = {"set": name, "num_images": num, "form": form, "num_fresh": len(draws[0][1])}
                    row["rates"] = [rates(draws, alpha=alpha) for alpha in supported]
                    card.facts["result"].append(row)
                    card.write(arguments.out)
                    print(row, flush=True)


if __name__ == "__main__":
    main()
