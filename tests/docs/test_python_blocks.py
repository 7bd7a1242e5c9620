"""The Python blocks of README and of the notebook tutorial run, with a small detector on small images."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import Any

import pytest

import anomaly
from tests.docs.pages import README, ROOT, python_blocks
from tests.plates import TINY

pytestmark = pytest.mark.slow

NOTEBOOK = ROOT / "docs" / "tutorials" / "notebook.md"


@pytest.fixture
def working_folder(category: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Working directory with the images that the pages name; `anomaly.fit` trains a tiny autoencoder."""
    shutil.copytree(category, tmp_path / "parts")
    shutil.copytree(category / "test" / "good", tmp_path / "new_images")
    shutil.copy(category / "test" / "scratch" / "000.png", tmp_path / "part.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(anomaly, "fit", functools.partial(anomaly.fit, detector="autoencoder", options=TINY))
    return tmp_path


def run_blocks(page: Path) -> dict[str, Any]:
    """Run the blocks of a page in order, in one namespace."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for code in python_blocks(page):
        exec(compile(code, page.name, "exec"), names)
    return names


def test_block_of_readme_runs(working_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = run_blocks(README)
    assert capsys.readouterr().out.startswith("defect ")
    assert names["result"].verdict == "defect"
    assert len(names["scores"]) == len(list((working_folder / "new_images").iterdir()))
    written = {path.name for path in working_folder.iterdir()}
    assert written == {"parts", "part.png", "new_images", "model.onnx"}


def test_blocks_of_the_notebook_tutorial_run(working_folder: Path) -> None:
    names = run_blocks(NOTEBOOK)
    assert names["result"].verdict == "defect"
    assert names["results"][0].error is None
    assert names["results"][1].error is not None
    assert "float32" in names["message"]
    assert names["table"].num_rows == len(list((working_folder / "parts" / "test" / "scratch").iterdir()))
    assert names["overlay"].shape == names["result"].image.shape
