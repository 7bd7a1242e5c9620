"""Speed-up of training by bf16: seconds per pass in fp32 and in bf16 for every shipped detector, in turn, in one run.

    ANOMALY_WEIGHTS=FOLDER python -m benchmarks.training_precision --out benchmarks/results/training_precision.json

Each detector trains on drawn images with its shipped options for `--passes` passes in either precision. Frozen features are
cached as in a real fit, so only repeated work is timed. OMP_NUM_THREADS sets the number of threads.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml

from anomaly.data.folders import Sample
from anomaly.imaging.image_file import write_png
from anomaly.system.run_card import RunCard
from anomaly.testing.toy_training import draw_parts
from anomaly.training.dataset import GoodData, GoodImages
from anomaly.training.fitted_model import build_detector
from anomaly.training.loop import train
from benchmarks.latency import CONFIGS, SHIPPED

NUM_IMAGES = 24


def seconds_per_pass(name: str, *, precision: str, passes: int, folder: Path) -> float:
    """Measure the mean seconds of a pass: a fit of 1 + `passes` minus a fit of one, which also warms up."""
    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))
    samples = [Sample(path, "good", False, None) for path in sorted(folder.glob("*.png"))]

    def read(samples: Any) -> GoodImages:
        return GoodImages(samples, white=255, max_pixels=100_000_000, cache_gib=1.0)

    seconds = []
    for epochs in (1, 1, 1 + passes):  # the first fit warms up the allocator and the choice of kernels
        torch.manual_seed(0)
        detector = build_detector(config["detector"], config.get("model", {}) | {"epochs": epochs})
        loaders = GoodData(train=samples, stopping=(), batch_size=detector.batch_size, read=read, seed=0)
        begin = time.perf_counter()
        train(detector, loaders, out=folder, precision=precision, device="auto", resume=False)  # type: ignore[arg-type]
        seconds.append(time.perf_counter() - begin)
    return (seconds[2] - seconds[1]) / passes


def main() -> None:
    """Measure every detector, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--passes", type=int, default=3)
    arguments = parser.parse_args()
    config = {"passes": arguments.passes, "images": NUM_IMAGES, "threads": os.environ.get("OMP_NUM_THREADS", "all")}
    card = RunCard("benchmarks/training_precision.py", config=config)
    result: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as place:
        for number, image in enumerate(draw_parts(NUM_IMAGES, seed=0).numpy()):
            write_png(Path(place) / f"{number:03d}.png", image)
        for name in SHIPPED:
            seconds = {
                precision: seconds_per_pass(name, precision=precision, passes=arguments.passes, folder=Path(place))
                for precision in ("fp32", "bf16")
            }
            result[name] = {key: round(value, 3) for key, value in seconds.items()}
            result[name]["times_faster"] = round(seconds["fp32"] / seconds["bf16"], 2)
            print(name, result[name], flush=True)
            card.facts["result"] = result
            card.write(arguments.out)


if __name__ == "__main__":
    main()
