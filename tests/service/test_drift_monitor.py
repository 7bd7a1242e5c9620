"""The watch over what a served model sees: it alarms, it forgets, and it never grows."""

from __future__ import annotations

import gc
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from starlette.testclient import TestClient

from anomaly.inference.scorer import OnnxScorer
from anomaly.service.drift_monitor import ALPHA, Drift, Drifts
from tests.plates import draw_part
from tests.service.served import BASE, make_app, make_service


@pytest.fixture(scope="module")
def scorer(run_folder: Path) -> OnnxScorer:
    return OnnxScorer(run_folder / "model.onnx", device="cpu", num_threads=1)


def test_dark_images_raise_the_alarm_that_the_card_tells(run_folder: Path) -> None:
    with TestClient(make_app(make_service(f"plate={run_folder / 'model.onnx'}")), base_url=BASE) as client:
        before = client.get("/v2/models/plate").json()["parameters"]
        assert (before["drift"], before["drift_images"]) == ("none", 0)
        for seed in range(30):
            dark = (draw_part(3000 + seed) * 0.5).astype(np.uint8)
            if seed % 2:
                assert client.post("/score", content=cv2.imencode(".png", dark)[1].tobytes()).status_code == 200
            else:
                tensor = {
                    "name": "image",
                    "datatype": "UINT8",
                    "shape": [1, *dark.shape],
                    "data": dark.ravel().tolist(),
                }
                assert client.post("/v2/models/plate/infer", json={"inputs": [tensor]}).status_code == 200
        after = client.get("/v2/models/plate").json()["parameters"]
    assert (after["drift"], after["drift_images"]) == ("alarm", 30)
    assert "darker" in after["drift_cause"]


def test_watches_follow_one_another_and_keep_alpha_together(scorer: OnnxScorer) -> None:
    drift = Drift(scorer.metadata, threshold=1.0, stretch=20)
    kept = []
    for seed in range(65):
        image = draw_part(seed)[None]
        drift.observe(image, scorer.score(image).score)
        assert drift._watch is not None
        kept.append(max(map(len, drift._watch._ranks)))
    assert drift.state() == {"drift": "none", "drift_cause": "", "drift_images": 65}
    assert max(kept) <= len(scorer.calibration_scores) + 20
    assert drift._watch is not None
    assert drift._watch.summary()["alpha"] == ALPHA / (4 * 5)  # the fourth, and all of them sum to alpha


def test_alarm_stays_and_the_watch_stops_growing(scorer: OnnxScorer) -> None:
    drift = Drift(scorer.metadata, threshold=1.0, stretch=40)
    for seed in range(60):
        dark = (draw_part(seed) * 0.5).astype(np.uint8)[None]
        drift.observe(dark, scorer.score(dark).score)
    state = drift.state()
    assert (state["drift"], state["drift_images"]) == ("alarm", 40)
    drift.observe(draw_part(0)[None], np.zeros(1, np.float32))
    assert drift.state() == state


def test_model_without_statistics_is_said_not_to_be_watched(scorer: OnnxScorer) -> None:
    drift = Drift(replace(scorer.metadata, image_stats={}), threshold=1.0, stretch=20)
    drift.observe(draw_part(0)[None], np.zeros(1, np.float32))
    state = drift.state()
    assert (state["drift"], state["drift_images"]) == ("not watched", 0)
    assert "lack brightness" in str(state["drift_cause"])


def test_replaced_scorer_takes_its_watch_along(run_folder: Path) -> None:
    scorer = OnnxScorer(run_folder / "model.onnx", device="cpu", num_threads=1)
    drifts = Drifts(threshold=1.0)
    assert drifts.of(scorer) is drifts.of(scorer)
    del scorer
    gc.collect()
    assert len(drifts._of) == 0


def test_line_of_many_pixels_costs_little(scorer: OnnxScorer) -> None:
    begin = time.perf_counter()
    Drift(scorer.metadata, threshold=1.0, stretch=20).observe(
        np.zeros((1, 1, 10**7, 3), np.uint8), np.zeros(1, np.float32)
    )
    assert time.perf_counter() - begin < 5
