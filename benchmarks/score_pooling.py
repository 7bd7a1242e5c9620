r"""Choice of the score's pooling by drawn defects, and its effect on test images.

    ANOMALY_WEIGHTS=WEIGHTS python -m benchmarks.score_pooling ROOT --out benchmarks/results/score_pooling.json

Each row of `ROWS` trains once per category. Its maps are then pooled in several ways. Defects are drawn
onto the calibration and early-stopping images, which do not train. The drawn defects choose; the
figures of the test images are shown beside them. A miss is a defect at or below the threshold that at most 5 % of good parts
exceed; with fewer than 19 good images it is their maximum. The borders are the outer 8 % of height and width.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor

from anomaly.data.folders import find_category
from anomaly.detectors.base import Detector
from anomaly.imaging.image_file import read_image
from anomaly.nn.score_pooling import ScorePooling
from anomaly.system.run_card import RunCard
from benchmarks.recipe_selection import MAX_PIXELS, draw_all, fit_candidate

CATEGORIES = (
    "mvtec_ad/bottle", "mvtec_ad/capsule", "mvtec_ad/screw", "kolektorsdd/commutator", "aws_cookie/cookie",
    "piped_paper/PA_BDP01_TL", "piped_paper/PA_BFT01_TL", "piped_paper/PA_BRG01_RL", "piped_paper/PA_BTN01_RL",
    "piped_paper/PA_FLR01_TL", "piped_paper/PA_FVN01_TL",
)  # fmt: skip
OLD: dict[str, Any] = {"margin": 0, "count_padding": False}
KNN = OLD | {"num_patches": 40_000, "bank_size": 2000}
REFLECT: dict[str, Any] = {"margin": 32, "count_padding": False}
SHORT = {"epochs": 4}
ROWS: dict[str, tuple[str, dict[str, Any], str]] = {
    "nearest_neighbour": ("nearest_neighbour", OLD | {"num_patches": 4096, "bank_size": 4096}, "fp32"),
    "nearest_neighbour_core_set": ("nearest_neighbour", KNN, "fp32"),
    "nearest_neighbour_count_padding": ("nearest_neighbour", KNN | {"count_padding": True}, "fp32"),
    "nearest_neighbour_margin": ("nearest_neighbour", KNN | REFLECT, "fp32"),
    "nearest_neighbour_single_cells": ("nearest_neighbour", KNN | {"neighbourhood": 1}, "fp32"),
    "nearest_neighbour_5": ("nearest_neighbour", KNN | {"neighbourhood": 5}, "fp32"),
    "pca": ("pca", OLD, "fp32"),
    "pca_count_padding": ("pca", OLD | {"count_padding": True}, "fp32"),
    "pca_margin": ("pca", REFLECT, "fp32"),
    "gmm": ("gmm", OLD, "fp32"),
    "gmm_margin": ("gmm", REFLECT, "fp32"),
    "one_class_svm": ("one_class_svm", OLD, "fp32"),
    "one_class_svm_margin": ("one_class_svm", REFLECT, "fp32"),
    "fastflow": ("fastflow", SHORT | {"margin": 0}, "fastest"),
    "fastflow_margin": ("fastflow", SHORT | {"margin": 32}, "fastest"),
    "differnet_map": ("differnet", {"score": "map"}, "fp32"),
    "autoencoder": ("autoencoder", {"epochs": 10}, "fastest"),
    "ganomaly": ("ganomaly", {"epochs": 15}, "fp32"),
    "fanogan": ("fanogan", {"epochs": 25}, "fp32"),
    "riad": ("riad", {"epochs": 4}, "fastest"),
}
"""Row -> config file, options beside it, and precision; the schedules of trained detectors are short"""
SHARES = (0.005, 0.01, 0.02, 0.05, 0.1)
BORDER, ALPHA = 0.08, 0.05
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Recorder(ScorePooling):
    """Pooling that keeps the scores of several shares."""

    scores: tuple[dict[str, list[float]], ...] = ({},)

    def __call__(self, anomaly_map: Tensor, *, inside: Tensor | None = None) -> Tensor:
        """Pool by all shares, and return the scores of the first."""
        found = {f"top {share:g}": ScorePooling("top", top=share, cell=self.cell) for share in SHARES}
        pooled = {name: pooling(anomaly_map, inside=inside) for name, pooling in found.items()}
        for name, values in pooled.items():
            self.scores[0].setdefault(name, []).extend(values.tolist())
        return next(iter(pooled.values()))


@torch.no_grad()
def score_all(model: Detector, images: list[NDArray[np.uint8]]) -> tuple[dict[str, Array], float]:
    """Score images by all poolings; gives also the share of the maxima that lie in the borders."""
    recorder = Recorder("top", cell=model.pooling.cell, scores=({},))
    model.pooling = recorder
    largest, in_border = [], []
    for image in images:
        output = model.anomaly(model.preprocess(torch.from_numpy(image[None])))
        values = output.anomaly_map[0]
        place = int(values.argmax())
        row, column = place // values.shape[1], place % values.shape[1]
        largest.append(float(values.max()))
        in_border.append(_in_border(row, values.shape[0]) or _in_border(column, values.shape[1]))
    scores = {"maximum": largest} | recorder.scores[0]
    return {name: np.array(found) for name, found in scores.items()}, float(np.mean(in_border))


def _in_border(at: int, length: int) -> bool:
    return not BORDER * length <= at + 0.5 <= (1 - BORDER) * length


def figures(good: Array, defect: Array, *, threshold: float) -> dict[str, float]:
    """AUROC and share of misses."""
    labels = [0] * len(good) + [1] * len(defect)
    return {
        "auroc": round(float(roc_auc_score(labels, np.concatenate((good, defect)))), 4),
        "misses": round(float(np.mean(defect <= threshold)), 4),
    }


def evaluate(data: Path, row: str, *, seed: int) -> dict[str, Any]:
    """Train one row on one category, and measure every pooling."""
    config, options, precision = ROWS[row]
    values = yaml.safe_load(Path("configs/detectors", f"{config}.yaml").read_text(encoding="utf-8"))
    candidate = fit_candidate(data, values["detector"], values["model"] | options, seed=seed, precision=precision)

    def read(samples: Any) -> list[NDArray[np.uint8]]:
        return [read_image(s.path, white=255, max_pixels=MAX_PIXELS) for s in samples]

    images = read((*candidate.parts.calibration_images, *candidate.parts.stopping))
    drawn = [image for image, _ in draw_all(images, seed=seed)]
    test = find_category(data).test
    good, border = score_all(candidate.model, images)
    defect, _ = score_all(candidate.model, drawn)
    test_good, _ = score_all(candidate.model, read([s for s in test if not s.label]))
    test_defect, _ = score_all(candidate.model, read([s for s in test if s.label]))
    found: dict[str, Any] = {
        "num_good": len(images), "num_drawn": len(drawn), "seconds_fit": candidate.seconds_fit,
        "maxima_in_border": round(border, 4), "poolings": {},
    }  # fmt: skip
    for name, scores in good.items():
        ranked = np.sort(scores)
        threshold = float(ranked[min(len(ranked), math.ceil((len(ranked) + 1) * (1 - ALPHA))) - 1])
        found["poolings"][name] = {
            "drawn": figures(scores, defect[name], threshold=threshold),
            "test": figures(test_good[name], test_defect[name], threshold=threshold)
            | {"false_alarms": round(float(np.mean(test_good[name] > threshold)), 4)},
        }
    return found


def means(categories: dict[str, Any]) -> dict[str, Any]:
    """Mean over the categories of every pooling's figures."""
    first = next(iter(categories.values()))["poolings"]
    return {
        name: {
            kind: {
                key: round(float(np.mean([c["poolings"][name][kind][key] for c in categories.values()])), 4)
                for key in values
            }
            for kind, values in kinds.items()
        }
        for name, kinds in first.items()
    }


def main() -> None:
    """Measure the rows, and write their figures after each category."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder of the data sets")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--categories", nargs="+", default=list(CATEGORIES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    card = RunCard("benchmarks/score_pooling.py", config={"seed": arguments.seed})
    kept = json.loads(arguments.out.read_text(encoding="utf-8"))["rows"] if arguments.out.is_file() else {}
    card.facts["rows"] = kept
    for row in arguments.rows:
        config, options, precision = ROWS[row]
        request = {"config": config, "options": options, "precision": precision}
        if kept.get(row, {}).get("request") != request:
            kept[row] = {"request": request, "categories": {}}
        for category in arguments.categories:
            if category in kept[row]["categories"]:
                continue
            kept[row]["categories"][category] = evaluate(arguments.root / category, row, seed=arguments.seed)
            kept[row]["mean"] = means(kept[row]["categories"])
            card.write(arguments.out)
            print(row, category, json.dumps(kept[row]["categories"][category]), flush=True)


if __name__ == "__main__":
    main()
