"""Figures on labelled images: equal for a fitted model and its exported file, and invalid input refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from anomaly.commands.main import run
from anomaly.errors import DataError, ModelError, UsageError
from anomaly.evaluation.evaluate import evaluate, summary
from anomaly.imaging.image_file import write_png
from anomaly.recalibration.recalibrate import recalibrate
from tests.plates import NUM_TEST_DEFECT, NUM_TEST_GOOD, draw_part


def test_file_and_fitted_model_give_equal_figures(
    fitted_plate: Path, model: Path, category: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exported, fitted = evaluate(str(model), str(category)), evaluate(fitted_plate, category)
    assert capsys.readouterr().out == "", "the library prints nothing"
    assert exported.category == fitted.category == category.name
    assert len(exported.scores) == NUM_TEST_GOOD + NUM_TEST_DEFECT
    assert exported.scores == pytest.approx(fitted.scores, abs=1e-4)
    assert exported.image.auroc.value == fitted.image.auroc.value == 1.0
    assert "samples" not in repr(exported)


def test_verb_writes_and_prints_the_figures(
    model: Path, category: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "figures.json"
    assert run(["evaluate", str(model), str(category), "--out", str(out), "--device", "cpu"]) == 0
    output = capsys.readouterr().out
    assert "image AUROC" in output
    assert "guarantee              false alarms: 9.09% expected, at most 25.89% with 95 % confidence" in output
    card = json.loads(out.read_text(encoding="utf-8"))
    assert card["result"]["category"] == category.name
    assert card["result"]["kinds"]["good"]["num_images"] == NUM_TEST_GOOD


def test_rates_at_1_2_and_5_percent(model: Path, category: Path, tmp_path: Path) -> None:
    assert evaluate(model, category).to_dict()["rates"] == {}, "ten calibration images certify none of them"
    good = tmp_path / "good"
    good.mkdir()
    for n in range(60):
        write_png(good / f"{n:03d}.png", draw_part(5000 + n))
    recalibrate(model, good=good, alpha=0.05)
    evaluation = evaluate(model, category)
    rates = evaluation.to_dict()["rates"]
    assert list(rates) == ["0.02", "0.05"]
    assert rates["0.05"]["threshold"] == pytest.approx(1, abs=1e-5)
    assert rates["0.05"]["expected_rate"] == pytest.approx(3 / 61)
    assert rates["0.05"]["misses"]["num_hits"] == evaluation.rates.misses.num_hits
    assert rates["0.02"]["threshold"] > rates["0.05"]["threshold"]
    assert rates["0.02"]["misses"]["num_trials"] == NUM_TEST_DEFECT
    assert "at 2%, threshold" in summary(evaluation)


def test_invalid_input_is_refused(model: Path, category: Path, plain: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="model is int 3"):
        evaluate(3, category)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="data is NoneType"):
        evaluate(model, None)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="batch_size 0: give 1 or more"):
        evaluate(model, category, batch_size=0)
    with pytest.raises(ModelError, match="no model at"):
        evaluate(tmp_path / "missing.onnx", category)
    with pytest.raises(ModelError, match="is not a fitted model"):
        evaluate(tmp_path, category)
    with pytest.raises(DataError, match="0 defective and 0 good test images"):
        evaluate(model, plain)
