"""Real images and pretrained weights, where ANOMALY_DATA and ANOMALY_WEIGHTS name folders of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from anomaly.commands.inspect import format_inspection, inspect
from anomaly.evaluation.evaluate import evaluate
from anomaly.export.model_file import export_model
from anomaly.export.parity import verify
from anomaly.training.fit import fit_model

pytestmark = pytest.mark.slow

DATA, WEIGHTS = os.environ.get("ANOMALY_DATA", ""), os.environ.get("ANOMALY_WEIGHTS", "")
CATEGORIES = sorted(good.parent.parent for good in Path(DATA).rglob("train/good")) if DATA else []

needs_data = pytest.mark.skipif(not DATA, reason="ANOMALY_DATA is not set")
needs_weights = pytest.mark.skipif(not WEIGHTS, reason="ANOMALY_WEIGHTS is not set")


@pytest.mark.real_data
@pytest.mark.weights
@needs_data
@needs_weights
def test_fastflow_of_one_epoch_exports_verifies_and_tells_bottles_apart(tmp_path: Path) -> None:
    source, few = Path(DATA) / "mvtec_ad" / "bottle", tmp_path / "bottle"
    for folder, num in (
        ("train/good", 24),
        ("test/good", 8),
        ("test/broken_large", 8),
        ("ground_truth/broken_large", 8),
    ):
        (few / folder).mkdir(parents=True)
        for path in sorted((source / folder).iterdir())[:num]:
            (few / folder / path.name).symlink_to(path.resolve())
    run = fit_model(
        few, out=tmp_path / "run", detector="fastflow", options={"size": 128, "epochs": 1, "batch_size": 2}
    ).folder
    export_model(run)
    assert verify(run)["num_flips"] == 0
    figures = evaluate(run / "model.onnx", few).to_dict()
    assert figures["image"]["auroc"]["value"] > 0.65  # after 7 steps
    assert figures["pixel"]["auroc"]["value"] > 0.8


@pytest.mark.real_data
@needs_data
@pytest.mark.parametrize("category", CATEGORIES, ids=[path.name for path in CATEGORIES])
def test_every_set_can_be_inspected(category: Path) -> None:
    found = inspect(category)
    assert not found.bad_files
    assert not found.split.error
    assert found.split.num_train + found.split.num_calibration == len(list((category / "train" / "good").iterdir()))
    assert category.name in format_inspection(found)


@pytest.mark.real_data
@needs_data
def test_ganomaly_of_a_hundred_steps_tells_bottles_apart(tmp_path: Path) -> None:
    """The best-known port scores 0.25 on bottle, below chance."""
    source, few = Path(DATA) / "mvtec_ad" / "bottle", tmp_path / "bottle"
    for folder, num in (
        ("train/good", 60),
        ("test/good", 12),
        ("test/broken_large", 12),
        ("ground_truth/broken_large", 12),
    ):
        (few / folder).mkdir(parents=True)
        for path in sorted((source / folder).iterdir())[:num]:
            (few / folder / path.name).symlink_to(path.resolve())
    run = fit_model(
        few, out=tmp_path / "run", detector="ganomaly", options={"size": 64, "epochs": 30, "batch_size": 12}
    ).folder
    export_model(run)
    assert verify(run)["num_flips"] == 0
    figures = evaluate(run / "model.onnx", few).to_dict()
    assert figures["image"]["auroc"]["value"] > 0.85
