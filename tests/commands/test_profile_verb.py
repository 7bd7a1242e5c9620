"""The verb `profile`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from anomaly.commands.main import run
from anomaly.inference.scorer import OnnxScorer, Scores
from anomaly.inference.session import SESSION_ERRORS
from anomaly.scoring.profile import profile


def test_profile_prints_and_writes_its_figures(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "profile.json"
    options = ["--height", "60", "--width", "80", "--batch-sizes", "[1,3]", "--seconds", "0.05", "--device", "cpu"]
    assert run(["profile", str(model), *options, "--out", str(out)]) == 0
    result = json.loads(out.read_text())["result"]
    assert list(result["batches"]) == ["1", "3"]
    for batch, line in result["batches"].items():
        assert line["num_runs"] >= 5
        assert 0 < line["p50_ms"] <= line["p99_ms"]
        assert line["images_per_second"] == pytest.approx(int(batch) / line["p50_ms"] * 1e3, rel=0.05)
        assert line["peak_mib"] > 10
    assert result["best_batch"] == max((1, 3), key=lambda b: result["batches"][str(b)]["images_per_second"])
    assert "images_per_second" in capsys.readouterr().out


def test_library_prints_nothing_and_returns_the_timings(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = profile(str(model), height=60, width=80, batch_sizes=[2], seconds=0.01, device="cpu")
    assert capsys.readouterr() == ("", "")
    assert list(result.batches) == [2] == [result.best_batch]
    assert (result.height, result.width, result.failure) == (60, 80, None)


def test_batch_that_does_not_run_ends_the_timings(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    score = OnnxScorer.score

    def fail(self: OnnxScorer, images: NDArray[np.uint8]) -> Scores:
        if len(images) > 2:
            raise SESSION_ERRORS[0]("out of memory")
        return score(self, images)

    monkeypatch.setattr(OnnxScorer, "score", fail)
    options = ["--height", "60", "--width", "80", "--seconds", "0.01", "--device", "cpu", "--batch-sizes"]
    assert run(["profile", str(model), *options, "[1,2,4,8]"]) == 0
    assert "batch 4 does not run: out of memory" in capsys.readouterr().err
    assert run(["profile", str(model), *options, "[4]"]) == 2


def test_size_below_1_is_refused(model: Path) -> None:
    assert run(["profile", str(model), "--height", "0", "--device", "cpu"]) == 2
    assert run(["profile", str(model), "--batch-sizes", "[]", "--device", "cpu"]) == 2
