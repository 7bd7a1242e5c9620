"""The exported file gives the outputs of the trained detector, and `verify` refuses one that does not."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import timm
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

import anomaly
from anomaly.commands.main import run
from anomaly.detectors.autoencoder import Autoencoder
from anomaly.detectors.base import Anomaly
from anomaly.errors import ModelError, OutputError, ParityError
from anomaly.export.detector import export_graph
from anomaly.export.model_file import export_model
from anomaly.export.parity import adversarial_inputs, compare, verify
from anomaly.export.passes.static_shape import Fixed, fix
from anomaly.imaging.image_file import write_png
from anomaly.inference.artifact import (
    CALIBRATION_TENSORS,
    calibration_tensors,
    graph_sha256,
    load_graph,
    read_metadata,
    write_model,
)
from anomaly.inference.difference import relative_difference
from anomaly.inference.golden import golden_image
from anomaly.inference.scorer import OnnxScorer, Scores, score_bytes
from anomaly.training.dataset import collate
from anomaly.training.fit import fit_model
from anomaly.training.fitted_model import load_fitted_model
from tests.plates import TINY, draw_part

pytestmark = pytest.mark.slow

SIZES = ((100, 90), (64, 64), (1, 1), (301, 47))
SMALL = TINY | {"epochs": 12}
FLOW = {
    "size": 64, "backbone": "resnet10t", "layers": [1, 2], "weights": "none", "num_steps": 2, "epochs": 1
}  # fmt: skip
REGION = "10,15,70,50"
CASES: dict[str, tuple[str, dict[str, Any], str | None]] = {
    "l2, letterbox, region": ("autoencoder", SMALL | {"score": "l2", "resize": "letterbox"}, REGION),
    "ssim": ("autoencoder", SMALL | {"score": "ssim"}, None),
    "msgms, letterbox, region": ("autoencoder", SMALL | {"score": "msgms", "resize": "letterbox"}, REGION),
    "ssim+msgms": ("autoencoder", SMALL | {"score": "ssim+msgms"}, None),
    "strided": ("autoencoder", SMALL | {"network": "strided", "score": "l2", "smooth": 1}, None),
    "flow, region": ("fastflow", FLOW, REGION),
    "flow, letterbox": ("fastflow", FLOW | {"resize": "letterbox", "conv3x3_only": False}, None),
}


def noise(*shape: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("case", CASES)
def test_exported_graph_agrees_for_every_batch_and_size(case: str, category: Path, tmp_path: Path) -> None:
    name, options, roi = CASES[case]
    detector = fit_model(category, out=tmp_path, detector=name, options=options, roi=roi).detector
    assert detector is not None
    share = np.linspace(0, 1, 20)  # share of noise: every measure varies
    images = [(1 - t) * draw_part(n) + t * noise(72, 88, 3, seed=n) for n, t in enumerate(share)]
    random = collate([(torch.from_numpy(image.astype(np.uint8)), str(n)) for n, image in enumerate(images)])
    detector.calibrate([random], alpha=0.1, guarantee="expected")
    exported_graph = export_graph(detector)
    graph = exported_graph.SerializeToString()
    fixed_graph = fix(exported_graph, Fixed(3, *SIZES[0])).SerializeToString()
    for height, width in SIZES:
        for num in range(1, 6):
            image = noise(num, height, width, 3, seed=num)
            with torch.no_grad():
                trained = detector(torch.from_numpy(image))
            exported = score_bytes(graph, image)
            assert exported.score.shape == (num,)
            assert exported.anomaly_map.shape == (num, 64, 64)
            assert exported.score.dtype == exported.anomaly_map.dtype == np.float32
            assert relative_difference(trained.score.numpy(), exported.score).max() < 1e-4
            assert relative_difference(trained.anomaly_map.numpy(), exported.anomaly_map).max() < 1e-4
            if (num, height, width) == (3, *SIZES[0]):
                fixed = score_bytes(fixed_graph, image)
                assert relative_difference(trained.score.numpy(), fixed.score).max() < 1e-4
                assert relative_difference(trained.anomaly_map.numpy(), fixed.anomaly_map).max() < 1e-4


def test_file_follows_the_contract(fitted_plate: Path, category: Path, tmp_path: Path) -> None:
    path = export_model(fitted_plate, out=tmp_path / "new" / "plate.onnx")
    assert [p.name for p in path.parent.iterdir() if p.suffix != ".json"] == ["plate.onnx"]
    model = load_graph(path)
    onnx.checker.check_model(model)
    assert model.ir_version == 8
    assert [(o.domain, o.version) for o in model.opset_import if o.domain == ""] == [("", 18)]
    assert [o.domain for o in model.opset_import if o.domain] == []
    data = path.read_bytes()
    for place in (fitted_plate, category, tmp_path, Path(anomaly.__file__).parent, Path(torch.__file__).parent):
        assert str(place).encode() not in data
    metadata = read_metadata(model, name="plate")
    assert (metadata.category, metadata.detector, metadata.size) == (category.name, "autoencoder", [64, 64])
    exported = OnnxScorer(path, device="cpu", num_threads=1)
    scores = exported.score(golden_image(metadata.golden)[None])
    assert scores.score[0] == pytest.approx(metadata.golden.score, abs=1e-5)


def test_equal_calibration_tensors_keep_their_names(fitted_plate: Path, model: Path) -> None:
    detector = load_fitted_model(fitted_plate).detector
    assert detector is not None
    buffers = {key: float(value) for key, value in detector.calibration.state_dict().items()}
    assert buffers["offset_score"] == buffers["offset_map"]  # the score is the map's maximum
    assert calibration_tensors(load_graph(model)) == buffers
    neutral = {key: float("scale" in key) for key in buffers}
    detector.calibration.load_state_dict({key: torch.tensor(value) for key, value in neutral.items()})
    graph = export_graph(detector)
    assert calibration_tensors(graph) == neutral
    assert set(CALIBRATION_TENSORS.values()) <= {t.name for t in graph.graph.initializer}
    assert detector.calibration.offset_score == 0  # unchanged: the export works on a copy


def test_verify_gives_the_certificate_and_writes_nothing(fitted_plate: Path, model: Path) -> None:
    certificate = verify(fitted_plate, model=model)
    assert sorted(model.parent.iterdir()) == [model]
    assert certificate["kind"] == "parity"
    assert certificate["provider"] == "CPUExecutionProvider"
    assert certificate["num_flips"] == 0
    assert certificate["rank_correlation"] > 0.999
    assert set(certificate["by_input"]) == {"calibration", *(name for name, _ in adversarial_inputs(seed=0, fixed=[]))}
    assert 0 < max(certificate["score"]["max"], certificate["map"]["max"]) < certificate["target"] == 1e-4


def test_verb_writes_the_certificate_and_prints_the_parity(
    fitted_plate: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["verify", str(fitted_plate), "--model", str(model)]) == 0
    assert "no verdict flips" in capsys.readouterr().out
    certificate = json.loads((model.parent / "model.certificate.json").read_text())
    assert certificate["kind"] == "parity"
    card = json.loads((model.parent / "model.verify.run.json").read_text())
    assert card["result"]["score"] == certificate["score"]


def shifted_mean(model: onnx.ModelProto) -> None:
    """Normalise the third channel with a mean that is one grey level too high."""
    (tensor,) = (t for t in model.graph.initializer if t.name == "preprocess.mean")
    value = onnx.numpy_helper.to_array(tensor).copy()
    value[0, 2] += 1.0
    tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))


def no_antialias(model: onnx.ModelProto) -> None:
    """Resize large images without the low-pass filter."""
    (node,) = (n for n in model.graph.node if n.op_type == "Resize" and any(a.name == "antialias" for a in n.attribute))
    for attribute in node.attribute:
        if attribute.name in ("antialias", "exclude_outside"):  # the second requires the first
            assert attribute.i == 1
            attribute.i = 0


@pytest.mark.parametrize("change", [shifted_mean, no_antialias])
def test_verify_refuses_a_graph_that_computes_something_else(
    fitted_plate: Path, model: Path, change: Callable[[onnx.ModelProto], None], capsys: pytest.CaptureFixture[str]
) -> None:
    graph = load_graph(model)
    metadata = read_metadata(graph, name="model")
    change(graph)
    del graph.metadata_props[:]
    scores = score_bytes(graph.SerializeToString(), golden_image(metadata.golden)[None])
    golden = dataclasses.replace(
        metadata.golden, score=float(scores.score[0]), map_maximum=float(scores.anomaly_map.max())
    )
    write_model(model, graph, dataclasses.replace(metadata, sha256=graph_sha256(graph), golden=golden))
    OnnxScorer(model, device="cpu", num_threads=1)  # complete, of this package, and consistent with its golden image
    with pytest.raises(ParityError, match=r"differs from the trained model by .* do not ship it"):
        verify(fitted_plate, model=model)
    assert run(["verify", str(fitted_plate), "--model", str(model)]) == 1
    assert "do not ship it" in capsys.readouterr().err
    certificate = json.loads((model.parent / "model.certificate.json").read_text())
    assert certificate["by_input"][certificate["worst_input"]]["map"] > certificate["refused_above"]


class FixedScorer:
    """Gives fixed scores."""

    def __init__(self, score: list[float], peak: float = 0.0) -> None:
        self._scores = Scores(np.array(score, dtype=np.float32), np.full((len(score), 2, 2), peak, dtype=np.float32))

    def score(self, image: NDArray[np.uint8]) -> Scores:
        return self._scores


def test_compare_counts_flips_and_treats_nan_as_the_worst() -> None:
    inputs = [("some", noise(3, 2, 2, 3))]
    same = compare(FixedScorer([0.5, 1.2, 4.0]), FixedScorer([0.5, 1.2, 4.0]), inputs)
    assert (same["score"]["max"], same["map"]["max"], same["num_flips"], same["num_images"]) == (0, 0, 0, 3)
    flipped = compare(FixedScorer([0.5, 1.0005, 1.01]), FixedScorer([0.6, 0.9995, 0.99]), inputs)
    assert flipped["num_flips"] == 1
    assert flipped["score"]["max"] == pytest.approx(0.1, abs=1e-6)
    large = compare(FixedScorer([0.5, 1.2, 400.0]), FixedScorer([0.5, 1.2, 404.0]), inputs)
    assert large["score"]["max"] == pytest.approx(0.01)
    assert large["worst_input"] == "some"
    assert (
        compare(FixedScorer([0.5, 1.2, 4.0]), FixedScorer([0.5, 1.2, 4.0], peak=np.nan), inputs)["map"]["max"] == np.inf
    )


def test_export_refuses_unreadable_and_unwritable_places(fitted_plate: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is not a fitted model"):
        export_model(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        export_model(fitted_plate, out=tmp_path / "file" / "model.onnx")
    copy = Path(shutil.copytree(fitted_plate, tmp_path / "run"))
    (copy / "model.onnx").unlink()
    with pytest.raises(ModelError, match="no model at"):
        verify(copy)


def test_file_holds_no_folder_of_its_machine(category: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = timm.create_model("resnet10t", pretrained=False, features_only=True, out_indices=(1,))
    weights, roi = tmp_path / "kept" / "resnet10t.made_up.safetensors", tmp_path / "kept" / "region.png"
    weights.parent.mkdir()
    save_file(network.state_dict(), weights)
    write_png(roi, np.full((72, 88, 3), 255, dtype=np.uint8))
    options = FLOW | {"layers": [1], "weights": str(weights)}
    fitted = fit_model(category, out=tmp_path / "fitted", detector="fastflow", options=options, roi=roi)
    data = export_model(fitted).read_bytes()
    assert weights.name.encode() in data
    assert roi.name.encode() in data
    for place in (tmp_path, category.parent, Path(anomaly.__file__).parent):
        assert str(place).encode() not in data
    weights.unlink()
    load_fitted_model(fitted.folder)  # the state holds the weights


class DataDependent(Autoencoder):
    """Chooses its computation by the input's values, which a graph cannot express."""

    def anomaly(self, x: Tensor) -> Anomaly:
        return super().anomaly(x if bool(x.sum() > 0) else -x)


def test_failed_export_gives_the_reason() -> None:
    detector = DataDependent(size=64, width=8)
    with pytest.raises(ModelError, match=r"DataDependent cannot be exported: .+; evaluate the fitted model"):
        export_graph(detector)
    detector.export_reason = "its computation depends on its input"
    with pytest.raises(ModelError, match="DataDependent cannot be exported: its computation depends on its input;"):
        export_graph(detector)


def test_file_of_another_fit_is_refused(plain: Path, model: Path, tmp_path: Path) -> None:
    other = fit_model(plain, out=tmp_path / "m", detector="autoencoder", options=TINY | {"epochs": 1, "width": 4})
    with pytest.raises(ParityError, match=r"was exported from another fit than .*: export it again"):
        verify(other, model=model)
