"""New good images in the bank of an exported file, without torch, and the refusals that lose nothing."""

from __future__ import annotations

import json
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from anomaly.commands.main import run
from anomaly.errors import AnomalyError, DataError, ModelError, UsageError
from anomaly.imaging.image_file import read_image, write_png
from anomaly.inference.artifact import load_graph, read_metadata
from anomaly.inference.bank import BankFile
from anomaly.inference.bank_record import BankRecord
from anomaly.inference.core_set import core_set
from anomaly.inference.references import references_path
from anomaly.inference.scorer import OnnxScorer
from anomaly.recalibration.extend import extend
from anomaly.recalibration.recalibrate import recalibrate
from anomaly.system.files import sha256_of
from tests.plates import draw_part

NUM_NEW = 8


@pytest.fixture
def new_good(tmp_path: Path) -> Path:
    """A folder of new good plates."""
    folder = tmp_path / "new"
    folder.mkdir()
    for n in range(NUM_NEW):
        write_png(folder / f"{n:03d}.png", draw_part(500 + n))
    return folder


def bank_of(path: Path) -> BankRecord:
    bank = read_metadata(load_graph(path), name=str(path)).bank
    assert bank is not None
    return bank


def test_new_images_join_the_bank_and_calibrate_without_themselves(
    bank_model: Path, new_good: Path, tmp_path: Path
) -> None:
    before, old = sha256_of(bank_model), bank_of(bank_model)
    result = extend(bank_model, new_good, out=tmp_path / "larger.onnx")
    assert sha256_of(bank_model) == before
    scorer, bank = OnnxScorer(result.path, device="cpu"), bank_of(result.path)
    metadata = scorer.metadata
    assert metadata.bank == bank
    assert len(metadata.training_hashes) == len(bank.images) == 24 + NUM_NEW
    assert bank.images[24:] == [f"new/{n:03d}.png" for n in range(NUM_NEW)]  # 000.png is in the bank already
    assert bank.raw_scores[:24] == pytest.approx(old.raw_scores, rel=1e-5)
    counts = Counter(bank.backbones[0].image)
    assert sum(counts.values()) == 100 + round(100 / 24 * NUM_NEW)
    assert set(counts) & set(range(24, 24 + NUM_NEW))
    record = metadata.calibration
    assert (record.construction, record.exact, record.num_images) == ("leave_one_out", False, 24 + NUM_NEW)
    num_groups = len(set(bank.part_groups))
    assert record.num_part_groups == num_groups > len(set(old.part_groups))
    assert record.scores == sorted(record.scores)
    larger = BankFile.open(result.path)
    own = [float(larger.score(draw_part(500 + n)[None], without=bank.members(24 + n)).score[0]) for n in range(NUM_NEW)]
    assert set(np.round(own, 3)) <= set(np.round(record.scores, 3))
    assert metadata.alpha == pytest.approx(1 / (num_groups + 1), rel=0.01)
    stored = json.loads(result.path.with_suffix(".certificate.json").read_text(encoding="utf-8"))
    assert stored == result.certificate
    assert (stored["num_earlier"], stored["num_earlier_scored_again"], stored["num_new"]) == (24, 0, NUM_NEW)
    assert "can only be too high" in stored["earlier_scores"]
    assert stored["previous_model"] == before
    assert stored["copies_left_out"] == []
    assert len(metadata.image_stats["brightness"]["values"]) == 24 + NUM_NEW
    assert str(tmp_path).encode() not in result.path.read_bytes()


def test_earlier_images_are_scored_again_where_they_are_given(
    bank_model: Path, new_good: Path, plain: Path, tmp_path: Path
) -> None:
    kept = extend(bank_model, new_good, out=tmp_path / "kept.onnx")
    again = extend(bank_model, new_good, out=tmp_path / "again.onnx", good=plain)
    assert again.certificate["num_earlier_scored_again"] == 24
    first, second = bank_of(kept.path), bank_of(again.path)
    assert first.backbones == second.backbones
    raw, lower = np.array(first.raw_scores), np.array(second.raw_scores)
    assert (lower[:24] <= raw[:24] + 1e-5).all()
    np.testing.assert_allclose(lower[24:], raw[24:], rtol=1e-5)


def test_copies_are_left_out_and_counted(bank_model: Path, new_good: Path, plain: Path, tmp_path: Path) -> None:
    (new_good / "same_bytes.png").write_bytes((plain / "003.png").read_bytes())
    ((most, _),) = Counter(bank_of(bank_model).backbones[0].image).most_common(1)
    name = f"{most:03d}.png"
    image = read_image(plain / name, white=255, max_pixels=10_000)
    cv2.imwrite(str(new_good / "same_pixels.bmp"), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    (new_good / "twice.png").write_bytes((new_good / "000.png").read_bytes())
    certificate = extend(bank_model, new_good, out=tmp_path / "larger.onnx").certificate
    assert certificate["num_new"] == NUM_NEW
    assert dict(certificate["copies_left_out"]) == {
        "same_bytes.png": "003.png",
        "same_pixels.bmp": name,
        "twice.png": "000.png",
    }


def test_number_of_rows_and_part_groups(bank_model: Path, new_good: Path, tmp_path: Path) -> None:
    result = extend(bank_model, new_good, out=tmp_path / "larger.onnx", rows=5)
    assert result.certificate["rows"] == {"banks.0.rows": [100, 105]}
    halves = extend(bank_model, new_good, out=tmp_path / "halves.onnx", part_group=r"0(0)\d")
    assert len(set(bank_of(halves.path).part_groups[24:])) == 1
    assert halves.certificate["num_part_groups"] == len(set(bank_of(bank_model).part_groups)) + 1


def test_extended_file_is_extended_again(bank_model: Path, new_good: Path, tmp_path: Path) -> None:
    first = extend(bank_model, new_good, out=tmp_path / "first.onnx").path
    more = tmp_path / "more"
    more.mkdir()
    for n in range(3):
        write_png(more / f"{n}.png", draw_part(700 + n))
    second = extend(first, more, out=tmp_path / "second.onnx")
    assert len(bank_of(second.path).images) == 24 + NUM_NEW + 3
    assert references_path(second.path).is_file()


def test_references_of_new_images_join_the_archive(bank_model: Path, new_good: Path, tmp_path: Path) -> None:
    result = extend(bank_model, new_good, out=tmp_path / "larger.onnx")
    assert result.references == references_path(result.path)
    with zipfile.ZipFile(result.references) as archive:
        numbers = {int(name.split(".")[0]) for name in archive.namelist()}
    assert numbers == set(bank_of(result.path).backbones[0].image)
    references_path(bank_model).unlink()
    assert extend(bank_model, new_good, out=tmp_path / "other.onnx").references is None


def test_images_of_another_size_are_allowed_and_counted(bank_model: Path, new_good: Path, tmp_path: Path) -> None:
    write_png(new_good / "large.png", cv2.resize(draw_part(900), (176, 144)))
    certificate = extend(bank_model, new_good, out=tmp_path / "larger.onnx").certificate
    assert certificate["sizes"] == {"88×72": NUM_NEW, "176×144": 1}


def deep(folder: Path) -> None:
    cv2.imwrite(str(folder / "deep.png"), draw_part(900).astype(np.uint16) * 257)


def damaged(folder: Path) -> None:
    (folder / "damaged.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")


def only_copies(folder: Path) -> None:
    for n, path in enumerate(sorted(folder.iterdir())):
        write_png(path, draw_part(n))


def nothing(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("spoil", "options", "error", "message"),
    [
        (deep, {}, DataError, "deep.png: 16 bits with values above 255"),
        (damaged, {}, DataError, "1 of 9 new images cannot be used, first: .*damaged.png"),
        (only_copies, {}, DataError, "all 8 new images are copies of images in the bank"),
        (nothing, {}, DataError, "new"),
        (None, {"rows": 0}, UsageError, "rows 0: give 1 or more"),
        (None, {"alpha": 0.001}, AnomalyError, "0.001"),
        (None, {"good": "new"}, DataError, "none of the 8 images in .*new is a training image"),
    ],
)
def test_refusals_keep_the_old_file(
    bank_model: Path, new_good: Path, tmp_path: Path, spoil: Any, options: dict[str, Any], error: Any, message: str
) -> None:
    if spoil is not None:
        spoil(new_good)
    if "good" in options:
        options = {"good": new_good}
    out = tmp_path / "larger.onnx"
    out.write_bytes(b"old")
    with pytest.raises(error, match=message):
        extend(bank_model, new_good, out=out, **options)
    assert out.read_bytes() == b"old"


def test_model_as_its_own_output_is_refused(bank_model: Path, new_good: Path) -> None:
    before = bank_model.read_bytes()
    with pytest.raises(UsageError, match="is the model itself"):
        extend(bank_model, new_good, out=bank_model.parent / ".." / bank_model.parent.name / "model.onnx")
    assert bank_model.read_bytes() == before


def test_models_without_an_extensible_bank_are_refused(
    model: Path, bank_model: Path, new_good: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="has no bank of patches"):
        extend(model, new_good, out=tmp_path / "larger.onnx")
    recalibrate(bank_model, good=new_good)
    with pytest.raises(ModelError, match="has a split calibration"):
        extend(bank_model, new_good, out=tmp_path / "larger.onnx")
    foreign = tmp_path / "foreign.onnx"
    foreign.write_bytes(b"not a model")
    with pytest.raises(ModelError):
        extend(foreign, new_good, out=tmp_path / "larger.onnx")


def test_verb_prints_numbers_and_guarantee(
    bank_model: Path, new_good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "larger.onnx"
    assert run(["extend", str(bank_model), str(new_good), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "24 + 8 good images, rows 100 -> 133" in printed
    assert "can only be too high" in printed
    assert out.with_suffix(".extend.run.json").is_file()
    assert run(["extend", str(bank_model), str(new_good), "--out", str(bank_model)]) == 2


def test_core_set_begins_with_given_centres() -> None:
    points = np.array([[0.0, 0.0], [1.0, 0.0], [10.0, 0.0], [11.0, 0.0]], np.float32)
    assert core_set(points, 1, seed=0, centres=points[:1]).tolist() == [3]
    assert core_set(points, 1, seed=0, centres=points[3:]).tolist() == [0]
