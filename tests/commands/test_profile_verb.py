"""The verb that times a model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from anomaly.commands.main import run


def test_bench_prints_and_writes_its_figures(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bench.json"
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


def test_bench_refuses_what_is_no_size(model: Path) -> None:
    assert run(["profile", str(model), "--height", "0", "--device", "cpu"]) == 2
    assert run(["profile", str(model), "--batch-sizes", "[]", "--device", "cpu"]) == 2
