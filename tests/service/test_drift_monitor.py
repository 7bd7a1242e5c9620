"""The drift monitor of a served model: its alarm, its windows, and its bounded memory."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from starlette.testclient import TestClient

from anomaly.inference.scorer import OnnxScorer
from anomaly.service.drift_monitor import ALPHA, DriftMonitors, WindowedDriftMonitor
from tests.plates import draw_part
from tests.service.running_service import BASE, make_app, make_service


@pytest.fixture(scope="module")
def scorer(fitted_plate: Path) -> OnnxScorer:
    return OnnxScorer(fitted_plate / "model.onnx", device="cpu", num_threads=1)


def test_dark_images_raise_an_alarm_on_the_model_card(fitted_plate: Path) -> None:
    with TestClient(make_app(make_service(f"plate={fitted_plate / 'model.onnx'}")), base_url=BASE) as client:
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


def test_consecutive_monitors_share_alpha(scorer: OnnxScorer) -> None:
    monitor = WindowedDriftMonitor(scorer.metadata, threshold=1.0, window_length=20)
    kept = []
    for seed in range(65):
        image = draw_part(seed)[None]
        monitor.observe(image, scorer.score(image).score)
        assert monitor._monitor is not None
        kept.append(max(map(len, monitor._monitor._ranks)))
    assert monitor.state() == {"drift": "none", "drift_cause": "", "drift_images": 65}
    assert max(kept) <= len(scorer.calibration.scores) + 20
    assert monitor._monitor is not None
    assert monitor._monitor.summary()["alpha"] == ALPHA / (4 * 5)  # share of the fourth monitor; all shares sum to 1


def test_alarm_stays_and_the_monitor_stops(scorer: OnnxScorer) -> None:
    monitor = WindowedDriftMonitor(scorer.metadata, threshold=1.0, window_length=40)
    for seed in range(60):
        dark = (draw_part(seed) * 0.5).astype(np.uint8)[None]
        monitor.observe(dark, scorer.score(dark).score)
    state = monitor.state()
    assert (state["drift"], state["drift_images"]) == ("alarm", 40)
    monitor.observe(draw_part(0)[None], np.zeros(1, np.float32))
    assert monitor.state() == state


def test_model_without_statistics_is_reported_as_not_watched(scorer: OnnxScorer) -> None:
    monitor = WindowedDriftMonitor(replace(scorer.metadata, image_stats={}), threshold=1.0, window_length=20)
    monitor.observe(draw_part(0)[None], np.zeros(1, np.float32))
    state = monitor.state()
    assert (state["drift"], state["drift_images"]) == ("not watched", 0)
    assert "statistics brightness" in str(state["drift_cause"])


@pytest.mark.slow
def test_monitor_is_deleted_with_its_scorer(fitted_plate: Path) -> None:
    scorer = OnnxScorer(fitted_plate / "model.onnx", device="cpu", num_threads=1)
    monitors = DriftMonitors(threshold=1.0)
    assert monitors.monitor_of(scorer) is monitors.monitor_of(scorer)
    del scorer
    gc.collect()
    assert len(monitors._monitors) == 0


def test_image_of_one_line_and_many_pixels_is_observed(scorer: OnnxScorer) -> None:
    monitor = WindowedDriftMonitor(scorer.metadata, threshold=1.0, window_length=20)
    monitor.observe(np.zeros((1, 1, 10**7, 3), np.uint8), np.zeros(1, np.float32))
    assert monitor.state()["drift_images"] == 1
