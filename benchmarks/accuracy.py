"""Accuracy of a detector on one category: fit, export, verify and test through the exported file, seed by seed.

    python -m benchmarks.accuracy DATA --config configs/detectors/fastflow.yaml --seeds 0,1,2 --out benchmarks/results/X.json

Figures are those of the last epoch; nothing is chosen on test images.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import yaml

from anomaly.evaluation.evaluate import evaluate
from anomaly.export.model_file import export_model
from anomaly.export.parity import verify
from anomaly.system.run_card import RunCard
from anomaly.training.fit import fit


def measure(data: Path, config: dict[str, Any], *, seed: int, precision: str, folder: Path) -> dict[str, Any]:
    """One cell: the figures of a seed and the seconds of its steps."""
    cell = RunCard("accuracy", config={"data": data.name, **config, "seed": seed, "precision": precision})
    with cell.timed("fit and calibrate"):
        run = fit(data, out=folder, seed=seed, precision=precision, **config)  # type: ignore[arg-type]
    cell.facts["seconds"] |= {"fit": json.loads((run / "run.json").read_text(encoding="utf-8"))["seconds"]["fit"]}
    with cell.timed("export"):
        model = export_model(run)
    certificate = verify(run)
    figures = evaluate(model, data).to_dict()
    estimates = {
        "image_auroc": figures["image"]["auroc"],
        "image_average_precision": figures["image"]["average_precision"],
        "pixel_auroc": figures["pixel"]["auroc"],
        "pixel_average_precision": figures["pixel"]["average_precision"],
        **{f"aupro_{threshold}": value for threshold, value in figures["pixel"]["aupro"].items()},
    }
    return {
        "seed": seed,
        "seconds": cell.facts["seconds"],
        "figures": estimates,
        "false_alarms": figures["false_alarms"],
        "misses": figures["misses"],
        "parity": {key: certificate[key] for key in ("score", "map", "num_flips", "provider")},
    }


def main() -> None:
    """Run the cells of the command line and write them with their mean."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16", "fastest"))
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    config = yaml.safe_load(options.config.read_text(encoding="utf-8"))
    card = RunCard("benchmarks/accuracy.py", config=vars(options) | {"detector": config})
    cells = []
    for seed in (int(s) for s in options.seeds.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            cells.append(
                measure(options.data, config, seed=seed, precision=options.precision, folder=Path(folder) / "run")
            )
        card.facts["cells"] = cells
        card.facts["mean"] = {
            name: statistics.mean(cell["figures"][name]["value"] for cell in cells) for name in cells[0]["figures"]
        }
        card.facts["config"]["data"] = options.data.name
        card.write(options.out)


if __name__ == "__main__":
    main()
