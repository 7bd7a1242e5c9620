from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

import anomaly
from anomaly.errors import ModelError, ProviderError, UsageError
from anomaly.evaluation.evaluate import evaluate
from anomaly.inference import session as session_module
from anomaly.inference.difference import relative_difference
from anomaly.inference.scorer import OnnxScorer, score_bytes
from anomaly.inference.session import Device
from anomaly.system.files import sha256_of
from anomaly.system.processors import has_cuda_device, num_cpus


def noise(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def load(path: Path, *, device: Device = "cpu", num_threads: int = 1) -> OnnxScorer:
    return OnnxScorer(path, device=device, num_threads=num_threads)


def test_file_follows_the_contract(model: Path) -> None:
    graph = onnx.load(model)
    onnx.checker.check_model(graph, full_check=True)
    assert graph.ir_version == 8
    assert [(o.domain, o.version) for o in graph.opset_import] == [("", 18)]
    (image,) = graph.graph.input
    assert (image.name, image.type.tensor_type.elem_type) == ("image", onnx.TensorProto.UINT8)
    dims = image.type.tensor_type.shape.dim
    assert all(d.dim_param and not d.HasField("dim_value") for d in dims[:3])
    assert dims[3].dim_value == 3
    score, anomaly_map = graph.graph.output
    assert (score.name, score.type.tensor_type.elem_type) == ("score", onnx.TensorProto.FLOAT)
    assert (anomaly_map.name, anomaly_map.type.tensor_type.elem_type) == ("anomaly_map", onnx.TensorProto.FLOAT)
    for output, rank in ((score, 1), (anomaly_map, 3)):
        assert len(output.type.tensor_type.shape.dim) == rank
        assert output.type.tensor_type.shape.dim[0].dim_param == dims[0].dim_param


def test_file_holds_no_path_of_this_machine(model: Path, category: Path) -> None:
    data = model.read_bytes()
    repository = Path(anomaly.__file__).resolve().parent.parent
    host = f"{platform.node():-<8}"  # padded: a shorter name could be a word in the graph
    for place in (str(repository), str(Path.home()) + "/", "/tmp", str(category), host):
        assert place.encode() not in data, place


@pytest.mark.parametrize("num_images", [1, 2, 3, 4, 5])
def test_any_number_of_images_is_scored(model: Path, num_images: int) -> None:
    scores = load(model).score(noise(num_images, 72, 88, 3))
    assert scores.score.shape == (num_images,)
    assert scores.anomaly_map.shape == (num_images, 64, 64)
    assert scores.score.dtype == scores.anomaly_map.dtype == np.float32
    np.testing.assert_allclose(scores.score, scores.anomaly_map.max(axis=(1, 2)), rtol=1e-5)


def test_any_size_is_scored(model: Path) -> None:
    scorer = load(model)
    for height, width in ((1, 1), (1, 40), (7, 3), (64, 64), (313, 217), (33, 701), (512, 512)):
        scores = scorer.score(noise(2, height, width, 3))
        assert scores.anomaly_map.shape == (2, 64, 64)
        assert np.isfinite(scores.score).all()
        assert np.isfinite(scores.anomaly_map).all()


def test_score_does_not_depend_on_the_batch(model: Path) -> None:
    scorer, images = load(model), noise(6, 80, 60, 3)
    together = scorer.score(images)
    for num_images in (1, 2, 5):
        parts = [scorer.score(images[at : at + num_images]) for at in range(0, 6, num_images)]
        score = np.concatenate([p.score for p in parts])
        anomaly_map = np.concatenate([p.anomaly_map for p in parts])
        assert relative_difference(together.score, score).max() <= 1e-5
        assert relative_difference(together.anomaly_map, anomaly_map).max() <= 1e-5


def test_score_does_not_depend_on_the_threads(model: Path) -> None:
    images = noise(3, 80, 60, 3)
    one, all_threads = load(model, num_threads=1).score(images), load(model, num_threads=0).score(images)
    assert relative_difference(one.score, all_threads.score).max() <= 1e-5
    assert relative_difference(one.anomaly_map, all_threads.anomaly_map).max() <= 1e-5


def test_bytes_score_like_the_file(model: Path) -> None:
    images = noise(2, 72, 88, 3)
    assert (
        relative_difference(score_bytes(model.read_bytes(), images).score, load(model).score(images).score).max()
        <= 1e-5
    )


def test_provider_is_the_requested_one(model: Path) -> None:
    scorer = load(model)
    assert (scorer.provider, scorer.device) == ("CPUExecutionProvider", "cpu")
    automatic = load(model, device="auto")
    assert automatic.device == ("cuda" if automatic.provider == "CUDAExecutionProvider" else "cpu")


@pytest.mark.skipif(has_cuda_device(), reason="there is a GPU here")
@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_missing_provider_is_an_error(model: Path, device: Device) -> None:
    with pytest.raises(ProviderError, match=rf"{device} was requested, but .*--device cpu"):
        load(model, device=device)


@pytest.mark.skipif(has_cuda_device(), reason="there is a GPU here")
def test_automatic_device_falls_back_to_the_cpu(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "has_cuda_device", lambda: True)
    assert load(model, device="auto").provider == "CPUExecutionProvider"


@pytest.mark.gpu
@pytest.mark.skipif(not has_cuda_device(), reason="no GPU here")
def test_cuda_scores_like_the_cpu(model: Path) -> None:
    images = noise(4, 80, 60, 3)
    cpu, cuda = load(model).score(images), load(model, device="cuda").score(images)
    assert relative_difference(cpu.score, cuda.score).max() <= 1e-3


def test_unknown_device_is_an_error(model: Path) -> None:
    with pytest.raises(UsageError, match="device 'gpu' is unknown: give auto, cpu, cuda or tensorrt"):
        load(model, device="gpu")  # type: ignore[arg-type]


@pytest.mark.parametrize("num_threads", [-1, 1.5, "2", None])
def test_invalid_number_of_threads_is_an_error(model: Path, num_threads: Any) -> None:
    with pytest.raises(UsageError, match=f"num_threads is {num_threads!r}: give a whole number"):
        load(model, num_threads=num_threads)


def test_path_alone_opens_a_model(model: Path) -> None:
    images = noise(1, 72, 88, 3)
    for path in (model, str(model)):
        scorer = OnnxScorer(path)
        assert scorer.path == model
        assert scorer.sha256 == sha256_of(model)
        assert relative_difference(scorer.score(images).score, load(model).score(images).score).max() <= 1e-3


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (None, "image is NoneType: give a NumPy array"),
        ([[0, 1]], "image is list: give a NumPy array"),
        (np.zeros((1, 8, 8, 3)), "image has the dtype float64: give uint8"),
        (np.zeros((1, 8, 8, 3), np.uint16), "image has the dtype uint16: give uint8"),
        (np.zeros((8, 8, 3), np.uint8), r"image has the shape \(8, 8, 3\): give \(n, H, W, 3\)"),
        (np.zeros((1, 8, 8, 4), np.uint8), r"image has the shape \(1, 8, 8, 4\): give .* without alpha"),
        (np.zeros((1, 8, 8), np.uint8), r"image has the shape \(1, 8, 8\): give"),
        (np.zeros((1, 0, 0, 3), np.uint8), r"image has the empty shape \(1, 0, 0, 3\): give at least one"),
        (np.zeros((0, 8, 8, 3), np.uint8), r"image has the empty shape \(0, 8, 8, 3\): give at least one"),
    ],
)
def test_invalid_images_are_refused(model: Path, image: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load(model).score(image)


def test_exported_model_scores_defects_above_good_images(category: Path, model: Path) -> None:
    figures = evaluate(model, category, device="cpu")
    assert figures.image.auroc.value == 1.0


def test_unsupported_graph_is_a_model_error(model: Path) -> None:
    graph = onnx.load(model)
    graph.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(ModelError, match="cannot load the exported graph on cpu"):
        score_bytes(graph.SerializeToString(), noise(1, 8, 8, 3))


def test_difference_is_relative_above_1_and_absolute_below_1() -> None:
    found = relative_difference(np.array([0.0, 0.5, -4.0, 10.0]), np.array([0.1, 0.4, -5.0, 10.0]))
    np.testing.assert_allclose(found, [0.1, 0.1, 0.25, 0.0])
    assert np.isnan(relative_difference(np.array([1.0]), np.array([np.nan]))).all()


def test_threads_are_within_the_processors_of_this_process() -> None:
    assert 1 <= num_cpus() <= (os.cpu_count() or 1)
