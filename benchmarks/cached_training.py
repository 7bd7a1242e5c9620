"""Speed-up of training by cached frozen features: the reference method against ours, same schedule, in one run.

    ANOMALY_WEIGHTS=FOLDER python -m benchmarks.cached_training DATA --out benchmarks/results/cached_training_bottle.json

FastFlow: features computed in each epoch in fp32; cached; cached and bf16. DifferNet: features of new random rotations in each
epoch, as in its paper; cached features of a fixed set of rotations. Each method is fitted, exported and evaluated through its
file, and its figures are written beside its seconds. OMP_NUM_THREADS sets the number of threads.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

from anomaly.system.run_card import RunCard
from benchmarks.accuracy import measure

METHODS: dict[str, list[tuple[str, str, dict[str, Any]]]] = {
    "fastflow": [
        ("reference: features anew each epoch, fp32", "fp32", {"cache_gib": 0.0}),
        ("features kept, fp32", "fp32", {}),
        ("features kept, bf16", "bf16", {}),
    ],
    "differnet": [
        ("reference: features of new rotations each epoch, fp32", "fp32", {"augment": "random", "cache_gib": 0.0}),
        ("features of fixed rotations kept, fp32", "fp32", {}),
    ],
}
"""Detector -> its methods: name, precision, options beside the defaults; the first one is the reference"""


def main() -> None:
    """Measure every method, and write seconds, ratios and figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    card = RunCard(
        "benchmarks/cached_training.py",
        config={"data": arguments.data.name, "seed": arguments.seed, "threads": threads},
    )
    card.facts["result"] = {}
    for detector, methods in METHODS.items():
        found: list[dict[str, Any]] = []
        for name, precision, options in methods:
            with tempfile.TemporaryDirectory() as folder:
                cell = measure(
                    arguments.data, {"detector": detector, "model": options}, seed=arguments.seed, precision=precision,
                    folder=Path(folder) / "run",
                )  # fmt: skip
            seconds = cell["seconds"]["fit"]
            found.append(
                {
                    "way": name,
                    "seconds_fit": seconds,
                    "times_faster": round(found[0]["seconds_fit"] / seconds, 2) if found else 1.0,
                    "image_auroc": cell["figures"]["image_auroc"]["value"],
                    "pixel_auroc": cell["figures"]["pixel_auroc"]["value"],
                }
            )
            print(found[-1], flush=True)
            card.facts["result"][detector] = found
            card.write(arguments.out)


if __name__ == "__main__":
    main()
