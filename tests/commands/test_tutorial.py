"""The detector of the tutorial is a real one: short, sound, and the same from the folder of images to the verdict."""

from __future__ import annotations

import csv
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from anomaly.commands.main import run
from anomaly.testing.checks import check_detector

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "tutorials" / "own-detector.md").read_text(encoding="utf-8")
(CODE,) = re.findall(r"^```python\n(.*?)^```$", TEXT, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def my_detector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tutorial's file in a folder of its own, which can be imported from."""
    path = tmp_path / "my_detector.py"
    path.write_text(CODE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_detector", raising=False)
    return path


def test_code_is_short() -> None:
    assert len(CODE.splitlines()) <= 60
    assert len(TEXT.splitlines()) <= 110
    assert max(len(line) for line in TEXT.splitlines()) <= 130


def test_code_keeps_the_contract(my_detector: Path) -> None:
    module = importlib.import_module("my_detector")
    assert Path(module.__file__ or "") == my_detector
    (call,) = re.findall(r"check_detector\((\w+), options=({.*?})\)", TEXT)
    check_detector(getattr(module, call[0]), options=json.loads(call[1].replace("'", '"')))


def test_commands_lead_from_images_to_verdicts(my_detector: Path, category: Path) -> None:
    folder = my_detector.parent
    (detector,) = re.findall(r"--detector (\S+)", TEXT)
    fit = ["fit", str(category), "--detector", detector, "--out", str(folder / "run"), "--model.size", "64"]
    assert run(fit) == 0
    assert run(["export", str(folder / "run")]) == 0
    assert run(["verify", str(folder / "run")]) == 0
    model = str(folder / "run" / "model.onnx")
    assert run(["evaluate", model, str(category), "--out", str(folder / "figures.json")]) == 0
    figures = json.loads((folder / "figures.json").read_text(encoding="utf-8"))["result"]
    assert figures["image"]["auroc"]["value"] == 1.0
    assert run(["score", model, str(category / "test"), "--out", str(folder / "scores.csv")]) == 0
    with (folder / "scores.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["verdict"] for row in rows if "scratch" in row["path"]} == {"defect"}


def test_command_finds_the_file_by_the_path_of_python(my_detector: Path) -> None:
    console = Path(sys.executable).with_name("anomaly")
    told = subprocess.run(
        [console, "fit", "--detector", "my_detector:PlaceGaussian", "--help"],
        capture_output=True, text=True, check=False, cwd=my_detector.parent, env={"PYTHONPATH": "."},
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    assert "--model.cell" in told.stdout
