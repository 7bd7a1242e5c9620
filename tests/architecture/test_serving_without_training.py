"""Serving without the packages of training: refused imports, a real serving install, the oldest ONNX Runtime."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from anomaly.inference.difference import relative_difference
from anomaly.inference.scorer import OnnxScorer

pytestmark = pytest.mark.slow

REFUSED = (
    "torch", "torchvision", "pytorch_lightning", "lightning", "timm", "diffusers", "anomalib", "sklearn", "matplotlib",
    "scipy",
)  # fmt: skip

SERVE = f"""
import importlib.abc
import json
import sys


class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {REFUSED!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)


sys.meta_path.insert(0, Refuse())
from anomaly.commands.main import run
from anomaly.commands.serve import serve

model, category, list_, fitted_plate, bank, out = sys.argv[1:]
codes = [
    run(["score", model, f"{{category}}/test", "--out", f"{{out}}/rows.parquet", "--overlays", f"{{out}}/drawn"]),
    run(["calibrate", model, list_, "--out", f"{{out}}/new.onnx"]),
    run(["extend", bank, f"{{category}}/test/good", "--out", f"{{out}}/larger.onnx"]),
    run(["score", bank, f"{{category}}/test", "--run", f"{{out}}/night", "--evidence"]),
    run(["inspect", category, "--out", f"{{out}}/inspection.json"]),
    run(["evaluate", model, category, "--out", f"{{out}}/figures.json"]),
    run(["fit", category, "--out", f"{{out}}/run"]),
    run(["evaluate", fitted_plate, category, "--out", f"{{out}}/trained.json"]),
    run(["serve", f"{{out}}/none.onnx"]),
]
loaded = [name for name in {REFUSED!r} if name in sys.modules]
print(json.dumps({{"codes": codes, "loaded": loaded}}))
"""


def test_serving_side_runs_without_the_packages_of_training(
    model: Path, category: Path, fitted_plate: Path, bank_model: Path, tmp_path: Path
) -> None:
    calibration_images = json.loads((fitted_plate / "detector.json").read_text(encoding="utf-8"))["calibration_images"]
    (tmp_path / "good.txt").write_text("\n".join(calibration_images), encoding="utf-8")
    out = tmp_path / "out"
    arguments = [str(p) for p in (model, category, tmp_path / "good.txt", fitted_plate, bank_model, out)]
    told = subprocess.run([sys.executable, "-c", SERVE, *arguments], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout.splitlines()[-1]) == {"codes": [0, 0, 0, 0, 0, 0, 2, 2, 1], "loaded": []}
    for verb in ("fit", "evaluate"):
        assert f"`anomaly {verb}` needs " in told.stderr
    assert told.stderr.count("which is not installed: pip install anomaly[train]") == 2
    written = {p.name for p in out.iterdir()}
    assert {
        "rows.parquet",
        "drawn",
        "new.onnx",
        "new.certificate.json",
        "larger.onnx",
        "night",
        "inspection.json",
        "figures.json",
    } <= written
    figures = json.loads((out / "figures.json").read_text(encoding="utf-8"))["result"]
    assert figures["image"]["auroc"]["value"] == 1.0


@pytest.mark.skipif(
    "ANOMALY_SERVING_PYTHON" not in os.environ, reason="ANOMALY_SERVING_PYTHON names no serving install"
)
def test_serving_install_scores_as_this_one(model: Path, category: Path, tmp_path: Path) -> None:
    python, rows = os.environ["ANOMALY_SERVING_PYTHON"], tmp_path / "rows.csv"
    main = "import sys; from anomaly.commands.main import run; sys.exit(run(sys.argv[1:]))"
    options = ["--device", "cpu", "--out", str(rows)]
    told = subprocess.run(
        [python, "-c", main, "score", str(model), str(category / "test"), *options],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    scorer = OnnxScorer(model, device="cpu", num_threads=1)
    from anomaly.imaging.image_file import read_image

    with rows.open(encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    assert len(found) == 12
    for row in found:
        image = read_image(row["path"], white=scorer.metadata.white, max_pixels=10_000)
        here = scorer.score(image[None]).score
        assert relative_difference(here, np.array([float(row["score"])])).max() <= 1e-4


OLDEST = Path(os.environ.get("ANOMALY_OLDEST_ORT_PYTHON", ""))
BARE = """
import sys
import numpy, onnxruntime
folder = sys.argv[1]
with open(f"{folder}/model.onnx", "rb") as file:
    session = onnxruntime.InferenceSession(file.read(), providers=["CPUExecutionProvider"])
score, anomaly_map = session.run(["score", "anomaly_map"], {"image": numpy.load(f"{folder}/images.npy")})
numpy.savez(f"{folder}/said.npz", score=score, anomaly_map=anomaly_map)
print(onnxruntime.__version__)
"""


@pytest.mark.skipif(
    not OLDEST.is_file(), reason="ANOMALY_OLDEST_ORT_PYTHON names no python with the oldest ONNX Runtime"
)
def test_oldest_runtime_scores_as_this_one(model: Path, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 100, 70, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    told = subprocess.run([OLDEST, "-c", BARE, str(tmp_path)], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    here = OnnxScorer(model, device="cpu", num_threads=1).score(images)
    with np.load(tmp_path / "said.npz") as there:
        assert relative_difference(here.score, there["score"]).max() <= 1e-4
        assert relative_difference(here.anomaly_map, there["anomaly_map"]).max() <= 1e-4
