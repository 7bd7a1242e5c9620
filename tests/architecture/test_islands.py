"""The one-way order of the imports, and the serving side without the packages of training."""

from __future__ import annotations

import ast
import csv
import graphlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import anomaly
from anomaly.inference.scorer import OnnxScorer, relative_difference

ROOT = Path(anomaly.__file__).resolve().parent

LAYERS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "ground": (
        (
            "anomaly", "anomaly.errors", "anomaly.image", "anomaly.image_header", "anomaly.tiff_tags", "anomaly.overlay",
            "anomaly.beta", "anomaly.calibration", "anomaly.options", "anomaly.progress", "anomaly.run_card",
            "anomaly.scoring.processors",
        ),
        (),
    ),
    "data": (("anomaly.data",), ("ground",)),
    "metrics": (("anomaly.metrics",), ("ground",)),
    "nn": (("anomaly.nn",), ("ground",)),
    "detectors": (("anomaly.detectors",), ("ground", "data", "nn")),
    "scoring": (("anomaly.scoring",), ("ground", "data")),
    "service": (("anomaly.service",), ("ground", "data", "scoring")),
    "deployment": (("anomaly.deployment",), ("ground", "data", "nn", "scoring", "service")),
    "sampling": (("anomaly.sampling",), ("ground", "data", "scoring")),
    "synthesis": (("anomaly.synthesis",), ("ground", "data", "sampling", "scoring")),
    "samplers": (("anomaly.samplers",), ("ground", "data", "nn", "detectors", "sampling")),
    "registry": (("anomaly.registry",), ("ground", "detectors", "samplers")),
    "arguments": (("anomaly.arguments",), ("ground", "registry")),
    "inspect": (("anomaly.inspect",), ("ground", "data")),
    "training": (
        ("anomaly.training", "anomaly.training_loop", "anomaly.run_folder", "anomaly.tiling"),
        ("ground", "data", "nn", "detectors", "registry", "scoring"),
    ),
    "evaluation": (
        ("anomaly.evaluation", "anomaly.detectability"),
        ("ground", "data", "metrics", "scoring"),
    ),
    "export": (
        (
            "anomaly.export", "anomaly.onnx_graph", "anomaly.parity", "anomaly.sampler_export", "anomaly.torch_scorer",
            "anomaly.conversion", "anomaly.graph_fixed", "anomaly.graph_folding", "anomaly.graph_half", "anomaly.graph_int8",
            "anomaly.int8_choice", "anomaly.precision_guard",
        ),
        ("ground", "data", "metrics", "detectors", "samplers", "sampling", "scoring", "training"),
    ),
    "report": (
        ("anomaly.report", "anomaly.report_charts", "anomaly.report_pictures", "anomaly.report_contents"),
        ("ground", "data", "metrics", "scoring", "training", "evaluation"),
    ),
    "testing": (
        ("anomaly.testing", "anomaly.trial"),
        ("ground", "data", "detectors", "scoring", "training", "export"),
    ),
    "benchmark": (
        ("anomaly.benchmark",),
        ("ground", "data", "metrics", "detectors", "scoring", "training", "evaluation", "export"),
    ),
    "demo": (
        ("anomaly.demo",),
        ("ground", "data", "nn", "scoring", "inspect", "training", "evaluation", "export", "report"),
    ),
    "cli": (("anomaly.cli",), ("ground", "arguments")),
}  # fmt: skip
"""Layer -> its modules (each with what is below it in a package), and the layers that it may import beside itself"""
DELIBERATE = {("anomaly.evaluation", "anomaly.torch_scorer")}
"""Inside a function, so that only the test of a run folder needs torch"""

REFUSED = (
    "torch", "torchvision", "pytorch_lightning", "lightning", "timm", "diffusers", "anomalib", "sklearn", "matplotlib",
    "scipy",
)  # fmt: skip


def modules() -> dict[str, ast.Module]:
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = ast.parse(path.read_text(encoding="utf-8"))
    return found


MODULES = modules()


def imports(tree: ast.AST) -> Iterator[str]:
    """Modules of this package that a module imports, in functions too; not what is there for the type checker alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.partition(".")[0] == "anomaly")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            if node.module and node.module.partition(".")[0] == "anomaly":
                names = [f"{node.module}.{alias.name}" for alias in node.names]
                yield from (name if name in MODULES else node.module for name in names)
        else:
            yield from imports(node)


def layer_of(module: str) -> str:
    """The layer whose entry is the longest that holds the module."""
    entries = [(len(entry), layer) for layer, (names, _) in LAYERS.items() for entry in names
               if module == entry or (entry != "anomaly" and module.startswith(f"{entry}."))]  # fmt: skip
    assert entries, f"{module} is in no layer: put it into LAYERS"
    return max(entries)[1]


@pytest.mark.parametrize("module", list(MODULES))
def test_module_imports_only_its_own_layer_and_those_below(module: str) -> None:
    layer = layer_of(module)
    for imported in imports(MODULES[module]):
        if (module, imported) not in DELIBERATE:
            below = layer_of(imported)
            assert below in (layer, *LAYERS[layer][1]), f"{module} ({layer}) imports {imported} ({below})"


def test_layers_have_an_order_and_name_modules_that_exist() -> None:
    tuple(graphlib.TopologicalSorter({layer: below for layer, (_, below) in LAYERS.items()}).static_order())
    assert {name for names, _ in LAYERS.values() for name in names} <= set(MODULES)
    assert all(pair[1] in set(imports(MODULES[pair[0]])) for pair in DELIBERATE)


def test_modules_import_one_another_in_no_circle() -> None:
    graph = {module: set(imports(tree)) for module, tree in MODULES.items()}
    tuple(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


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

model, category, list_, run_folder, out = sys.argv[1:]
codes = [
    run(["score", model, f"{{category}}/test", "--out", f"{{out}}/rows.parquet", "--overlays", f"{{out}}/drawn"]),
    run(["calibrate", model, list_, "--out", f"{{out}}/new.onnx"]),
    run(["inspect", category, "--out", f"{{out}}/inspection.json"]),
    run(["test", model, category, "--out", f"{{out}}/figures.json"]),
    run(["fit", category, "--out", f"{{out}}/run"]),
    run(["test", run_folder, category, "--out", f"{{out}}/trained.json"]),
    run(["serve", f"{{out}}/none.onnx"]),
]
loaded = [name for name in {REFUSED!r} if name in sys.modules]
print(json.dumps({{"codes": codes, "loaded": loaded}}))
"""


def test_serving_side_runs_without_the_packages_of_training(
    model: Path, category: Path, run_folder: Path, tmp_path: Path
) -> None:
    calibration_images = json.loads((run_folder / "detector.json").read_text(encoding="utf-8"))["calibration_images"]
    (tmp_path / "good.txt").write_text("\n".join(calibration_images), encoding="utf-8")
    out = tmp_path / "out"
    arguments = [str(p) for p in (model, category, tmp_path / "good.txt", run_folder, out)]
    told = subprocess.run([sys.executable, "-c", SERVE, *arguments], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout.splitlines()[-1]) == {"codes": [0, 0, 0, 0, 2, 2, 1], "loaded": []}
    for verb in ("fit", "test"):
        assert f"`anomaly {verb}` needs " in told.stderr
    assert told.stderr.count("which this install has not: pip install anomaly[train]") == 2
    written = {p.name for p in out.iterdir()}
    assert {"rows.parquet", "drawn", "new.onnx", "new.certificate.json", "inspection.json", "figures.json"} <= written
    figures = json.loads((out / "figures.json").read_text(encoding="utf-8"))["result"]
    assert figures["image"]["auroc"]["value"] == 1.0


@pytest.mark.skipif(
    "ANOMALY_SERVING_PYTHON" not in os.environ, reason="ANOMALY_SERVING_PYTHON names no serving install"
)
def test_serving_install_scores_as_this_one(model: Path, category: Path, tmp_path: Path) -> None:
    python, rows = os.environ["ANOMALY_SERVING_PYTHON"], tmp_path / "rows.csv"
    main = "import sys; from anomaly.cli import run; sys.exit(run(sys.argv[1:]))"
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
