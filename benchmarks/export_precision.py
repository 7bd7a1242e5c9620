"""fp16, int8 and a fixed size on the CPU: milliseconds, AUROC on drawn defects, changed verdicts, bytes.

    anomaly fit DATA/bottle --out MODEL_FOLDER --config configs/detectors/fastflow.yaml
    python -m benchmarks.export_precision MODEL_FOLDER --out benchmarks/results/export_precision.json

All files score the first calibration image in turn, round by round, on one thread each. Times are processor times, which
depend less on other load. The figure is the median over rounds, and the ratio is the median of the rounds' ratios to fp32.
AUROC and changed verdicts are those of the certificates of the export.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import onnxruntime as ort

from anomaly.errors import ParityError
from anomaly.export.model_file import export_files
from anomaly.export.reduced_precision import read_images
from anomaly.inference.artifact import INPUT, Precision
from anomaly.inference.session import open_session
from anomaly.system.run_card import RunCard
from anomaly.training.fitted_model import load_fitted_model

KEPT = (
    "auroc_before",
    "auroc_after",
    "num_flips",
    "num_good",
    "num_drawn_defects",
    "num_int8",
    "num_convolutions",
    "score",
)
REFERENCE = "fp32"


def processor_ms(sessions: dict[str, ort.InferenceSession], image: Any, *, rounds: int) -> dict[str, dict[str, float]]:
    """Measure median milliseconds of each session and its ratio to fp32, over rounds in which all take turns."""
    milliseconds: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(rounds + 2):  # two rounds of warm-up
        for name, session in sessions.items():
            begin = time.process_time()
            session.run(None, {INPUT: image})
            milliseconds[name].append(1e3 * (time.process_time() - begin))
    return {
        name: {
            "ms": round(statistics.median(times[2:]), 2),
            "times_faster": round(
                statistics.median(a / b for a, b in zip(milliseconds[REFERENCE][2:], times[2:], strict=True)), 3
            ),
        }
        for name, times in milliseconds.items()
    }


def main() -> None:
    """Export in every form, measure all of them, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fitted", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--note", default="", help="other load on the machine")
    arguments = parser.parse_args()
    fitted = load_fitted_model(arguments.fitted)
    description = fitted.description
    if fitted.detector is None:
        raise SystemExit(f"{arguments.fitted} holds a sampler that cannot score; give the folder of a detector")
    config = {
        "detector": description.detector,
        "category": description.category,
        "rounds": arguments.rounds,
        "threads": 1,
    }
    card = RunCard("benchmarks/export_precision.py", config=config | {"model": description.config})
    card.facts["note"] = arguments.note
    (image,) = read_images(description.calibration_images[:1], description)
    height, width = image.shape[:2]
    result: dict[str, dict[str, Any]] = {}
    models: dict[str, bytes] = {}
    precisions: tuple[Precision, ...] = ("fp32", "fp16", "int8")
    with tempfile.TemporaryDirectory() as folder:
        for name, precision, fixed in (*((p, p, None) for p in precisions), ("fixed", "fp32", f"1,{height},{width}")):
            file = Path(folder) / f"{name}.onnx"
            begin = time.perf_counter()
            try:
                exported = export_files(fitted, file, precision=precision, fixed=fixed)
            except ParityError as error:
                result[name] = {"refused": str(error).replace(str(file), name)}
                continue
            models[name] = file.read_bytes()
            result[name] = {"seconds_of_export": round(time.perf_counter() - begin, 1), "bytes": len(models[name])}
            certificate = exported.certificate or {}
            result[name] |= {key: certificate[key] for key in KEPT if key in certificate}
    sessions = {
        name: open_session(model, name=name, device="cpu", num_threads=1, precision="fp32", is_fixed=False)[0]
        for name, model in models.items()
    }
    for name, line in processor_ms(sessions, image[None], rounds=arguments.rounds).items():
        result[name] = line | result.get(name, {})
    card.facts["result"] = result
    card.write(arguments.out)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
