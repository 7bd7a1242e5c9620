"""Accuracy of a detector on one category, through the exported file: fit, export, verify and evaluate, seed by seed.

    python -m benchmarks.accuracy DATA --config configs/detectors/fastflow.yaml --seeds 0,1,2 --out benchmarks/results/X.json

Figures are those of the last epoch; test images choose nothing.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import yaml

from anomaly.evaluation.evaluate import evaluate
from anomaly.export.model_file import export_model
from anomaly.export.parity import verify
from anomaly.system.run_card import RunCard
from anomaly.training.fit import fit_model


def measure(data: Path, config: dict[str, Any], *, seed: int, precision: str, folder: Path) -> dict[str, Any]:
    """Measure one seed: its figures and the seconds of its steps.

    Args:
        data: folder of the category.
        config: options of the fit, with the detector's options as `model`.
        seed: random seed of the fit.
        precision: number format of training.
        folder: folder for the fitted model.
    """
    fit_options = {name: value for name, value in config.items() if name != "model"}
    card = RunCard("accuracy", config={"data": data.name, **config, "seed": seed, "precision": precision})
    with card.timed("fit and calibrate"):
        fitted = fit_model(
            data, out=folder, options=config.get("model"), seed=seed, precision=precision,  # type: ignore[arg-type]
            **fit_options,
        )  # fmt: skip
    card.facts["seconds"] |= {"fit": fitted.seconds["fit"]}
    with card.timed("export"):
        model = export_model(fitted)
    certificate = verify(fitted)
    figures = evaluate(model, data).to_dict()
    estimates = {
        "image_auroc": figures["image"]["auroc"],
        "image_average_precision": figures["image"]["average_precision"],
        "pixel_auroc": figures["pixel"]["auroc"],
        "pixel_average_precision": figures["pixel"]["average_precision"],
        **{f"aupro_{limit}": value for limit, value in figures["pixel"]["aupro"].items()},
    }
    return {
        "seed": seed,
        "seconds": card.facts["seconds"],
        "figures": estimates,
        "false_alarms": figures["false_alarms"],
        "misses": figures["misses"],
        "parity": {key: certificate[key] for key in ("score", "map", "num_flips", "provider")},
    }


def main() -> None:
    """Measure every seed, and write the seeds and their mean."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16", "fastest"))
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    config = yaml.safe_load(arguments.config.read_text(encoding="utf-8"))
    card = RunCard("benchmarks/accuracy.py", config=vars(arguments) | {"detector": config})
    card.facts["config"]["data"] = arguments.data.name
    cells = []
    for seed in (int(text) for text in arguments.seeds.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            cells.append(
                measure(arguments.data, config, seed=seed, precision=arguments.precision, folder=Path(folder) / "run")
            )
        card.facts["cells"] = cells
        card.facts["mean"] = {
            name: statistics.mean(cell["figures"][name]["value"] for cell in cells) for name in cells[0]["figures"]
        }
        card.write(arguments.out)


if __name__ == "__main__":
    main()
