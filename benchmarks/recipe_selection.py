r"""Selection of a recipe by drawn defects, without test images.

    python -m benchmarks.recipe_selection DATA... --config configs/detectors/autoencoder.yaml \
        --vary '{}' '{"skips": 2}' --out X.json

Each candidate trains on the training images. Defects of visible sizes and contrasts are drawn onto the early-stopping images,
which neither train nor calibrate. The figures are the image and pixel AUROC of the drawn defects against the same images
without defects.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import yaml
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

from anomaly.data.folders import find_category
from anomaly.data.splits import Split, find_part_groups, split
from anomaly.data.synthetic import DEFECTS, draw_defect, estimate_foreground
from anomaly.detectors.base import Detector
from anomaly.errors import UsageError
from anomaly.imaging.image_file import read_image
from anomaly.imaging.overlay import enlarge_map
from anomaly.system.run_card import RunCard
from anomaly.training.dataset import GoodData, GoodImages
from anomaly.training.fitted_model import build_detector
from anomaly.training.loop import train

SIZES, CONTRASTS = (0.06, 0.12, 0.24), (0.3, 0.6)
MAX_PIXELS = 100_000_000
Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Candidate:
    """A trained candidate and the images that it did not see."""

    model: Detector
    parts: Split
    seconds_fit: float


def draw_all(images: list[Image], *, seed: int) -> list[tuple[Image, NDArray[np.bool_]]]:
    """Draw every kind, size and contrast of defect twice, on images in turn; return images with masks."""
    foregrounds = [estimate_foreground(image) for image in images]
    drawn = []
    plan = [(k, s, c) for k in DEFECTS for s in SIZES for c in CONTRASTS for _ in range(2)]
    for number, (kind, size, contrast) in enumerate(plan):
        at = number % len(images)
        rng = np.random.default_rng((seed, number))
        try:
            drawn.append(
                draw_defect(images[at], kind, size=size, contrast=contrast, foreground=foregrounds[at], rng=rng)
            )
        except UsageError:  # invisible at that place
            continue
    return drawn


def fit_candidate(data: Path, detector: str, options: dict[str, Any], *, seed: int, precision: str) -> Candidate:
    """Train one candidate on one category, without its calibration and early-stopping images."""
    samples = find_category(data).train
    groups = find_part_groups(samples, root=data)
    parts = split(samples, groups, seed=seed, stopping=True)

    def read(samples: Any) -> GoodImages:
        return GoodImages(samples, white=255, max_pixels=MAX_PIXELS, cache_gib=4.0)

    pl.seed_everything(seed, verbose=False)
    model = build_detector(detector, options)
    loaders = GoodData(
        train=parts.train,
        stopping=parts.stopping,
        batch_size=model.batch_size,
        read=read,
        seed=seed,
    )
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        train(model, loaders, out=Path(folder), precision=precision, device="cpu", resume=False)  # type: ignore[arg-type]
    seconds = time.perf_counter() - begin
    return Candidate(model.eval(), parts, round(seconds, 1))


def evaluate(data: Path, detector: str, options: dict[str, Any], *, seed: int, precision: str) -> dict[str, float]:
    """Train one candidate on one category, and measure it by drawn defects."""
    candidate = fit_candidate(data, detector, options, seed=seed, precision=precision)
    model = candidate.model
    images = [read_image(s.path, white=255, max_pixels=MAX_PIXELS) for s in candidate.parts.stopping]
    drawn = draw_all(images, seed=seed)
    scores, values, truths = [], [], []
    with torch.no_grad():
        for image in (*images, *(image for image, _ in drawn)):
            output = model(torch.from_numpy(image[None]))
            scores.append(float(output.score[0]))
            if len(scores) > len(images):
                mask = drawn[len(scores) - len(images) - 1][1]
                height, width = mask.shape
                values.append(
                    enlarge_map(
                        output.anomaly_map[0].numpy(), height=height, width=width, resize=model.preprocess.resize
                    )[::4, ::4].ravel()
                )
                truths.append(mask[::4, ::4].ravel())
    labels = [False] * len(images) + [True] * len(drawn)
    return {
        "image_auroc": float(roc_auc_score(labels, scores)),
        "pixel_auroc": float(roc_auc_score(np.concatenate(truths), np.concatenate(values))),
        "pixel_average_precision": float(average_precision_score(np.concatenate(truths), np.concatenate(values))),
        "num_good": len(images),
        "num_drawn": len(drawn),
        "seconds_fit": candidate.seconds_fit,
    }


def main() -> None:
    """Evaluate the candidates in the given order, and write their figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="+")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--vary", nargs="+", type=json.loads, default=[{}])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16", "fastest"))
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    config = yaml.safe_load(arguments.config.read_text(encoding="utf-8"))
    card = RunCard(
        "benchmarks/recipe_selection.py",
        config={"config": config, "seed": arguments.seed, "precision": arguments.precision},
    )
    card.facts["candidates"] = []
    for vary in arguments.vary:
        options = {**config.get("model", {}), **vary}
        found = {
            d.name: evaluate(d, config["detector"], options, seed=arguments.seed, precision=arguments.precision)
            for d in arguments.data
        }
        card.facts["candidates"].append({"vary": vary, "categories": found})
        card.write(arguments.out)
        means = {k: round(float(np.mean([f[k] for f in found.values()])), 4) for k in ("image_auroc", "pixel_auroc")}
        print(json.dumps({"vary": vary, "mean": means, **found}), flush=True)


if __name__ == "__main__":
    main()
