"""Score and map as two choices: every detector pools its map by the requested pooling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from anomaly.detectors.base import Detector
from anomaly.errors import UsageError
from anomaly.export.model_file import export_model
from anomaly.export.parity import verify
from anomaly.nn.score_pooling import ScorePooling
from anomaly.registry import detector_class
from anomaly.training.fit import fit_model
from anomaly.training.fitted_model import build_sampler
from tests.detectors.tiny_detectors import OPTIONS, build, parts

MAPS: dict[str, dict[str, Any]] = {
    "autoencoder": {}, "riad": {}, "ganomaly": {}, "fanogan": {}, "fastflow": {}, "differnet": {"score": "map"},
}  # fmt: skip
"""Detectors whose score comes from the map, with the options for it"""
EVERY = pytest.mark.parametrize("name", sorted(MAPS))


def untrained(name: str, **options: Any) -> Detector:
    return build(name, **(MAPS[name] | options)).eval()


@EVERY
@torch.no_grad()
def test_pooling_changes_the_score_and_not_the_map(name: str) -> None:
    largest, top = (untrained(name, pooling=pooling, top=0.2) for pooling in ("maximum", "top"))
    x = largest.preprocess(parts(3))
    one, other = largest.anomaly(x), top.anomaly(x)
    assert torch.allclose(one.anomaly_map, other.anomaly_map)
    assert torch.equal(one.score, one.anomaly_map.amax(dim=(1, 2)))
    cell = top.pooling.cell
    assert torch.allclose(other.score, ScorePooling("top", top=0.2, cell=cell)(other.anomaly_map))
    assert (other.score < one.score).all()


@EVERY
@torch.no_grad()
def test_values_outside_the_region_do_not_count(name: str) -> None:
    detector = untrained(name, pooling="top", top=0.2)
    mask = torch.zeros(72, 88, dtype=torch.bool)
    mask[18:54, 22:66] = True
    detector.preprocess.set_roi(mask)
    score = detector.anomaly(detector.preprocess(parts(1))).score
    outside = torch.where(mask[:, :, None], parts(1), torch.full_like(parts(1), 255))
    assert torch.allclose(detector.anomaly(detector.preprocess(outside)).score, score)


@pytest.mark.parametrize("name", ["autoencoder", "riad", "ganomaly", "fanogan", "fastflow", "differnet", "memory_bank"])
def test_invalid_shares_are_rejected(name: str) -> None:
    with pytest.raises(UsageError, match="top 2: give a share of the cells above 0"):
        build(name, top=2)


def test_scores_of_the_code_stay_beside_the_map() -> None:
    detector = build("ganomaly", score="latent", pooling="top").eval()
    with torch.no_grad():
        x = detector.preprocess(parts(2))
        assert not torch.allclose(detector.anomaly(x).score, detector.pooled_score(detector.anomaly(x).anomaly_map))


def test_anomalib_model_without_a_map_is_refused() -> None:
    pytest.importorskip("anomalib")
    with pytest.raises(UsageError, match="anomalib's Dfkde has no map: use score own"):
        detector_class("anomalib")(model="Dfkde", size=64, weights="none", score="map")


@torch.no_grad()
def test_sampler_scores_by_its_largest_cells() -> None:
    sampler = build_sampler("vae", {"size": 32, "score": "top"})
    detector = sampler.as_detector().eval()
    raw = detector.anomaly(detector.preprocess(parts(2)))
    assert torch.allclose(raw.score, ScorePooling("top", top=0.02, cell=2)(raw.anomaly_map))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fastflow", "frozen_features", "memory_bank"])
def test_exported_file_pools_a_region_like_the_fitted_model(name: str, category: Path, tmp_path: Path) -> None:
    options = OPTIONS[name] | {"pooling": "top", "top": 0.1} | ({"epochs": 2} if name == "fastflow" else {})
    run = fit_model(category, out=tmp_path, detector=name, options=options, roi="20,16,40,40").folder
    export_model(run)
    certificate = verify(run)
    assert max(certificate["score"]["max"], certificate["map"]["max"]) < 1e-4
