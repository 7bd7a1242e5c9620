"""The detector and the sampler of the tutorials are short and valid, from the folder of images to the verdict."""

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
from anomaly.testing import check_detector, check_sampler
from tests.docs.pages import ROOT, python_blocks, read

pytestmark = pytest.mark.slow

DETECTOR_PAGE = ROOT / "docs" / "tutorials" / "own-detector.md"
SAMPLER_PAGE = ROOT / "docs" / "tutorials" / "own-sampler.md"
MAX_CODE, MAX_PAGE = 65, 130
"""Lines of the class, and of the whole page"""


def write_module(page: Path, name: str, *, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write the code of a page as a module that can be imported."""
    (code,) = python_blocks(page)
    path = folder / f"{name}.py"
    path.write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, name, raising=False)
    return path


@pytest.fixture
def my_detector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The detector of the tutorial, in a separate folder."""
    return write_module(DETECTOR_PAGE, "my_detector", folder=tmp_path, monkeypatch=monkeypatch)


@pytest.fixture
def my_sampler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The sampler of the tutorial, in a separate folder."""
    return write_module(SAMPLER_PAGE, "my_sampler", folder=tmp_path, monkeypatch=monkeypatch)


@pytest.mark.parametrize("page", [DETECTOR_PAGE, SAMPLER_PAGE], ids=lambda page: page.stem)
def test_code_is_short(page: Path) -> None:
    (code,) = python_blocks(page)
    assert len(code.splitlines()) <= MAX_CODE
    assert len(read(page).splitlines()) <= MAX_PAGE
    assert max(len(line) for line in code.splitlines()) <= 120


def test_detector_keeps_the_contract(my_detector: Path) -> None:
    module = importlib.import_module("my_detector")
    assert Path(module.__file__ or "") == my_detector
    (call,) = re.findall(r"check_detector\((\w+), options=({.*?})\)", read(DETECTOR_PAGE))
    check_detector(getattr(module, call[0]), options=json.loads(call[1].replace("'", '"')))


def test_sampler_keeps_the_contract(my_sampler: Path) -> None:
    module = importlib.import_module("my_sampler")
    assert Path(module.__file__ or "") == my_sampler
    (call,) = re.findall(r"check_sampler\((\w+), options=({.*?})\)", read(SAMPLER_PAGE))
    check_sampler(getattr(module, call[0]), options=json.loads(call[1].replace("'", '"')))


def test_detector_leads_from_images_to_verdicts(my_detector: Path, category: Path) -> None:
    folder = my_detector.parent
    (detector,) = re.findall(r"--detector (\S+:\S+)", read(DETECTOR_PAGE))
    fitted = folder / "fitted"
    assert run(["fit", str(category), "--detector", detector, "--out", str(fitted), "--model.size", "64"]) == 0
    assert run(["export", str(fitted)]) == 0
    assert run(["verify", str(fitted)]) == 0
    model = str(fitted / "model.onnx")
    assert run(["evaluate", model, str(category), "--out", str(folder / "figures.json")]) == 0
    figures = json.loads((folder / "figures.json").read_text(encoding="utf-8"))["result"]
    assert figures["image"]["auroc"]["value"] == 1.0
    assert run(["score", model, str(category / "test"), "--out", str(folder / "scores.csv")]) == 0
    assert scratches_are_defects(folder / "scores.csv")


def test_sampler_leads_from_images_to_drawn_images_and_verdicts(my_sampler: Path, category: Path) -> None:
    folder = my_sampler.parent
    (sampler,) = re.findall(r"--detector (\S+:\S+)", read(SAMPLER_PAGE))
    fitted = folder / "fitted"
    assert run(["fit", str(category), "--detector", sampler, "--out", str(fitted), "--model.size", "32"]) == 0
    assert run(["export", str(fitted)]) == 0
    assert run(["verify", str(fitted)]) == 0
    assert run(["sample", str(fitted / "sampler.onnx"), "--out", str(folder / "drawn"), "--num", "4"]) == 0
    assert len(list((folder / "drawn").glob("*.png"))) >= 4
    assert run(["score", str(fitted / "model.onnx"), str(category / "test"), "--out", str(folder / "scores.csv")]) == 0
    assert scratches_are_defects(folder / "scores.csv")


def scratches_are_defects(table: Path) -> bool:
    """Whether every scratched image has the verdict `defect`."""
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {row["verdict"] for row in rows if "scratch" in row["path"]} == {"defect"}


def test_command_finds_a_module_by_the_path_of_python(my_detector: Path) -> None:
    console = Path(sys.executable).with_name("anomaly")
    output = subprocess.run(
        [console, "fit", "--detector", "my_detector:PlaceGaussian", "--help"],
        capture_output=True, text=True, check=False, cwd=my_detector.parent, env={"PYTHONPATH": "."},
    )  # fmt: skip
    assert output.returncode == 0, output.stderr
    assert "--model.cell" in output.stdout
