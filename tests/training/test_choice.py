"""The choice of a detector without a name from the user."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub.constants
import pytest

from anomaly.training.choice import choose_detector


def test_detector_is_chosen_by_the_available_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANOMALY_WEIGHTS", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    name, reason = choose_detector("auto")
    assert name == "autoencoder"
    assert "those of resnet18 are not in ANOMALY_WEIGHTS" in reason
    (tmp_path / "resnet18.some_tag.safetensors").write_bytes(b"")
    monkeypatch.setenv("ANOMALY_WEIGHTS", str(tmp_path))
    name, reason = choose_detector("auto")
    assert name == "fastflow"
    assert "resnet18.some_tag.safetensors" in reason
    assert choose_detector("package.module:Class") == ("package.module:Class", "requested by name")
