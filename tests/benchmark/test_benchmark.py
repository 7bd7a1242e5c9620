"""Benchmarks: plans, one process per cell, resuming, crashes, and a detector of the user."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from anomaly.benchmark.plan import read_plan
from anomaly.benchmark.run import benchmark
from anomaly.commands.main import run
from anomaly.errors import UsageError
from tests.plates import TINY

pytestmark = pytest.mark.slow

PLANS = Path(__file__).resolve().parents[2] / "configs" / "benchmarks"
ROW = {"model": TINY | {"epochs": 1}, "note": "1 epoch", "config": "autoencoder.yaml"}


def write_plan(folder: Path, **changes: Any) -> Path:
    (folder / "autoencoder.yaml").write_text("detector: autoencoder\nmodel: {width: 8}\n")
    plan = {
        "benchmark": "small",
        "data": [{"categories": ["parts/plate"], "seeds": [0, 1]}],
        "detectors": {"small_autoencoder": ROW},
    } | changes
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan))
    return folder / "plan.yaml"


@pytest.fixture(scope="module")
def data(category: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with one set of one category."""
    root = tmp_path_factory.mktemp("data root")
    (root / "parts").mkdir()
    (root / "parts" / "plate").symlink_to(category)
    return root


def test_cells_are_measured_once_and_a_crash_costs_one(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = {"config": "broken.yaml", "note": "cannot be built"}
    (tmp_path / "broken.yaml").write_text("detector: fastflow\nmodel: {weights: /nowhere/weights.safetensors}\n")
    plan = write_plan(
        tmp_path,
        data=[{"categories": ["parts/plate"], "seeds": [0]}],
        detectors={"broken": broken, "small_autoencoder": ROW},
    )
    out = tmp_path / "results"
    assert benchmark(plan, data=data, out=out, jobs=2).num_failed == 1
    failed = json.loads((out / "small/parts/plate/broken-0.json").read_text())
    assert failed["status"] == "failed"
    assert "no weights for backbone" in failed["message"]
    assert "/nowhere" not in failed["message"]
    cell = json.loads((out / "small/parts/plate/small_autoencoder-0.json").read_text())
    assert (cell["status"], cell["set"], cell["category"], cell["seed"]) == ("ok", "parts", "plate", 0)
    assert cell["config"]["epochs"] == 1
    assert cell["config"]["width"] == 8
    assert cell["figures"]["image"]["auroc"]["interval"][0] <= cell["figures"]["image"]["auroc"]["value"]
    assert cell["figures"]["pixel"]["aupro"]["0.3"]["interval"][1] <= 1
    assert cell["counts"] == {"train": 30, "calibration_images": 10, "stopping": 0, "test_good": 6, "test_defect": 6}
    assert cell["parity"]["num_flips"] == 0
    assert cell["seconds"]["fit"] > 0
    assert cell["seconds_per_image"]["batch_16"] > 0
    assert cell["num_checks"] >= 10
    assert set(cell["shortcuts"]) == {"brightness", "contrast", "sharpness", "colour"}
    assert all(0 <= value <= 1 for one in cell["shortcuts"].values() for value in one.values())
    table = (tmp_path / "RESULTS.md").read_text()
    assert "small_autoencoder" in table
    assert "no weights for backbone" in table
    capsys.readouterr()
    (tmp_path / "broken.yaml").write_text("detector: fastflow\nmodel: {weights: /elsewhere.safetensors}\n")
    again = benchmark(plan, data=data, out=out, only="autoencoder")
    assert (again.num_cells, again.num_reused, again.num_failed) == (1, 1, 0)
    assert capsys.readouterr().out == ""
    assert run(["benchmark", str(plan), "--data", str(data), "--out", str(out)]) == 3
    assert "2 cells, 1 measured before, 0 measured now, 1 failed" in capsys.readouterr().out
    with pytest.raises(UsageError, match="'nothing' matches none of the 2 cells"):
        benchmark(plan, data=data, out=out, only="nothing")


def test_detector_of_the_user_is_in_the_table(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(
        "from anomaly.detectors.autoencoder import Autoencoder\n\n\nclass Mine(Autoencoder):\n    pass\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    plan = write_plan(tmp_path, data=[{"categories": "parts/*"}])
    options = [f"--model.{name}={value}" for name, value in (TINY | {"epochs": 1}).items()]
    arguments = ["benchmark", str(plan), "--data", str(data), "--out", "r", "--detector", "mine:Mine", "--only", "Mine"]
    assert run([*arguments, *options]) == 0
    assert json.loads((tmp_path / "r/small/parts/plate/Mine-0.json").read_text())["detector"] == "mine:Mine"


def test_cell_beyond_its_time_limit_is_stopped(data: Path, tmp_path: Path) -> None:
    plan = write_plan(tmp_path, data=[{"categories": ["parts/plate"]}])
    assert benchmark(plan, data=data, out=tmp_path / "results", hours=0.0).num_failed == 1
    cell = json.loads((tmp_path / "results/small/parts/plate/small_autoencoder-0.json").read_text())
    assert "longer than --hours" in cell["message"]


def test_cells_are_ordered_by_seed_and_rows_may_have_seeds_of_their_own(data: Path, tmp_path: Path) -> None:
    plan = write_plan(tmp_path, detectors={"a": ROW, "b": ROW | {"seeds": [1, 2]}})
    cells = read_plan(plan, data=data)
    assert [(c.seed, c.name) for c in cells] == [(0, "a"), (1, "a"), (1, "b"), (2, "b")]
    assert len({c.fingerprint() for c in cells}) == 4
    again = read_plan(plan, data=data)
    assert [c.fingerprint() for c in again] == [c.fingerprint() for c in cells]


def test_rows_may_have_further_options_of_the_fit(data: Path, tmp_path: Path) -> None:
    options = {"brightness": "levelled"}
    plan = write_plan(
        tmp_path, data=[{"categories": ["parts/plate"]}], detectors={"a": ROW, "b": ROW | {"fit": options}}
    )
    plain, levelled = read_plan(plan, data=data)
    assert (plain.fit, levelled.fit) == ({}, options)
    older = {key: value for key, value in asdict(plain).items() if key != "fit"}
    text = json.dumps(older, sort_keys=True, default=str)  # cells from before this key stay measured
    assert plain.fingerprint() == hashlib.sha256(text.encode()).hexdigest()[:16]
    assert levelled.fingerprint() != dataclasses.replace(levelled, fit={}).fingerprint()
    assert benchmark(plan, data=data, out=tmp_path / "results", only="/b").num_failed == 0
    cell = json.loads((tmp_path / "results/small/parts/plate/b-0.json").read_text())
    assert cell["config"]["brightness"] == "levelled"
    assert cell["parity"]["refused"] == ""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": [1]}, "unknown key 'seed'; nearest: "),
        ({"data": [{"categories": ["parts/plat"]}]}, "'parts/plat' is not in"),
        ({"data": []}, "has no cells"),
        ({"detectors": {"a": {"model": {}}}}, "describe the reduction in `note`"),
        ({"detectors": {"a": ROW | {"epochs": 3}}}, "unknown key 'epochs'"),
        ({"detectors": {"a": ROW | {"fit": {"alpha": 0.1}}}}, "fit of detector 'a' .* unknown key 'alpha'"),
        ({"detectors": {"os:system": {"note": "x"}}}, "give a class path with --detector only"),
        ({"detectors": {"a": "autoencoder"}}, "is not a table"),
    ],
)
def test_invalid_plans_are_refused(data: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_plan(write_plan(tmp_path, **changes), data=data)


@pytest.mark.parametrize("plan", sorted(PLANS.glob("*.yaml")), ids=lambda plan: plan.stem)
def test_plans_of_the_project_are_valid(plan: Path, tmp_path: Path) -> None:
    import inspect

    from anomaly.registry import model_class

    content = yaml.safe_load(plan.read_text())
    for part in content["data"]:
        for one in [part["categories"]] if isinstance(part["categories"], str) else part["categories"]:
            (tmp_path / one.replace("*", "some") / "train" / "good").mkdir(parents=True)
    cells = read_plan(plan, data=tmp_path)
    for cell in {c.name: c for c in cells}.values():
        known = set(inspect.signature(model_class(cell.detector)).parameters)
        assert set(cell.model) <= known, cell.name
