"""Provider options of each device, and bound buffers with the outputs of the session."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from anomaly.errors import OutputError
from anomaly.inference.artifact import INPUT, OUTPUTS, Precision
from anomaly.inference.difference import relative_difference
from anomaly.inference.io_binding import NUM_SHAPES, BufferPool, Buffers, page_locked
from anomaly.inference.scorer import OnnxScorer
from anomaly.inference.session import engine_cache, provider_options
from anomaly.system.processors import has_cuda_device


def noise(*shape: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def options(
    device: str, *, model: bytes = b"m", precision: Precision = "fp32", captured: bool = False
) -> dict[str, dict[str, str]]:
    return dict(provider_options(device, model=model, precision=precision, captured=captured))


def test_cpu_has_no_options() -> None:
    assert options("cpu") == {"CPUExecutionProvider": {}}


def test_cuda_uses_no_tf32_and_replays_only_fixed_graphs() -> None:
    assert list(options("cuda")) == ["CUDAExecutionProvider", "CPUExecutionProvider"]
    assert options("cuda")["CUDAExecutionProvider"] == {"use_tf32": "0"}
    fixed = options("cuda", captured=True)["CUDAExecutionProvider"]
    assert fixed == {"use_tf32": "0", "enable_cuda_graph": "1"}


def test_tensorrt_has_one_engine_for_each_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANOMALY_ENGINE_CACHE", str(tmp_path / "engines"))
    found = options("tensorrt", model=b"one")
    assert list(found) == ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    one = found["TensorrtExecutionProvider"]
    assert Path(one["trt_engine_cache_path"]).is_dir()
    assert Path(one["trt_engine_cache_path"]).parent == Path(one["trt_timing_cache_path"]) == tmp_path / "engines"
    assert one["trt_engine_cache_enable"] == one["trt_timing_cache_enable"] == "1"
    assert options("tensorrt", model=b"one")["TensorrtExecutionProvider"] == one
    # TensorRT names engines by the structure alone: files with other weights need another folder
    assert (
        options("tensorrt", model=b"two")["TensorrtExecutionProvider"]["trt_engine_cache_path"]
        != one["trt_engine_cache_path"]
    )
    assert "enable_cuda_graph" not in options("tensorrt", captured=True)["CUDAExecutionProvider"]
    assert options("tensorrt", captured=True)["TensorrtExecutionProvider"]["trt_cuda_graph_enable"] == "1"


@pytest.mark.parametrize(
    ("precision", "half", "integers"), [("fp32", "0", "0"), ("fp16", "1", "0"), ("int8", "0", "1")]
)
def test_engine_has_the_precision_of_the_file(
    precision: Precision, half: str, integers: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANOMALY_ENGINE_CACHE", str(tmp_path))
    found = options("tensorrt", precision=precision)["TensorrtExecutionProvider"]
    assert (found["trt_fp16_enable"], found["trt_int8_enable"]) == (half, integers)


def test_engine_cache_is_in_the_user_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANOMALY_ENGINE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert engine_cache() == tmp_path / "anomaly" / "tensorrt"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert engine_cache() == tmp_path / ".cache" / "anomaly" / "tensorrt"


def test_engine_cache_below_a_file_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ANOMALY_ENGINE_CACHE", str(tmp_path / "file"))
    with pytest.raises(OutputError, match="set another folder in ANOMALY_ENGINE_CACHE"):
        options("tensorrt")


@pytest.fixture
def session(model: Path) -> ort.InferenceSession:
    return ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])


def test_bound_buffers_give_the_outputs_of_the_session(session: ort.InferenceSession) -> None:
    images = [noise(3, 40, 50, 3, seed=seed) for seed in range(3)]
    buffers = Buffers(session, shape=(3, 40, 50, 3), device="cpu")
    outputs = [buffers.run(image) for image in images]  # earlier outputs must survive later runs
    for image, (score, anomaly_map) in zip(images, outputs, strict=True):
        expected = session.run(list(OUTPUTS), {INPUT: image})
        np.testing.assert_array_equal(score, expected[0])
        np.testing.assert_array_equal(anomaly_map, expected[1])
    strided = noise(3, 40, 100, 3)[:, :, ::2]
    np.testing.assert_array_equal(
        buffers.run(strided)[0], session.run([OUTPUTS[0]], {INPUT: np.ascontiguousarray(strided)})[0]
    )


def test_pool_keeps_buffers_of_the_latest_shapes(
    session: ort.InferenceSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[int, ...]] = []
    original = Buffers.__init__

    def counted(self: Buffers, session: ort.InferenceSession, *, shape: tuple[int, ...], device: str) -> None:
        made.append(shape)
        original(self, session, shape=shape, device=device)

    monkeypatch.setattr(Buffers, "__init__", counted)
    pool = BufferPool(session, device="cpu", num=1)
    for _ in range(3):
        pool.run(noise(1, 20, 20, 3))
    assert len(made) == 1
    for height in range(21, 21 + NUM_SHAPES):
        pool.run(noise(1, height, 20, 3))
    pool.run(noise(1, 20 + NUM_SHAPES, 20, 3))
    assert len(made) == 1 + NUM_SHAPES
    pool.run(noise(1, 20, 20, 3))  # its buffers were the least recently used
    assert len(made) == 2 + NUM_SHAPES


def test_no_page_locked_memory_without_a_gpu(session: ort.InferenceSession) -> None:
    assert page_locked(session, shape=(1, 4, 4, 3)) is None


@pytest.mark.gpu
@pytest.mark.skipif(not has_cuda_device(), reason="no GPU here")
def test_cuda_scores_like_the_cpu_over_several_batches(model: Path) -> None:
    cpu, cuda = (OnnxScorer(model, device=device, num_threads=1) for device in ("cpu", "cuda"))  # type: ignore[arg-type]
    assert cuda.num_in_flight == 2
    for seed, num in enumerate((4, 4, 2, 4)):
        images = noise(num, 80, 60, 3, seed=seed)
        a, b = cpu.score(images), cuda.score(images)
        assert relative_difference(a.score, b.score).max() <= 1e-3
        assert relative_difference(a.anomaly_map, b.anomaly_map).max() <= 1e-3
