"""Models of anomalib through the adapter: training, saving, export and parity, one row each.

    python -m benchmarks.anomalib_export --out benchmarks/results/anomalib_export.json [--models Padim Stfpm]

Every model is built small with random weights, trained briefly on drawn parts and calibrated. Its graph is then compared with
it on good, defective and unusual images, in calibrated units. The rows do not measure detection.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytorch_lightning as pl
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from anomaly.detectors.anomalib.adapter import FOLDERS, AnomalibModel
from anomaly.detectors.anomalib.inference import NOT_EXPORTED
from anomaly.errors import AnomalyError, CalibrationError
from anomaly.export.detector import export_graph
from anomaly.inference.difference import relative_difference
from anomaly.inference.scorer import score_bytes
from anomaly.system.run_card import RunCard
from anomaly.testing.toy_training import as_batch, draw_defects, draw_parts, train_on, unusual_images

SMALL: dict[str, Any] = {"size": 64, "inner_epochs": 1, "batch_size": 8, "weights": "none"}
RESNET = {"backbone": "resnet18"}
DINO2, DINO3 = "vit_small_patch14_dinov2", "vit_small_patch16_dinov3"
CASES: dict[str, dict[str, Any]] = {
    "AnomalyDINO": {"size": 70},
    "Cfa": {"options": RESNET},
    "Cflow": {"options": RESNET | {"layers": ["layer2", "layer3"], "coupling_blocks": 2}},
    "Csflow": {"size": 128, "options": {"cross_conv_hidden_channels": 16, "n_coupling_blocks": 1}},
    "Dfkde": {"options": {"n_pca_components": 4}},
    "Dfm": {"options": RESNET},
    "Dinomaly": {"size": 70, "options": {"encoder_name": DINO2}},
    "Draem": {},
    "Dsr": {},
    "EfficientAd": {"size": 256, "batch_size": 1},
    "Fastflow": {"options": {"flow_steps": 2}},
    "FoundAD": {"size": 70},
    "Fre": {"options": RESNET | {"input_dim": 1024, "latent_dim": 20}},
    "Ganomaly": {"options": {"n_features": 16, "latent_vec_size": 16}},
    "GeneralAD": {"size": 70, "options": {"backbone": DINO2, "layers": [12]}},
    "Glass": {"options": RESNET | {"input_shape": [64, 64], "pretrain_embed_dim": 64, "target_embed_dim": 64}},
    "InpFormer": {"size": 70, "options": {"encoder_name": DINO2}},
    "L2BT": {"size": 70},
    "MHPatchcore": {"options": RESNET},
    "Padim": {"options": {"n_features": 20}},
    "Patchcore": {"options": RESNET},
    "Patchflow": {"options": RESNET | {"flow_hidden_dim": 16}},
    "Rad": {"options": {"backbone": DINO3}},
    "ReverseDistillation": {"options": RESNET},
    "Stfpm": {},
    "SuperADD": {"options": {"backbone": DINO3, "patch_size": 64, "layers": [2, 5]}},
    "Supersimplenet": {"size": 128, "options": RESNET},
    "Uflow": {"options": RESNET | {"flow_steps": 1}},
}
"""Model -> its options beside `SMALL`"""
NOT_TRIED = {
    "AnomalyVFM": "its network is only on a hub",
    "CFM": "requires point clouds",
    "UniNet": "supports only Wide ResNet-50-2, which is too large here",
    "VlmAd": "calls a remote language model, and has no network",
    "WinClip": "does not train on images, and requires open_clip",
}
"""Model without a row -> reason"""


def measure(model: str, folder: Path) -> dict[str, Any]:
    """Train, save, export and compare one model; a failure becomes the reason in its row.

    Args:
        model: name of anomalib's class.
        folder: folder of images for the trainings that require one.
    """
    options = SMALL | {"model": model, "options": {}} | CASES[model]
    if model in FOLDERS:
        options["options"] = options["options"] | {FOLDERS[model][0]: str(folder)}
    row: dict[str, Any] = {"trained": False, "kept": False, "exported": False, "parity": None, "reason": ""}
    try:
        pl.seed_everything(0, verbose=False)
        detector = AnomalibModel(**options)
        begin = time.perf_counter()
        train_on(detector, draw_parts(24, seed=0))
        row |= {"trained": True, "seconds_fit": round(time.perf_counter() - begin, 1)}
        try:
            detector.calibrate([as_batch(draw_parts(20, seed=1), name="")], alpha=0.1, guarantee="expected")
        except CalibrationError:
            row["reason"] = "with random weights all images score alike; parity is in units of that score"
            with torch.no_grad():
                raw = detector(draw_parts(1, seed=1))
            detector.calibration.scale_score.copy_(raw.score[0])
            detector.calibration.scale_map.copy_(raw.anomaly_map.max())
        loaded = AnomalibModel(**options).eval()
        loaded.load_state_dict(load_tensors(save_tensors(detector.state_dict())))
        images = [draw_parts(5, seed=2).numpy(), draw_defects(draw_parts(3, seed=3)).numpy()]
        images += [image for _, image in unusual_images()]
        with torch.no_grad():
            outputs = [detector(torch.from_numpy(image)) for image in images]
            row["kept"] = all(
                torch.equal(a, b) for a, b in zip(outputs[0], loaded(torch.from_numpy(images[0])), strict=True)
            )
            alone = detector(torch.from_numpy(images[0][:1]))
        row["alone"] = max(float((a - b[:1]).abs().max()) for a, b in zip(alone, outputs[0], strict=True))
        begin = time.perf_counter()
        graph = export_graph(detector).SerializeToString()
        row |= {"exported": True, "seconds_export": round(time.perf_counter() - begin, 1)}
        row["megabytes"] = round(len(graph) / 1e6, 1)
        row["parity"] = max(
            float(np.nan_to_num(relative_difference(a.numpy(), b), nan=np.inf).max())
            for image, trained in zip(images, outputs, strict=True)
            for a, b in zip(trained, score_bytes(graph, image), strict=True)
        )
    except (AnomalyError, RuntimeError) as error:
        row["reason"] = NOT_EXPORTED.get(model, "") or _first_line(str(error))
    return row


def _first_line(text: str) -> str:
    """First line of an error message; for the exporter, the first line below its summary."""
    return text.rpartition("## Exception summary")[2].strip().partition("\n")[0]


def main() -> None:
    """Measure the requested models, and write their rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--models", nargs="*", choices=[*CASES], default=[*CASES])
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    card = RunCard("benchmarks/anomalib_export.py", config={"models": arguments.models, "small": SMALL})
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        textures = Path(folder) / "textures"
        textures.mkdir()
        rng = np.random.default_rng(0)
        for n in range(8):
            for ending in ("png", "jpg"):
                cv2.imwrite(str(textures / f"{n}.{ending}"), rng.integers(0, 256, (140, 140, 3), dtype=np.uint8))
        for model in arguments.models:
            row = rows[model] = measure(model, Path(folder))
            parity = "-" if row["parity"] is None else f"{row['parity']:.1e}"
            print(f"{model:20} exported {row['exported']!s:5} parity {parity:8} {row['reason']}", flush=True)
    card.facts["result"] = {"models": rows, "not tried": NOT_TRIED}
    card.write(arguments.out)


if __name__ == "__main__":
    main()
