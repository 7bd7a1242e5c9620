"""`calibrate --part-group`: the guarantee of new good images counts parts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from anomaly.commands.main import run
from anomaly.errors import CalibrationError, DataError, UsageError
from anomaly.imaging.image_file import write_png
from anomaly.inference.scorer import OnnxScorer
from anomaly.recalibration.recalibrate import recalibrate
from tests.plates import draw_part

EXPRESSION = r"part\d+"


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    """Four frames of each of ten parts."""
    folder = tmp_path / "frames"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for part in range(10):
        image = draw_part(4000 + part)
        for frame in range(4):
            noise = rng.integers(-2, 3, image.shape)
            write_png(folder / f"part{part:02d}_{frame}.png", np.clip(image + noise, 0, 255).astype(np.uint8))
    return folder


def load(path: Path) -> OnnxScorer:
    return OnnxScorer(path, device="cpu", num_threads=1)


def test_guarantee_of_new_images_counts_part_groups(
    model: Path, frames: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["calibrate", str(model), str(frames), "--part-group", EXPRESSION]) == 0
    assert "(split, 40 images of 10 part groups)" in capsys.readouterr().out
    scorer = load(model)
    record = scorer.metadata.calibration
    assert (record.num_images, record.num_part_groups, record.group_sizes) == (40, 10, [4] * 40)
    assert scorer.metadata.alpha == pytest.approx(1 / 11)
    certificate = json.loads(model.with_suffix(".certificate.json").read_text(encoding="utf-8"))
    assert (certificate["num_images"], certificate["num_part_groups"]) == (40, 10)
    assert certificate["construction"] == "split"
    assert certificate["rates"] == [], "ten parts certify neither 1, 2 nor 5 %"
    # the p-value of a rejected image counts parts
    assert scorer.calibration.p_values(np.array([2.0]))[0] == pytest.approx(1 / 11)


def test_without_part_groups_the_guarantee_counts_images(model: Path, frames: Path) -> None:
    result = recalibrate(model, good=frames)
    assert load(model).metadata.calibration.group_sizes == []
    assert (result.certificate["num_part_groups"], result.certificate["alpha"]) == (40, pytest.approx(1 / 41))
    assert [point["alpha"] for point in result.certificate["rates"]] == [0.05]


def test_table_of_groups_and_list_of_images(model: Path, frames: Path, tmp_path: Path) -> None:
    names = sorted(path.name for path in frames.iterdir())
    table = tmp_path / "groups.csv"
    table.write_text("path,group\n" + "".join(f"{name},{name[:6]}\n" for name in names), encoding="utf-8")
    listed = tmp_path / "list.txt"
    listed.write_text("\n".join(str(frames / name) for name in names), encoding="utf-8")
    for good in (frames, listed, frames.as_posix() + "/*.png"):
        certificate = recalibrate(model, good=good, part_group=str(table), out=tmp_path / "new.onnx").certificate
        assert certificate["num_part_groups"] == 10


def test_invalid_part_groups_leave_the_file(model: Path, frames: Path) -> None:
    before = model.read_bytes()
    with pytest.raises(CalibrationError, match="one part group"):
        recalibrate(model, good=frames, part_group="part")
    with pytest.raises(CalibrationError, match="of 10 good parts cannot bound"):
        recalibrate(model, good=frames, part_group=EXPRESSION, alpha=0.05)
    with pytest.raises(DataError, match="gives no group to 40 of 40 images"):
        recalibrate(model, good=frames, part_group="lot")
    with pytest.raises(UsageError, match="groups new images"):
        recalibrate(model, labels="run.labels.csv", part_group=EXPRESSION)
    assert model.read_bytes() == before


def test_outliers_among_new_images_are_named(model: Path, frames: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = draw_part(4999)
    image[10:30, 10:30] = 255 - image[10:30, 10:30]
    write_png(frames / "part99_odd.png", image)
    assert run(["calibrate", str(model), str(frames)]) == 0
    assert "WARNING: 1 calibration image scores far above the rest: part99_odd.png." in capsys.readouterr().err
    certificate = json.loads(model.with_suffix(".certificate.json").read_text(encoding="utf-8"))
    assert certificate["outliers"]["names"] == ["part99_odd.png"]
    assert certificate["outliers"]["threshold_without"] < 0.9
