"""ONNX Runtime throughput: our exported FastFlow with preprocessing from 900² against anomalib's export without preprocessing.

    ANOMALY_WEIGHTS=FOLDER python -m benchmarks.inference_speed --out benchmarks/results/inference_speed.json

Both have the same backbone and flow sizes, and untrained flows, because the arithmetic does not depend on the weights. They
run in turn, round by round. The figure is the median over rounds, and the ratio is the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch

from anomaly.detectors.fastflow import FastFlow
from anomaly.export.detector import export_graph
from anomaly.nn.backbones import available_weights
from anomaly.system.processors import num_cpus
from anomaly.system.run_card import RunCard
from benchmarks.training_speed import new_reference

SIDE = 900


def open_session(model: bytes | str, *, device: str) -> ort.InferenceSession:
    """Open a session on all processors, without spinning, as in the scoring pipeline."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = num_cpus()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}[device]
    session = ort.InferenceSession(model, options, providers=[provider])
    if session.get_providers()[0] != provider:
        raise SystemExit(f"the session runs on {session.get_providers()[0]} instead of {device}; check the drivers")
    return session


def images_per_second(session: ort.InferenceSession, feed: dict[str, Any], *, batch: int) -> float:
    """Measure the throughput of one run."""
    begin = time.perf_counter()
    session.run(None, feed)
    return batch / (time.perf_counter() - begin)


def main() -> None:
    """Measure both at each batch size, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batches", default="1,16")
    arguments = parser.parse_args()
    card = RunCard("benchmarks/inference_speed.py", config=vars(arguments))
    ours = open_session(export_graph(FastFlow()).SerializeToString(), device=arguments.device)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "anomalib.onnx"
        network = new_reference(available_weights("resnet18")).model.eval()
        torch.onnx.export(
            network, (torch.zeros(2, 3, 256, 256),), str(file), dynamo=False, opset_version=18,
            input_names=["input"], dynamic_axes={"input": {0: "batch"}},
        )  # fmt: skip
        theirs = open_session(str(file), device=arguments.device)
    rng = np.random.default_rng(0)
    result = {}
    for batch in (int(b) for b in arguments.batches.split(",")):
        image = {"image": rng.integers(0, 256, (batch, SIDE, SIDE, 3), dtype=np.uint8)}
        x = {"input": rng.standard_normal((batch, 3, 256, 256)).astype(np.float32)}
        pairs = [
            (images_per_second(ours, image, batch=batch), images_per_second(theirs, x, batch=batch))
            for _ in range(arguments.rounds + 2)
        ][2:]
        result[f"batch {batch}"] = {
            "ours_from_900": round(statistics.median(a for a, _ in pairs), 2),
            "anomalib_from_256_float": round(statistics.median(b for _, b in pairs), 2),
            "ratio": round(statistics.median(a / b for a, b in pairs), 3),
            "rounds": arguments.rounds,
        }
    card.facts["result"] = result
    card.write(arguments.out)
    print(result)


if __name__ == "__main__":
    main()
