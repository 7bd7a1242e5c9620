r"""Choice of the memory bank's scale and pooling by drawn defects, without test images.

    ANOMALY_DATA=DATA ANOMALY_WEIGHTS=WEIGHTS python -m benchmarks.memory_bank_recipe

Per category, a bank is fitted on a part of the good images. Defects are drawn onto the other good images. All forms of the
usual distance and of the pooling use the same distances. The score is chosen by the image AUROC, the map by the pixel AUROC,
each as the mean over the categories. Test images are not read.
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor

from anomaly.data.folders import find_category
from anomaly.data.splits import find_part_groups
from anomaly.detectors._usual_distance import usual_distance
from anomaly.detectors.memory_bank import MemoryBank, proportional_size
from anomaly.imaging.image_file import read_image
from anomaly.imaging.overlay import enlarge_map
from anomaly.nn.score_pooling import ScorePooling
from anomaly.system.run_card import RunCard
from anomaly.training.race_bank import distances_of
from anomaly.training.race_images import draw_defects, reduced, split_for_race

BACKBONES = ("tf_efficientnet_lite0", "mobilenetv2_100")
MAX_PIXELS = 100_000_000
SCALES = {
    f"border {cells}, power {power:g}": (cells, power)
    for cells, power in itertools.product((0, 2, 4, 8), (0.0, 0.25, 0.5, 1.0))
}
"""Forms of the usual distance; border 0 with power 0 is no scale"""
POOLINGS = {
    "maximum": ScorePooling("maximum"),
    **{f"top {top:g}": ScorePooling("top", top=top) for top in (0.005, 0.01, 0.02, 0.05)},
}
STEP = 4
"""Every so many pixels, in each direction, count for the pixel AUROC"""
CATEGORIES = (
    "aws_cookie/cookie",
    "piped_paper/PA_FVN01_TL",
    "kolektorsdd/commutator",
    "mvtec_ad/capsule",
    "mvtec_ad/screw",
)
PART_GROUPS = {"kolektorsdd/commutator": r"kos\d+"}
"""Category -> pattern of the part group in a path"""


class RecordedBank(MemoryBank):
    """Memory bank that keeps the out-of-fold distance maps of its training images."""

    def set_usual(self, number: int, distance: Tensor) -> None:
        """Keep the distance maps, then set the usual distances."""
        self.distance_maps = [*getattr(self, "distance_maps", ()), distance]
        super().set_usual(number, distance)


@torch.no_grad()
def measure(category: Path, *, part_group: str | None, seed: int) -> dict[str, Any]:
    """Fit a bank on a part of the good images; give the AUROC in % on drawn defects by scale and pooling."""
    samples = find_category(category).train
    parts = split_for_race(samples, find_part_groups(samples, root=category, part_group=part_group), seed=seed)
    train, good = (
        [reduced(read_image(s.path, white=255, max_pixels=MAX_PIXELS)) for s in part]
        for part in (parts.train, parts.held_out)
    )
    drawn = draw_defects(good, seed=seed)
    size = proportional_size(*train[0].shape[:2])
    model = RecordedBank(size=size, backbones=BACKBONES, position_scale=True, seed=seed).eval()
    begin = time.perf_counter()
    features = [_features(model, image) for image in train]
    for number in range(len(BACKBONES)):
        named = [(str(s.path), f[number]) for s, f in zip(parts.train, features, strict=True)]
        model.fit_bank(number, named.copy)
    seconds = time.perf_counter() - begin
    distances = [_distances(model, image) for image in (*good, *drawn.images)]
    masks = [(image != good[base]).any(axis=2) for image, base in zip(drawn.images, drawn.bases, strict=True)]
    inside, labels = torch.ones(model.grid, dtype=torch.bool), [0] * len(good) + [1] * len(masks)
    image_auroc: dict[str, dict[str, float]] = {}
    pixel_auroc: dict[str, float] = {}
    for name, (cells, power) in SCALES.items():
        usual = [usual_distance(maps, inside, border_cells=cells, power=power).usual for maps in model.distance_maps]
        scaled = [torch.stack([d / u for d, u in zip(each, usual, strict=True)]) for each in distances]
        total = torch.stack([each.sum(dim=0) for each in scaled])[:, 0]
        image_auroc[name] = {}
        for pooling, form in POOLINGS.items():
            model.pooling = form
            pooled = model.pooled(total, size)
            image_auroc[name][pooling] = 100 * float(roc_auc_score(labels, pooled.score))
        shown = [_sampled(pooled.anomaly_map[len(good) + n].numpy(), mask) for n, mask in enumerate(masks)]
        truth = np.concatenate([mask[::STEP, ::STEP].ravel() for mask in masks])
        pixel_auroc[name] = 100 * float(roc_auc_score(truth, np.concatenate(shown)))
    return {
        "num_train": len(train),
        "num_good": len(good),
        "num_drawn": len(masks),
        "size": list(size),
        "fit_seconds": round(seconds, 1),
        "image_auroc": image_auroc,
        "pixel_auroc": pixel_auroc,
    }


def _features(model: MemoryBank, image: NDArray[np.uint8]) -> list[Tensor]:
    x = model.preprocess(torch.from_numpy(image)[None])
    return [embedding.features(x)[0] for embedding in model.embeddings]  # type: ignore[operator]


def _distances(model: MemoryBank, image: NDArray[np.uint8]) -> list[Tensor]:
    return distances_of(model, [f[None] for f in _features(model, image)])


def _sampled(anomaly_map: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    height, width = mask.shape
    return np.asarray(enlarge_map(anomaly_map, height=height, width=width, resize="stretch")[::STEP, ::STEP].ravel())


def choose(categories: dict[str, Any]) -> dict[str, Any]:
    """Choose the score by the mean image AUROC and the map by the mean pixel AUROC."""
    found = list(categories.values())
    image = {
        (scale, pooling): float(np.mean([each["image_auroc"][scale][pooling] for each in found]))
        for scale, pooling in itertools.product(SCALES, POOLINGS)
    }
    pixel = {scale: float(np.mean([each["pixel_auroc"][scale] for each in found])) for scale in SCALES}
    score, shown = max(image, key=lambda key: image[key]), max(pixel, key=lambda key: pixel[key])
    return {
        "score": {"scale": score[0], "pooling": score[1], "image_auroc": image[score]},
        "map": {"scale": shown, "pixel_auroc": pixel[shown]},
        "mean_image_auroc": {f"{scale}, {pooling}": value for (scale, pooling), value in image.items()},
        "mean_pixel_auroc": pixel,
    }


def main() -> None:
    """Measure all categories, and write the figures and the choice."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("ANOMALY_DATA", "data"))
    parser.add_argument("--categories", nargs="+", default=CATEGORIES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/memory_bank_recipe.json"))
    arguments = parser.parse_args()
    card = RunCard("benchmarks/memory_bank_recipe.py", config={"backbones": BACKBONES, "seed": arguments.seed})
    card.facts["categories"] = {}
    for name in arguments.categories:
        found = measure(arguments.data / name, part_group=PART_GROUPS.get(name), seed=arguments.seed)
        card.facts["categories"][name] = found
        card.facts["chosen"] = choose(card.facts["categories"])
        card.write(arguments.out)
        print(name, {key: card.facts["chosen"][key] for key in ("score", "map")}, flush=True)


if __name__ == "__main__":
    main()
