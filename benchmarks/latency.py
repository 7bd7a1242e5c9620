"""Latency and throughput of the exported file of every shipped detector at batch 1 and 16, in one run on one machine.

    python -m benchmarks.latency --out benchmarks/results/latency.json [--device cuda]

The graph takes raw 900² images and includes the preprocessing. The networks are untrained, because the arithmetic does not
depend on the weights. The files take turns, round by round; figures are medians over the rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import yaml

from anomaly.export.detector import export_graph
from anomaly.system.run_card import RunCard
from anomaly.training.fitted_model import build_detector
from benchmarks.inference_speed import open_session

CONFIGS = Path(__file__).resolve().parent.parent / "configs" / "detectors"
SHIPPED = ("autoencoder", "riad", "ganomaly", "fanogan", "differnet", "fastflow")
SIDE = 900


def main() -> None:
    """Export every detector, measure the files, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", default="1,16")
    arguments = parser.parse_args()
    card = RunCard("benchmarks/latency.py", config=vars(arguments) | {"side": SIDE})
    sessions: dict[str, ort.InferenceSession] = {}
    result: dict[str, dict[str, Any]] = {}
    for name in SHIPPED:
        config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))
        options = config.get("model", {})
        if "backbone" in options:
            options = options | {"weights": "none"}
        model = export_graph(build_detector(config["detector"], options)).SerializeToString()
        sessions[name] = open_session(model, device=arguments.device)
        result[name] = {"megabytes": round(len(model) / 1e6, 1), "size": options.get("size")}
    rng = np.random.default_rng(0)
    for batch in (int(b) for b in arguments.batches.split(",")):
        feed = {"image": rng.integers(0, 256, (batch, SIDE, SIDE, 3), dtype=np.uint8)}
        seconds: dict[str, list[float]] = {name: [] for name in sessions}
        for number in range(arguments.rounds + 1):
            for name, session in sessions.items():
                begin = time.perf_counter()
                session.run(None, feed)
                if number:  # the first round warms up
                    seconds[name].append(time.perf_counter() - begin)
        for name, runs in seconds.items():
            median = statistics.median(runs)
            result[name][f"batch_{batch}"] = {
                "milliseconds": round(1e3 * median, 1),
                "images_per_second": round(batch / median, 2),
            }
    card.facts["result"] = result
    card.write(arguments.out)
    for name, found in result.items():
        print(name, found)


if __name__ == "__main__":
    main()
