"""A graph with fixed shapes: one number and one size of images."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional

from anomaly.commands.main import run
from anomaly.errors import ImageError, UsageError
from anomaly.export.parity import verify
from anomaly.export.passes.static_shape import Fixed, fix, parse_fixed, triangle_weights
from anomaly.inference.artifact import calibration_tensors, load_graph
from anomaly.inference.difference import relative_difference
from anomaly.inference.scorer import OnnxScorer, score_bytes
from anomaly.scoring.pipeline import score_images
from anomaly.scoring.settings import DEFAULT_PRODUCT, Settings
from anomaly.scoring.sources import Item
from anomaly.system.processors import has_cuda_device

pytestmark = pytest.mark.slow

SIZE = Fixed(2, 72, 88)


def noise(*shape: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def bare(model: Path) -> onnx.ModelProto:
    graph = load_graph(model)
    del graph.metadata_props[:]
    return graph


@pytest.fixture
def fixed(fitted_plate: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model with fixed shapes, written by the verb."""
    monkeypatch.setattr("anomaly.export.model_file.export_graph", lambda detector: bare(model))
    out = tmp_path / "fixed" / "fixed.onnx"
    assert run(["export", str(fitted_plate), "--out", str(out), "--fixed", "2,72,88"]) == 0
    return out


@pytest.mark.parametrize("text", ["", "8", "8,900", "8,900,0", "8,900,900,3", "8,-1,900", "a,b,c", "8x900x900"])
def test_invalid_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"N,H,W, e\.g\. 8,900,900"):
        parse_fixed(text)
    assert parse_fixed("8, 600,900") == Fixed(8, 600, 900)


@pytest.mark.parametrize(("length", "target"), [(900, 256), (64, 64), (40, 64), (313, 100), (1, 7)])
def test_matrix_products_equal_the_antialiased_resize(length: int, target: int) -> None:
    x = torch.from_numpy(noise(1, 3, length, 5).astype(np.float32))
    expected = functional.interpolate(x, (target, 5), mode="bilinear", antialias=True, align_corners=False)
    found = torch.from_numpy(triangle_weights(length, target)) @ x
    assert float((found - expected).abs().max()) < 2e-3  # of 255


def test_fixed_graph_has_no_dynamic_size_and_no_antialiased_resize(model: Path) -> None:
    graph = bare(model)
    static = fix(graph, SIZE)
    onnx.checker.check_model(static, full_check=True)
    assert static.ir_version == 8
    assert [(o.domain, o.version) for o in static.opset_import] == [("", 18)]
    inferred = onnx.shape_inference.infer_shapes(static, strict_mode=True).graph
    for value in (*inferred.input, *inferred.output, *inferred.value_info):
        assert all(axis.HasField("dim_value") for axis in value.type.tensor_type.shape.dim), value.name
    assert not any(a.name == "antialias" and a.i for node in static.graph.node for a in node.attribute)
    assert not {"Shape", "Loop", "If"} & {node.op_type for node in static.graph.node}
    (first,) = (node for node in static.graph.node if "image" in node.input)
    assert first.op_type == "Cast"  # TensorRT does not transpose uint8
    assert calibration_tensors(static) == calibration_tensors(graph)
    images = noise(2, 72, 88, 3)
    a, b = (score_bytes(m.SerializeToString(), images) for m in (graph, static))
    assert relative_difference(a.score, b.score).max() < 1e-4
    assert relative_difference(a.anomaly_map, b.anomaly_map).max() < 1e-4


def test_scorer_pads_a_small_batch_and_splits_a_large_one(fixed: Path, model: Path) -> None:
    scorer, dynamic = (OnnxScorer(path, device="cpu", num_threads=1) for path in (fixed, model))
    assert scorer.metadata.fixed == [2, 72, 88]
    for num in range(1, 6):
        images = noise(num, 72, 88, 3, seed=num)
        a, b = dynamic.score(images), scorer.score(images)
        assert b.score.shape == (num,)
        assert relative_difference(a.score, b.score).max() < 1e-4
        assert relative_difference(a.anomaly_map, b.anomaly_map).max() < 1e-4
    with pytest.raises(ImageError, match=r"90×70 pixels, and this model is fixed to 88×72: .*without --fixed") as error:
        scorer.score(noise(1, 70, 90, 3))
    assert error.value.code == "unsupported_pixels"


def test_image_of_another_size_gives_an_error_row(fixed: Path, category: Path, tmp_path: Path) -> None:
    import cv2

    (tmp_path / "images").mkdir()
    for n, path in enumerate(sorted((category / "test/good").iterdir())[:3]):
        (tmp_path / "images" / f"{n}.png").write_bytes(path.read_bytes())
    cv2.imwrite(str(tmp_path / "images" / "9.png"), noise(50, 60, 3))
    out = tmp_path / "rows.csv"
    assert run(["score", str(fixed), str(tmp_path / "images"), "--out", str(out), "--device", "cpu"]) == 3
    with out.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == ["ok", "ok", "ok", "unsupported_pixels"]
    assert "60×50 pixels, and this model is fixed to 88×72" in rows[-1]["message"]


def test_parallel_batches_give_the_rows_of_sequential_batches(model: Path, category: Path) -> None:
    paths = [str(p) for p in sorted((category / "test").rglob("*.png"))]
    settings = Settings(threshold=1.0, batch_size=2, max_pixels=10_000, num_threads=2)
    rows = []
    for num in (1, 2):
        scorer = OnnxScorer(model, device="cpu", num_threads=1)
        scorer.num_in_flight = num
        rows.append(
            [
                one.row
                for one in score_images(
                    map(Item, paths), scorers={DEFAULT_PRODUCT: scorer}, settings=settings, seconds={}
                )
            ]
        )
    assert len(rows[0]) == 12
    assert rows[0] == rows[1]


def test_fixed_model_is_verified_and_profiled_at_its_own_size(
    fixed: Path, fitted_plate: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    certificate = verify(fitted_plate, model=fixed)
    assert certificate["fixed"] == [2, 72, 88]
    assert max(certificate["score"]["max"], certificate["map"]["max"]) < 1e-4
    assert set(certificate["by_input"]) == {
        "calibration",
        "random",
        "all black",
        "all white",
        "checkerboard of one pixel",
    }
    assert run(["profile", str(fixed), "--batch-sizes", "[1]", "--seconds", "0.01", "--device", "cpu"]) == 0
    assert "88×72 pixels" in capsys.readouterr().out


def test_fixed_model_can_be_recalibrated(fixed: Path, fresh_good: Path) -> None:
    assert run(["calibrate", str(fixed), str(fresh_good)]) == 0
    again = OnnxScorer(fixed, device="cpu", num_threads=1).metadata
    assert (again.fixed, again.calibration.num_images) == ([2, 72, 88], 12)


def test_size_other_than_the_images_is_refused(
    fitted_plate: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model.onnx"
    assert run(["export", str(fitted_plate), "--out", str(out), "--fixed", "4,100,88"]) == 2
    assert "a calibration image has 88×72 pixels, not 88×100" in capsys.readouterr().err
    assert not out.exists()


def test_fixed_shapes_with_int8(
    fitted_plate: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anomaly.export.model_file.export_graph", lambda detector: bare(model))
    out = tmp_path / "both.onnx"
    options = ["--fixed", "3,72,88", "--precision", "int8", "--max-auroc-loss", "0.2", "--max-flips", "0.5"]
    assert run(["export", str(fitted_plate), "--out", str(out), *options]) == 0
    scorer = OnnxScorer(out, device="cpu", num_threads=1)
    assert (scorer.metadata.precision, scorer.metadata.fixed) == ("int8", [3, 72, 88])
    certificate = json.loads((tmp_path / "both.certificate.json").read_text(encoding="utf-8"))
    assert certificate["num_int8"] == len(certificate["int8"]) > 0
    operators = [node.op_type for node in load_graph(out).graph.node]
    assert operators.count("QuantizeLinear") > 0
    assert "Shape" not in operators
    assert np.isfinite(scorer.score(noise(4, 72, 88, 3)).score).all()


@pytest.mark.gpu
@pytest.mark.skipif(not has_cuda_device(), reason="needs a GPU")
def test_cuda_graph_gives_the_scores_of_the_cpu(fixed: Path) -> None:
    cpu, cuda = (OnnxScorer(fixed, device=device, num_threads=1) for device in ("cpu", "cuda"))  # type: ignore[arg-type]
    assert cuda.num_in_flight == 1
    for seed in range(5):  # the first runs are captured, the last ones are replayed
        images = noise(2, 72, 88, 3, seed=seed)
        a, b = cpu.score(images), cuda.score(images)
        assert relative_difference(a.score, b.score).max() <= 1e-3
        assert relative_difference(a.anomaly_map, b.anomaly_map).max() <= 1e-3
