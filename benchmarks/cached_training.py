"""What keeping frozen features is worth in training: the reference way against ours, same schedule, in one run.

    ANOMALY_WEIGHTS=FOLDER python -m benchmarks.cached_training DATA --out benchmarks/results/cached_training_bottle.json

FastFlow: features computed anew each epoch in fp32; kept; kept and bf16. DifferNet: features of freshly drawn rotations each
epoch, as in its paper; those of a fixed set of rotations, kept. Each is fitted, exported and tested through its file, so that
the figures stand beside the seconds. Set OMP_NUM_THREADS to fix the number of threads.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

from anomaly.system.run_card import RunCard
from benchmarks.accuracy import measure

WAYS: dict[str, list[tuple[str, str, dict[str, Any]]]] = {
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
"""Detector -> its ways: name, precision, options over the defaults; the first is what the others are measured against"""


def main() -> None:
    """Run every way and write seconds, ratios and figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    card = RunCard(
        "benchmarks/cached_training.py", config={"data": asked.data.name, "seed": asked.seed, "threads": threads}
    )
    card.facts["result"] = {}
    for detector, ways in WAYS.items():
        found: list[dict[str, Any]] = []
        for name, precision, options in ways:
            with tempfile.TemporaryDirectory() as folder:
                cell = measure(
                    asked.data, {"detector": detector, "model": options}, seed=asked.seed, precision=precision,
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
            card.write(asked.out)


if __name__ == "__main__":
    main()
