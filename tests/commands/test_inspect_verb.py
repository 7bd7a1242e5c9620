"""The verb `inspect`: its text, its file and its exit code."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from anomaly.commands.inspect import format_inspection
from anomaly.commands.main import run
from anomaly.data.inspection import inspect
from anomaly.imaging.image_file import write_png


def make_images(folder: Path, *, num: int, depth: str = "uint8") -> Path:
    """Write random images of 12 × 16 pixels."""
    folder.mkdir(parents=True)
    for i in range(num):
        highest = 256 if depth == "uint8" else 1024
        write_png(folder / f"{i:03}.png", np.random.default_rng(i).integers(0, highest, (12, 16)).astype(depth))
    return folder


def test_verb_prints_the_inspection_and_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = make_images(tmp_path / "part", num=30)
    assert run(["inspect", str(data), "--part-group", r"\d+", "--out", str(tmp_path / "found.json")]) == 0
    text = capsys.readouterr().out
    assert text == format_inspection(inspect(data, part_group=r"\d+")) + "\n"
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert found["result"] == json.loads(json.dumps(inspect(data, part_group=r"\d+").to_dict()))


def test_text_has_a_table_the_split_and_the_findings(tmp_path: Path) -> None:
    lines = format_inspection(inspect(make_images(tmp_path / "part", num=30))).splitlines()
    assert lines[0].startswith("part  (")
    assert lines[1].split() == ["train", "test"]
    assert lines[2].split() == ["images", "30", "good", "none"]
    assert "part groups   30, the largest of 1" in lines
    assert "split         20 for training, 10 for calibration, in 10 groups" in lines
    rates = "9.09% with --calibration split, 3.23% with --calibration leave_one_out"
    assert f"guarantee     smallest expected rate of false alarms: {rates}" in lines
    assert lines[-1] == "ready for training"


def test_text_names_the_calibration_images_of_the_data_set(tmp_path: Path) -> None:
    make_images(tmp_path / "part/train/good", num=20)
    make_images(tmp_path / "part/validation/good", num=10)
    assert format_inspection(inspect(tmp_path / "part")).splitlines()[1].split() == [
        "train",
        "calibration",
        "images",
        "test",
    ]


def test_text_names_the_white_value_of_16_bit_images(tmp_path: Path) -> None:
    assert "white         1023" in format_inspection(inspect(make_images(tmp_path / "part", num=3, depth="uint16")))


def test_set_with_an_error_is_not_ready(tmp_path: Path) -> None:
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "a.png").touch()
    text = format_inspection(inspect(tmp_path / "part"))
    assert "none" in text
    assert "ready for training" not in text
    assert "error     1 files cannot be used" in text


def test_missing_folder_exits_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(tmp_path / "gone")]) == 1
    assert "gone does not exist; give a folder" in capsys.readouterr().err
