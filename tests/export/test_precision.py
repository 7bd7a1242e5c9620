"""Fewer bits: changes of the graph, the certificate, and refused files."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from safetensors import safe_open

from anomaly.commands.main import run
from anomaly.errors import ModelError, ParityError, UsageError
from anomaly.export import reduced_precision
from anomaly.export.acceptance import Bounds, check_bounds, compare_verdicts, draw_defects
from anomaly.export.parity import verify
from anomaly.export.passes import int8_selection
from anomaly.export.passes.half import learned_convolutions, to_half
from anomaly.export.passes.int8 import measure_ranges, quantise
from anomaly.export.reduced_precision import golden_tolerance, write_converted
from anomaly.imaging.image_file import read_image
from anomaly.inference.artifact import (
    PREFIX,
    Precision,
    calibration_tensors,
    graph_sha256,
    load_graph,
    read_metadata,
    write_model,
)
from anomaly.inference.difference import relative_difference
from anomaly.inference.scorer import OnnxScorer, Scores, score_bytes
from anomaly.recalibration.recalibrate import recalibrate
from anomaly.training.fitted_model import Description, load_fitted_model
from tests.plates import draw_part

pytestmark = pytest.mark.slow

WIDE = Bounds(auroc_loss=0.2, flips=0.5)
Image = NDArray[np.uint8]


@pytest.fixture(scope="module")
def description(fitted_plate: Path) -> Description:
    return load_fitted_model(fitted_plate).description


@pytest.fixture(scope="module")
def learned(fitted_plate: Path) -> frozenset[str]:
    with safe_open(fitted_plate / "detector.safetensors", "np") as state:
        return frozenset(name for name in state.keys() if name.startswith("network."))  # noqa: SIM118


def parts(num: int) -> Image:
    return np.stack([draw_part(500 + n) for n in range(num)])


def bare(model: Path) -> onnx.ModelProto:
    graph = load_graph(model)
    del graph.metadata_props[:]
    return graph


def convert(
    model: Path,
    out: Path,
    description: Description,
    learned: frozenset[str],
    *,
    precision: Precision,
    bounds: Bounds = WIDE,
) -> dict[str, Any]:
    return write_converted(
        model, bare(model), description=description, precision=precision, learned=learned, bounds=bounds, out=out
    )


@pytest.fixture(scope="module")
def converted(
    fitted_plate: Path, description: Description, learned: frozenset[str], tmp_path_factory: pytest.TempPathFactory
) -> dict[Precision, tuple[Path, dict[str, Any]]]:
    """The exported model in fp16 and int8, with certificates; read only."""
    folder, kept = tmp_path_factory.mktemp("converted"), {}
    for precision in ("fp16", "int8"):
        out = folder / f"{precision}.onnx"
        kept[precision] = out, convert(fitted_plate / "model.onnx", out, description, learned, precision=precision)
    assert sorted(p.name for p in folder.iterdir()) == ["fp16.onnx", "int8.onnx"]
    return kept


def test_nodes_between_learned_convolutions_are_half_precision(model: Path, learned: frozenset[str]) -> None:
    graph = bare(model)
    half = to_half(graph, learned=learned)
    onnx.checker.check_model(half, full_check=True)
    assert half.ir_version == 8
    assert [(o.domain, o.version) for o in half.opset_import] == [("", 18)]
    assert (half.graph.input[0], *half.graph.output) == (graph.graph.input[0], *graph.graph.output)
    types = {t.name: t.data_type for t in half.graph.initializer}
    assert {types[n.input[1]] for n in half.graph.node if n.op_type == "Conv"} == {TensorProto.FLOAT16}
    assert calibration_tensors(half) == calibration_tensors(graph)
    (resize,) = (
        n for n in half.graph.node if n.op_type == "Resize" and any(a.name == "antialias" and a.i for a in n.attribute)
    )
    assert not resize.input[0].endswith("_half")
    assert len(half.SerializeToString()) < 0.6 * len(graph.SerializeToString())
    images = parts(3)
    a, b = (score_bytes(m.SerializeToString(), images) for m in (graph, half))
    assert b.score.dtype == b.anomaly_map.dtype == np.float32
    assert 0 < relative_difference(a.anomaly_map, b.anomaly_map).max() < 0.1


def test_convolution_that_was_not_learned_stays_in_single_precision(model: Path, learned: frozenset[str]) -> None:
    graph = bare(model)
    first, *_, last = (n.input[1] for n in learned_convolutions(graph, learned))
    half = to_half(graph, learned=learned - {last})
    convolutions = {n.input[1]: n for n in half.graph.node if n.op_type in ("Conv", "ConvTranspose")}
    assert not convolutions[last].input[0].endswith("_half")
    assert first not in convolutions
    assert f"{first}_half" in convolutions
    with pytest.raises(UsageError, match="no learned convolution"):
        to_half(graph, learned={"other"})


def test_weight_beyond_the_range_of_half_precision_stays_in_single_precision(
    model: Path, learned: frozenset[str]
) -> None:
    graph = bare(model)
    name = learned_convolutions(graph, learned)[2].input[1]
    (tensor,) = (t for t in graph.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(np.full(tensor.dims, 1e6, dtype=np.float32), name))
    half = to_half(graph, learned=learned)
    assert sum(n.input[1] == name for n in half.graph.node if n.op_type == "Conv") == 1
    onnx.checker.check_model(half, full_check=True)


def test_only_chosen_convolutions_are_quantised(model: Path, learned: frozenset[str]) -> None:
    graph, images = bare(model), parts(4)
    names = [n.output[0] for n in learned_convolutions(graph, learned) if n.op_type == "Conv"]
    ranges = measure_ranges(graph, names, images=[image[None] for image in images])
    assert all(one.low <= 0 <= one.high for one in ranges.values())
    chosen = names[1:4]
    integer = quantise(graph, chosen, ranges=ranges)
    onnx.checker.check_model(integer)
    assert integer.ir_version == 8
    assert [(o.domain, o.version) for o in integer.opset_import] == [("", 18)]
    assert calibration_tensors(integer) == calibration_tensors(graph)
    values = {t.name: numpy_helper.to_array(t) for t in integer.graph.initializer}
    makers = {n.output[0]: n for n in integer.graph.node}
    weights = {t.name: numpy_helper.to_array(t) for t in graph.graph.initializer}
    found = 0
    for node in learned_convolutions(graph, learned):
        (twin,) = (n for n in integer.graph.node if n.op_type == node.op_type and n.name == node.name)
        maker = makers.get(twin.input[1])
        assert (maker is not None) == (node.output[0] in chosen)
        if maker is not None:
            bits, scale = (values[name] for name in maker.input[:2])
            assert bits.dtype == np.int8
            exact = weights[node.input[1]]
            worst = np.abs(bits * scale.reshape(-1, 1, 1, 1) - exact).reshape(len(exact), -1).max(axis=1)
            assert (worst <= 0.501 * scale).all()  # rounded to the nearest step of each output channel
            found += 1
    assert found == len(chosen)
    assert Counter(n.op_type for n in integer.graph.node)["QuantizeLinear"] <= 2 * len(chosen)
    a, b = (score_bytes(m.SerializeToString(), images) for m in (graph, integer))
    assert 0 < relative_difference(a.anomaly_map, b.anomaly_map).max() < 0.5


def test_convolution_with_large_rounding_errors_is_not_chosen(
    model: Path, learned: frozenset[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = bare(model)
    names = [n.output[0] for n in learned_convolutions(graph, learned) if n.op_type == "Conv"]
    fragile = names[len(names) // 2]

    def coarse(model: onnx.ModelProto, convolutions: Any, *, ranges: Any) -> onnx.ModelProto:
        made = quantise(model, convolutions, ranges=ranges)
        if fragile in convolutions:
            for tensor in made.graph.initializer:  # a scale that is 100 times too large
                if tensor.name == f"{inputs_of[fragile]}_scale":
                    tensor.CopyFrom(
                        numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(100), tensor.name)
                    )
        return made

    inputs_of = {n.output[0]: n.input[0] for n in graph.graph.node if n.op_type == "Conv"}
    monkeypatch.setattr(int8_selection, "quantise", coarse)
    good = list(parts(6))
    chosen = int8_selection.choose(
        graph,
        learned=learned,
        good=good,
        defects=[image for _, image in draw_defects(good, num_each=1, seed=0)][:6],
        report=lambda *_: None,
    )
    assert fragile not in chosen.convolutions
    assert chosen.convolutions
    assert chosen.num_candidates == len(names)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_converted_file_is_calibrated_through_its_own_graph(
    converted: dict[Precision, tuple[Path, dict[str, Any]]],
    precision: Precision,
    description: Description,
    fitted_plate: Path,
) -> None:
    path, certificate = converted[precision]
    scorer, reference = OnnxScorer(path, device="cpu", num_threads=1), fitted_plate / "model.onnx"
    assert (scorer.metadata.precision, certificate["precision"]) == (precision, precision)
    assert certificate["model"] == scorer.sha256
    images = [read_image(p, white=255, max_pixels=10_000) for p in description.calibration_images]
    scores = [float(scorer.score(image[None]).score[0]) for image in images]
    np.testing.assert_allclose(np.sort(scores), scorer.metadata.calibration.scores, atol=1e-4)
    assert float(np.median(scores)) == pytest.approx(0, abs=1e-4)
    assert max(scores) == pytest.approx(1 / (1 + 1e-3), abs=1e-4)
    assert calibration_tensors(load_graph(path)) != calibration_tensors(load_graph(reference))
    old = read_metadata(load_graph(reference), name="reference")
    assert scorer.metadata.image_stats == old.image_stats
    for name in ("source", "num_part_groups", "num_images"):
        assert getattr(scorer.metadata.calibration, name) == getattr(old.calibration, name)
    assert certificate["num_good"] == len(images)
    assert certificate["num_drawn_defects"] >= 40
    assert 0.5 < certificate["auroc_before"] <= 1
    assert certificate["auroc_before"] - certificate["auroc_after"] < 0.02
    assert certificate["score"]["max"] > 0
    assert scorer.metadata.golden.tolerance[scorer.provider] == golden_tolerance(certificate)
    assert json.loads(json.dumps(certificate)) == certificate


def test_ranges_come_from_training_images(
    model: Path, tmp_path: Path, description: Description, learned: frozenset[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Image] = []
    original = int8_selection.choose

    def spy(*arguments: Any, good: list[Image], **options: Any) -> Any:
        seen.extend(good)
        return original(*arguments, good=good, **options)

    monkeypatch.setattr(reduced_precision, "choose", spy)
    convert(model, tmp_path / "int8.onnx", description, learned, precision="int8")
    train = [read_image(p, white=255, max_pixels=10_000).tobytes() for p in description.train]
    assert len(seen) == reduced_precision.NUM_TRAINING_IMAGES
    assert {image.tobytes() for image in seen} <= set(train)


def test_refused_file_leaves_the_old_one(
    model: Path, description: Description, learned: frozenset[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, beside = model.read_bytes(), sorted(p.name for p in model.parent.iterdir())

    def broken(graph: onnx.ModelProto, *, learned: frozenset[str]) -> onnx.ModelProto:
        made = to_half(graph, learned=learned)
        for tensor in made.graph.initializer:  # steps of 1/8
            if tensor.data_type == TensorProto.FLOAT16 and len(tensor.dims) == 4:
                value = numpy_helper.to_array(tensor)
                tensor.CopyFrom(numpy_helper.from_array(np.rint(value * 8) / np.float16(8), tensor.name))
        return made

    monkeypatch.setattr(reduced_precision, "to_half", broken)
    with pytest.raises(ParityError, match=r"fp16 of .* loses too much: AUROC of drawn defects .* verdicts flip"):
        convert(model, model, description, learned, precision="fp16", bounds=Bounds(auroc_loss=0.003, flips=0.02))
    assert model.read_bytes() == before
    assert sorted(p.name for p in model.parent.iterdir()) == beside


class SequenceScorer:
    """Gives its scores one after the other."""

    def __init__(self, scores: list[float]) -> None:
        self._coming = iter(scores)

    def score(self, image: Image) -> Scores:
        return Scores(np.array([next(self._coming)], dtype=np.float32), np.zeros((1, 2, 2), dtype=np.float32))


def test_changed_verdicts_close_to_the_threshold_are_not_flips() -> None:
    good = list(parts(3))
    num = len(list(draw_defects(good, num_each=2, seed=0)))
    before = [0.0, 0.9995, 0.5] + [1.0005] + [2.0] * (num - 1)
    after = [0.0, 1.0005, 1.2] + [0.9] + [2.0] * (num - 2) + [0.4]
    both = [[SequenceScorer(scores)] * 3 for scores in (before, after)]
    found = compare_verdicts(*both, good=good, seed=0, report=lambda *_: None)
    assert (found["num_flips"], found["num_flips_of_good"], found["num_good"], found["num_drawn_defects"]) == (
        2,
        1,
        3,
        num,
    )
    assert found["share_of_flips"] == pytest.approx(2 / (3 + num))
    assert found["auroc_before"] == 1.0
    assert found["auroc_after"] < 1.0
    assert found["score"]["max_of_good"] == pytest.approx(0.7)
    for bounds in (Bounds(auroc_loss=1.0, flips=0.001), Bounds(auroc_loss=0.001, flips=1.0)):
        with pytest.raises(ParityError, match="loses too much"):
            check_bounds(found, bounds=bounds, name="it")
    check_bounds(found, bounds=Bounds(auroc_loss=1.0, flips=1.0), name="it")


def test_drawn_defects_depend_on_their_seed() -> None:
    good = list(parts(2))
    one, again, other = ([d.tobytes() for _, d in draw_defects(good, num_each=1, seed=seed)] for seed in (1, 1, 2))
    assert one == again != other


def test_golden_image_is_checked_with_the_tolerance_of_its_file(model: Path) -> None:
    graph, metadata = bare(model), read_metadata(load_graph(model), name="model")
    moved = metadata.golden.score + 0.01 * max(1, abs(metadata.golden.score))
    for tolerance, refused in (
        ({}, True),
        ({"CPUExecutionProvider": 0.02}, False),
        ({"CUDAExecutionProvider": 0.02}, True),
    ):
        golden = type(metadata.golden)(metadata.golden.png, moved, metadata.golden.map_maximum, tolerance)
        write_model(model, graph, type(metadata)(**(vars(metadata) | {"golden": golden})))
        if refused:
            with pytest.raises(ModelError, match="does not score its golden image"):
                OnnxScorer(model, device="cpu", num_threads=1)
        else:
            OnnxScorer(model, device="cpu", num_threads=1)


def test_file_without_optional_fields_is_read(model: Path) -> None:
    graph = onnx.load(model)
    kept = [p for p in graph.metadata_props if p.key not in (f"{PREFIX}precision", f"{PREFIX}fixed")]
    for entry in kept:
        if entry.key == f"{PREFIX}golden":
            entry.value = json.dumps({k: v for k, v in json.loads(entry.value).items() if k != "tolerance"})
    kept = [onnx.StringStringEntryProto(key=p.key, value=p.value) for p in kept]
    del graph.metadata_props[:]
    graph.metadata_props.extend(kept)
    onnx.save(graph, model)
    metadata = OnnxScorer(model, device="cpu", num_threads=1).metadata
    assert (metadata.precision, metadata.fixed, metadata.golden.tolerance) == ("fp32", [], {})
    assert metadata.sha256 == graph_sha256(load_graph(model))


def test_converted_file_can_be_verified_and_recalibrated(
    converted: dict[Precision, tuple[Path, dict[str, Any]]],
    fitted_plate: Path,
    category: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = Path(shutil.copy(converted["int8"][0], tmp_path / "int8.onnx"))
    certificate = verify(fitted_plate, model=path, max_auroc_loss=0.2, max_flips=0.5)
    assert certificate["precision"] == "int8"
    assert certificate["auroc_before"] == pytest.approx(converted["int8"][1]["auroc_before"], abs=1e-3)
    assert certificate["score"]["max"] > 0
    bounds = ["--max-auroc-loss", "0.2", "--max-flips", "0.5"]
    assert run(["verify", str(fitted_plate), "--model", str(path), *bounds]) == 0
    assert "int8, AUROC of drawn defects" in capsys.readouterr().out
    with pytest.raises(ParityError, match=r"int8 of .* loses too much"):
        verify(fitted_plate, model=path, max_auroc_loss=-1.0)
    tolerance = OnnxScorer(path, device="cpu", num_threads=1).metadata.golden.tolerance
    recalibrate(path, good=category / "test/good")
    again = OnnxScorer(path, device="cpu", num_threads=1).metadata
    assert (again.precision, again.golden.tolerance) == ("int8", tolerance)
    assert again.calibration.num_images == 6


def test_export_verb_writes_the_certificate_beside_the_file(
    fitted_plate: Path,
    model: Path,
    category: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("anomaly.export.model_file.export_graph", lambda detector: bare(model))
    out = tmp_path / "new" / "half.onnx"
    options = ["--precision", "fp16", "--max-auroc-loss", "0.2", "--max-flips", "0.5"]
    assert run(["export", str(fitted_plate), "--out", str(out), *options]) == 0
    assert "AUROC of drawn defects" in capsys.readouterr().out
    names = ["half.certificate.json", "half.export.run.json", "half.onnx"]
    assert sorted(p.name for p in out.parent.iterdir()) == names
    certificate = json.loads((out.parent / "half.certificate.json").read_text(encoding="utf-8"))
    assert certificate["kind"] == "precision"
    assert certificate["max_flips"] == 0.5
    assert run(["score", str(out), str(category / "test"), "--out", str(tmp_path / "rows.csv"), "--device", "cpu"]) == 0
    options = ["--height", "40", "--width", "40", "--batch-sizes", "[1]", "--seconds", "0.01", "--device", "cpu"]
    assert run(["profile", str(out), *options]) == 0
    assert "(fp16)" in capsys.readouterr().out
