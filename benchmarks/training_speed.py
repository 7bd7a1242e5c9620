"""Training speed of FastFlow: anomalib, ours in fp32 and ours in bf16, from the same weights, in one run.

    ANOMALY_WEIGHTS=FOLDER python -m benchmarks.training_speed DATA --out benchmarks/results/training_speed_bottle.json

anomalib trains by its own recipe: 10 epochs, batch 32, all good images. Ours calibrates on 20 % of the good images. Each is
timed from the start of `fit` to its end. Both are then evaluated on the same test images with the same exact metrics, ours
through the exported file.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from anomalib.data import Folder
from anomalib.engine import Engine
from anomalib.models import Fastflow
from numpy.typing import NDArray
from safetensors.torch import load_file

from anomaly.data.folders import find_category
from anomaly.evaluation.evaluate import evaluate_samples
from anomaly.inference.scorer import Scores
from anomaly.nn.backbones import available_weights
from anomaly.system.run_card import RunCard
from benchmarks.accuracy import measure

EPOCHS = 10


class AnomalibScorer:
    """A trained anomalib FastFlow as a `Scorer`: its preprocessing, its network, its raw score and map."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def score(self, image: NDArray[np.uint8]) -> Scores:
        """Score images (n, H, W, 3) uint8 RGB of one size."""
        x = torch.from_numpy(image).permute(0, 3, 1, 2).float() / 255
        with torch.no_grad():
            output = self._model.model(self._model.pre_processor.transform(x))
        return Scores(
            output.pred_score.reshape(-1).numpy(),
            output.anomaly_map.reshape(len(x), *output.anomaly_map.shape[-2:]).numpy(),
        )


def new_reference(weights: str | None) -> Any:
    """Build an untrained anomalib FastFlow on ResNet-18 with 3×3 kernels and backbone weights from a local file."""
    if weights is None:
        raise SystemExit("pretrained weights of resnet18 are missing; set ANOMALY_WEIGHTS to their folder")
    model = Fastflow(
        backbone="resnet18", pre_trained=False, flow_steps=8, conv3x3_only=True, evaluator=False, visualizer=False
    )
    state = load_file(weights)
    missing = model.model.feature_extractor.load_state_dict(state, strict=False).missing_keys
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    if missing:
        raise SystemExit(f"{weights} has no tensor {missing[0]}; give the weights of resnet18")
    return model


def train_reference(data: Path, *, weights: str | None, folder: Path) -> tuple[Any, float]:
    """Train anomalib's FastFlow by its engine; return the model and the seconds of `fit`."""
    model = new_reference(weights)
    loader = Folder(
        name=data.name, root=data, normal_dir="train/good", test_split_mode="none", val_split_mode="none",
        train_batch_size=32, num_workers=0,
    )  # fmt: skip
    engine = Engine(
        max_epochs=EPOCHS, accelerator="cpu", devices=1, logger=False, default_root_dir=folder,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    loader.setup("fit")
    begin = time.perf_counter()
    engine.fit(model, train_dataloaders=loader.train_dataloader())  # without validation, to time training only
    return model.eval().cpu(), time.perf_counter() - begin


def main() -> None:
    """Measure all three, and write seconds, figures and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("lightning").setLevel(logging.WARNING)
    weights = available_weights("resnet18")
    card = RunCard("benchmarks/training_speed.py", config={"data": arguments.data.name, "epochs of anomalib": EPOCHS})
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        model, seconds = train_reference(arguments.data, weights=weights, folder=Path(folder))
        found = evaluate_samples(
            find_category(arguments.data).test, scorer=AnomalibScorer(model), resize="stretch", white=255, threshold=1.0,
            max_pixels=100_000_000, batch_size=8, seed=0,
        )  # fmt: skip
        if found.pixel is None:
            raise SystemExit(f"{arguments.data} has defects without masks; pixel figures need them")
        result["anomalib"] = {
            "seconds_fit": round(seconds, 1),
            "image_auroc": found.image.auroc.value,
            "pixel_auroc": found.pixel.auroc.value,
        }
        for precision in ("fp32", "bf16"):
            cell = measure(
                arguments.data,
                {"detector": "fastflow", "model": {"epochs": 6}},
                seed=0,
                precision=precision,
                folder=Path(folder) / precision,
            )
            ours = cell["seconds"]["fit and calibrate"]
            result[f"ours {precision}"] = {
                "seconds_fit_and_calibrate": ours,
                "share_of_anomalib": round(ours / seconds, 3),
                "image_auroc": cell["figures"]["image_auroc"]["value"],
                "pixel_auroc": cell["figures"]["pixel_auroc"]["value"],
            }
    card.facts["result"] = result
    card.write(arguments.out)
    print(result)


if __name__ == "__main__":
    main()
