"""The demo from end to end: on a category, on a plain folder, on synthetic parts, and interrupted."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from torch import Tensor

from anomaly.commands import demo
from anomaly.commands import main as cli
from anomaly.detectors.autoencoder import Autoencoder
from anomaly.evaluation import detectability
from anomaly.imaging.image_file import read_image, write_png
from anomaly.inference.scorer import OnnxScorer
from anomaly.nn.batch import Batch
from tests.plates import NUM_TEST_DEFECT, NUM_TEST_GOOD, TINY, draw_part

pytestmark = pytest.mark.slow

SMALL = [word for name, value in TINY.items() for word in (f"--model.{name}", str(value))]


@pytest.fixture(autouse=True)
def few_drawings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detectability, "SIZES", (0.12, 0.3))
    monkeypatch.setattr(detectability, "CONTRASTS", (0.3, 0.6))
    monkeypatch.setattr(demo, "NUM_DRAWN_EACH", 1)


def rows_of(out: Path) -> list[dict[str, str]]:
    with (out / "scores.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def check_outputs(out: Path, *, num_rows: int) -> None:
    OnnxScorer(out / "model.onnx", device="cpu", num_threads=1)
    assert (out / "model.certificate.json").is_file()
    rows = rows_of(out)
    assert len(rows) == num_rows
    assert {row["status"] for row in rows} == {"ok"}
    table = pq.read_table(out / "scores.parquet")
    assert table.column("path").to_pylist() == [row["path"] for row in rows]
    page = (out / "report.html").read_text(encoding="utf-8")
    for word in ("<html", "</html>", "autoencoder", "requested by name", "data:image/"):
        assert word in page
    card = json.loads((out / "run.json").read_text())
    assert card["verb"] == "demo"
    steps = {"inspect", "fit and calibrate", "export", "verify", "score", "draw synthetic defects", "report", "total"}
    assert steps <= set(card["seconds"])


def test_demo_on_a_category(category: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert cli.run(["demo", "--data", str(category), "--out", str(out), "--detector", "autoencoder", *SMALL]) == 0
    output = capsys.readouterr().out
    assert "detector: autoencoder (requested by name)" in output
    assert "image AUROC" in output
    assert "report.html: false alarms: 9.09% expected, at most 25.89% with 95 % confidence" in output
    check_outputs(out, num_rows=NUM_TEST_GOOD + NUM_TEST_DEFECT)
    rejects = [row for row in rows_of(out) if row["verdict"] == "defect"]
    assert len([row for row in rejects if "/scratch/" in row["path"]]) == NUM_TEST_DEFECT
    overlays = sorted((out / "overlays").rglob("*.png"))
    assert len(overlays) == len(rejects)
    shown = read_image(overlays[-1], white=255, max_pixels=10_000_000)
    assert shown.shape == (72, 88, 3)
    result = json.loads((out / "run.json").read_text())["result"]
    assert result["image"]["auroc"]["value"] == 1.0
    assert result["kinds"]["scratch"] == {"num_images": NUM_TEST_DEFECT, "num_above_threshold": NUM_TEST_DEFECT}
    assert "Image AUROC" in (out / "report.html").read_text(encoding="utf-8")


def test_demo_on_a_plain_folder_of_good_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = tmp_path / "plates", tmp_path / "out"
    folder.mkdir()
    for n in range(24):
        write_png(folder / f"{n:03d}.png", draw_part(n))
    roi = ["--roi", "6,6,76,60"]
    assert cli.run(["demo", "--data", str(folder), "--out", str(out), "--detector", "autoencoder", *SMALL, *roi]) == 0
    check_outputs(out, num_rows=10)  # the calibration images
    assert "image AUROC" not in capsys.readouterr().out
    assert "Image AUROC" not in (out / "report.html").read_text(encoding="utf-8")
    calibration_images = json.loads((out / "run" / "detector.json").read_text())["calibration_images"]
    assert [row["path"] for row in rows_of(out)] == calibration_images
    assert not [row for row in rows_of(out) if row["verdict"] == "defect"]  # the highest score sets the threshold


def test_demo_on_synthetic_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"num_train": 30, "num_test_good": 3, "num_test_defect": 5, "size": 256}
    monkeypatch.setattr(demo, "NUM_SYNTHETIC", small)
    out = tmp_path / "out"
    options = ["--part", "assembly", "--seed", "4", "--detector", "autoencoder", *SMALL]
    assert cli.run(["demo", "--out", str(out), *options]) == 0
    check_outputs(out, num_rows=8)
    made = out / "data" / "seed-4" / "assembly"
    assert len(list((made / "train" / "good").iterdir())) == 30
    assert cli.run(["demo", "--out", str(tmp_path / "other"), "--part", "assemby", "--detector", "autoencoder"]) == 2
    assert not (tmp_path / "other" / "data").exists()


class Interrupted(Autoencoder):
    """Raises KeyboardInterrupt in its first training step."""

    def training_step(self, batch: Batch, index: int) -> Tensor:
        raise KeyboardInterrupt


def test_interrupted_demo_reports_it(category: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named = ["--detector", f"{__name__}:Interrupted", *SMALL]
    assert cli.run(["demo", "--data", str(category), "--out", str(tmp_path), *named]) == 130
    assert "anomaly: interrupted; the written files stay" in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()
