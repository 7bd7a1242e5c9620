"""Evidence files of a run: for rejected images of a memory bank alone."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import pytest

from anomaly.commands.main import run
from anomaly.imaging.image_file import write_png
from anomaly.inference.references import references_path
from anomaly.runs.models import RunModels
from anomaly.runs.run_files import EVIDENCE, check_manifest
from anomaly.runs.sinks import read_rows
from tests.plates import draw_part, draw_scratch


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of two good plates and two with a scratch."""
    folder = tmp_path / "images"
    folder.mkdir()
    for n in range(2):
        write_png(folder / f"{n}_good.png", draw_part(1000 + n))
        write_png(folder / f"{n}_scratch.png", draw_scratch(draw_part(2000 + n), n)[0])
    return folder


def test_rejected_images_have_evidence_files(bank_model: Path, images: Path, tmp_path: Path) -> None:
    folder = tmp_path / "night"
    assert run(["score", str(bank_model), str(images), "--run", str(folder), "--evidence"]) == 0
    rejected = [n for n, row in enumerate(read_rows(folder)) if row["verdict"] == "defect"]
    assert rejected
    names = {f"{n:08d}{ending}" for n in rejected for ending in (".json", ".png")}
    assert {path.name for path in (folder / EVIDENCE).iterdir()} == names
    values = json.loads((folder / EVIDENCE / f"{rejected[0]:08d}.json").read_text(encoding="utf-8"))
    row = list(read_rows(folder))[rejected[0]]
    assert len(values["regions"]) == len(row["regions"])
    assert values["picture_missing"] is None
    check_manifest(folder)
    models = RunModels(folder, device="cpu")
    kept = models.kept_evidence(rejected[0])
    assert kept is not None
    assert cv2.imread(str(kept)) is not None
    assert models.kept_evidence(len(list(read_rows(folder)))) is None


def test_missing_archive_leaves_the_names(bank_model: Path, images: Path, tmp_path: Path) -> None:
    references_path(bank_model).unlink()
    folder = tmp_path / "night"
    assert run(["score", str(bank_model), str(images), "--run", str(folder), "--evidence"]) == 0
    files = sorted((folder / EVIDENCE).iterdir())
    assert {path.suffix for path in files} == {".json"}
    values = json.loads(files[0].read_text(encoding="utf-8"))
    assert "is missing" in values["picture_missing"]
    assert values["regions"][0]["image"].endswith(".png")


def test_detector_without_a_bank_and_tables_are_refused(
    model: Path, bank_model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["score", str(model), str(images), "--run", str(tmp_path / "night"), "--evidence"]) == 2
    assert "no bank of patches" in capsys.readouterr().err
    assert run(["score", str(bank_model), str(images), "--out", str(tmp_path / "rows.csv"), "--evidence"]) == 2
    assert "--evidence" in capsys.readouterr().err
