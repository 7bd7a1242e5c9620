from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from anomaly.errors import ModelError, OutputError, UsageError
from anomaly.inference.artifact import (
    CALIBRATION_TENSORS,
    CONTRACT,
    PREFIX,
    Metadata,
    calibration_tensors,
    graph_sha256,
    load_graph,
    read_metadata,
    set_calibration_tensors,
    write_model,
)
from anomaly.inference.golden import GOLDEN_SIDE, Golden, golden_image, golden_png
from anomaly.inference.scorer import OnnxScorer


def load(path: Path) -> OnnxScorer:
    return OnnxScorer(path, device="cpu", num_threads=1)


def metadata_of(path: Path) -> Metadata:
    return read_metadata(load_graph(path), name=path.name)


def edit(path: Path, change: Callable[[onnx.ModelProto], object]) -> None:
    """Change the graph of a model file and keep its metadata, like another program."""
    model = onnx.load(path)
    change(model)
    onnx.save(model, path)


def set_entry(model: onnx.ModelProto, key: str, value: str) -> None:
    next(p for p in model.metadata_props if p.key == PREFIX + key).value = value


def test_metadata_are_read_as_written(model: Path, tmp_path: Path) -> None:
    graph, metadata = load_graph(model), metadata_of(model)
    changed = dataclasses.replace(
        metadata, category='größe "8", 日本', config={"a": [1, 2.5, None, True], "b": {"c": "d"}}, roi="1,2,3,4"
    )
    write_model(tmp_path / "new" / "again.onnx", graph, changed)
    assert metadata_of(tmp_path / "new" / "again.onnx") == changed
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["again.onnx"]


def test_file_read_and_written_again_has_the_same_bytes(model: Path, tmp_path: Path) -> None:
    write_model(tmp_path / "again.onnx", load_graph(model), metadata_of(model))
    assert (tmp_path / "again.onnx").read_bytes() == model.read_bytes()


def test_metadata_describe_the_model(model: Path) -> None:
    metadata = metadata_of(model)
    assert (metadata.contract, metadata.kind, metadata.detector) == (CONTRACT, "detector", "autoencoder")
    assert (metadata.category, metadata.size, metadata.resize, metadata.white) == ("plate", [64, 64], "stretch", 255)
    assert metadata.config["epochs"] == 25
    record = metadata.calibration
    assert (record.num_images, record.num_part_groups, len(record.scores)) == (10, 10, 10)
    assert record.scores == sorted(record.scores)
    assert metadata.alpha == pytest.approx(1 / 11)
    assert set(metadata.image_stats) == {"brightness", "contrast", "sharpness", "colour"}
    assert {"python", "numpy", "onnx", "torch"} <= set(metadata.versions)
    assert (metadata.roi, metadata.fixed, metadata.tiling, metadata.labelled) == (None, [], None, None)


def test_hash_covers_the_graph_without_metadata(model: Path) -> None:
    graph = load_graph(model)
    stored = metadata_of(model).sha256
    set_entry(graph, "category", '"other"')
    assert graph_sha256(graph) == stored
    del graph.metadata_props[:]
    assert hashlib.sha256(graph.SerializeToString(deterministic=True)).hexdigest() == stored


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_file_cut_short_is_refused(model: Path, share: float) -> None:
    data = model.read_bytes()
    model.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ModelError, match=r"model\.onnx"):
        load(model)


@pytest.mark.parametrize("place", [0.2, 0.5, 0.8])
def test_damaged_bytes_are_refused(model: Path, place: float) -> None:
    data = bytearray(model.read_bytes())
    at = int(len(data) * place)
    data[at : at + 8] = bytes(b ^ 0x55 for b in data[at : at + 8])
    model.write_bytes(bytes(data))
    with pytest.raises(ModelError, match="copy it again"):
        load(model)


@pytest.mark.parametrize("content", [b"hello, I am a text file\n" * 20, b"\x89PNG\r\n\x1a\n" + bytes(100), bytes(1000)])
def test_file_of_another_kind_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "text.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"text\.onnx"):
        load(path)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("none.onnx", "the file does not exist"), ("", "this is a folder"), ("nul\0.onnx", "null byte")],
)
def test_missing_file_and_folder_are_refused(tmp_path: Path, name: str, reason: str) -> None:
    for path in (tmp_path / name, str(tmp_path / name)):
        with pytest.raises(ModelError, match=rf"no model at .* \(.*{reason}\): give an \.onnx file"):
            OnnxScorer(path)


@pytest.mark.parametrize("path", [None, 7, b"model.onnx", ["model.onnx"]])
def test_path_of_another_type_is_refused(path: object) -> None:
    for read in (load_graph, OnnxScorer):
        with pytest.raises(UsageError, match=rf"path is {type(path).__name__} .*: give a path as str or pathlib\.Path"):
            read(path)  # type: ignore[arg-type]


def test_foreign_model_is_refused(tmp_path: Path) -> None:
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", "h", "w", 3])
    score = helper.make_tensor_value_info("score", TensorProto.FLOAT, ["n", "h", "w", 3])
    cast = helper.make_node("Cast", ["image"], ["score"], to=TensorProto.FLOAT)
    graph = helper.make_graph([cast], "foreign", [image], [score])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), tmp_path / "foreign.onnx")
    with pytest.raises(ModelError, match="was not exported by this package"):
        load(tmp_path / "foreign.onnx")


def test_external_data_is_refused(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "two"
    folder.mkdir()
    onnx.save(onnx.load(model), folder / "model.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    assert (folder / "weights").is_file()
    with pytest.raises(ModelError, match="tensors in other files"):
        load(folder / "model.onnx")


@pytest.mark.parametrize("contract", ["2", "0", '"1"', "null"])
def test_another_contract_is_refused(model: Path, contract: str) -> None:
    edit(model, lambda m: set_entry(m, "contract", contract))
    with pytest.raises(ModelError, match=r"follows contract .*; this version reads contract 3: export it again"):
        load(model)


def test_changed_weight_is_refused(model: Path) -> None:
    def change(m: onnx.ModelProto) -> None:
        tensor = next(t for t in m.graph.initializer if t.name == "network.head.bias")
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + np.float32(1e-6), tensor.name))

    edit(model, change)
    with pytest.raises(ModelError, match="is not the exported graph: its hash is"):
        load(model)


def test_moved_threshold_is_refused(model: Path) -> None:
    """A larger scale would accept defects: the hash of the graph covers the calibration too."""
    edit(model, lambda m: set_calibration_tensors(m, calibration_tensors(m) | {"scale_score": 99.0}))
    with pytest.raises(ModelError, match="is not the exported graph"):
        load(model)


@pytest.mark.parametrize(("field", "name"), [("score", "score"), ("map_maximum", "map's maximum")])
def test_golden_image_with_another_score_is_refused(model: Path, field: str, name: str) -> None:
    metadata = metadata_of(model)
    stored = getattr(metadata.golden, field)
    for moved, refused in ((stored + 2e-3 * max(1, abs(stored)), True), (stored + 1e-4, False)):
        golden = dataclasses.replace(metadata.golden, **{field: moved})
        write_model(model, load_graph(model), dataclasses.replace(metadata, golden=golden))
        if refused:
            with pytest.raises(ModelError, match=f"does not score its golden image .*: {name} is"):
                load(model)
        else:
            load(model)


@pytest.mark.parametrize("png", ["", "aGVsbG8=", "a", "iVBORw0KGgo="])
def test_damaged_golden_image_is_refused(model: Path, png: str) -> None:
    metadata = metadata_of(model)
    golden = Golden(png, metadata.golden.score, metadata.golden.map_maximum)
    write_model(model, load_graph(model), dataclasses.replace(metadata, golden=golden))
    with pytest.raises(ModelError, match="golden image in the model's metadata is damaged"):
        load(model)


@pytest.mark.parametrize(("key", "value"), [("calibration", "{}"), ("golden", "[]"), ("size", "[64,"), ("alpha", "")])
def test_damaged_metadata_is_refused(model: Path, key: str, value: str) -> None:
    edit(model, lambda m: set_entry(m, key, value))
    with pytest.raises(ModelError, match="damaged metadata"):
        load(model)


def test_missing_metadata_is_refused(model: Path) -> None:
    def change(m: onnx.ModelProto) -> None:
        kept = [p for p in m.metadata_props if p.key != f"{PREFIX}white"]
        del m.metadata_props[:]
        m.metadata_props.extend(kept)

    edit(model, change)
    with pytest.raises(ModelError, match=r"damaged metadata .*white"):
        load(model)


def test_golden_image_is_lossless_and_small() -> None:
    small = np.random.default_rng(0).integers(0, 256, (40, GOLDEN_SIDE, 3), dtype=np.uint8)
    assert np.array_equal(golden_image(Golden(golden_png(small), 0.0, 0.0)), small)
    for height, width, expected in ((960, 480, (96, 48, 3)), (1, 2000, (1, 96, 3)), (500, 501, (96, 96, 3))):
        large = np.full((height, width, 3), (10, 20, 30), dtype=np.uint8)
        found = golden_image(Golden(golden_png(large), 0.0, 0.0))
        assert found.shape == expected
        assert (found == (10, 20, 30)).all()


def test_calibration_tensors_can_be_read_and_set(model: Path) -> None:
    graph = load_graph(model)
    values = {"offset_score": 0.5, "scale_score": 2.0, "offset_map": -1.25, "scale_map": 3.0}
    assert set(calibration_tensors(graph)) == set(CALIBRATION_TENSORS) == set(values)
    set_calibration_tensors(graph, values)
    assert calibration_tensors(graph) == values
    kept = [t for t in graph.graph.initializer if t.name != "calibration.offset_map"]
    del graph.graph.initializer[:]
    graph.graph.initializer.extend(kept)
    with pytest.raises(ModelError, match=r"no tensor 'calibration\.offset_map'"):
        calibration_tensors(graph)


def test_path_below_a_file_is_an_output_error(model: Path) -> None:
    with pytest.raises(OutputError, match=r"new\.onnx cannot be written: "):
        write_model(model / "below" / "new.onnx", load_graph(model), metadata_of(model))
