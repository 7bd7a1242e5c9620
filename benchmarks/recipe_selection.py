"""Which of several recipes tells drawn defects from good images: the way recipes are chosen here, without test images.

    python -m benchmarks.recipe_selection DATA... --config configs/detectors/autoencoder.yaml --vary '{}' '{"skips": 2}' --out X.json

Each candidate learns from the `train` part; defects are drawn onto the `stopping` part, which neither trains nor calibrates,
and the figure is the AUROC of drawn defects against those images undrawn, image and pixel, over all kinds, sizes and
contrasts that a person would call visible.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import yaml
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

from anomaly.data.folders import find_category
from anomaly.data.splits import find_part_groups, split
from anomaly.data.synthetic import DEFECTS, draw_defect, estimate_foreground
from anomaly.errors import UsageError
from anomaly.imaging.image_file import read_image
from anomaly.imaging.overlay import enlarge_map
from anomaly.system.run_card import RunCard
from anomaly.training.dataset import GoodData, GoodImages
from anomaly.training.fitted_model import build_detector
from anomaly.training.loop import train

SIZES, CONTRASTS = (0.06, 0.12, 0.24), (0.3, 0.6)
MAX_PIXELS = 100_000_000


def draw_all(images: list[NDArray[np.uint8]], *, seed: int) -> list[tuple[NDArray[np.uint8], NDArray[np.bool_]]]:
    """Every kind, size and contrast of defect twice, on images in turn, with its mask."""
    foregrounds = [estimate_foreground(p) for p in images]
    drawn = []
    plan = [(k, s, c) for k in DEFECTS for s in SIZES for c in CONTRASTS for _ in range(2)]
    for number, (kind, size, contrast) in enumerate(plan):
        at = number % len(images)
        rng = np.random.default_rng((seed, number))
        try:
            drawn.append(
                draw_defect(images[at], kind, size=size, contrast=contrast, foreground=foregrounds[at], rng=rng)
            )
        except UsageError:  # too faint on that spot
            continue
    return drawn


def judge(data: Path, detector: str, options: dict[str, Any], *, seed: int, precision: str) -> dict[str, float]:
    """Train one candidate on one category and judge it by drawn defects."""
    samples = find_category(data).train
    groups = find_part_groups(samples, root=data, part_group=None, duplicates=())
    parts = split(samples, groups, seed=seed, stopping=True)

    def read(some: Any) -> GoodImages:
        return GoodImages(some, white=255, max_pixels=MAX_PIXELS, cache_gib=4.0)

    pl.seed_everything(seed, verbose=False)
    model = build_detector(detector, options)
    loaders = GoodData(
        train=parts.train, calibration_images=parts.calibration_images, stopping=parts.stopping, batch_size=model.batch_size, read=read, seed=seed
    )  # fmt: skip
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        train(model, loaders, out=Path(folder), precision=precision, device="cpu", resume=False)  # type: ignore[arg-type]
    seconds = time.perf_counter() - begin
    model.eval()
    images = [read_image(s.path, white=255, max_pixels=MAX_PIXELS) for s in parts.stopping]
    drawn = draw_all(images, seed=seed)
    scores, values, truths = [], [], []
    with torch.no_grad():
        for image in (*images, *(image for image, _ in drawn)):
            said = model(torch.from_numpy(image[None]))
            scores.append(float(said.score[0]))
            if len(scores) > len(images):
                mask = drawn[len(scores) - len(images) - 1][1]
                height, width = mask.shape
                values.append(
                    enlarge_map(
                        said.anomaly_map[0].numpy(), height=height, width=width, resize=model.preprocess.resize
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
        "seconds_fit": round(seconds, 1),
    }


def main() -> None:
    """Judge the candidates of the command line and write them in the order given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="+")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--vary", nargs="+", type=json.loads, default=[{}])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16", "fastest"))
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    config = yaml.safe_load(asked.config.read_text(encoding="utf-8"))
    card = RunCard(
        "benchmarks/recipe_selection.py", config={"config": config, "seed": asked.seed, "precision": asked.precision}
    )
    card.facts["candidates"] = []
    for vary in asked.vary:
        options = {**config.get("model", {}), **vary}
        found = {
            d.name: judge(d, config["detector"], options, seed=asked.seed, precision=asked.precision)
            for d in asked.data
        }
        card.facts["candidates"].append({"vary": vary, "categories": found})
        card.write(asked.out)
        means = {k: round(float(np.mean([f[k] for f in found.values()])), 4) for k in ("image_auroc", "pixel_auroc")}
        print(json.dumps({"vary": vary, "mean": means, **found}), flush=True)


if __name__ == "__main__":
    main()
