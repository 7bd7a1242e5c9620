from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from anomaly.conformal.calibration import CalibrationScores
from anomaly.conformal.drift import (
    RECORD,
    STATISTICS,
    STREAMS,
    DriftMonitor,
    read_records,
    to_record,
)
from anomaly.conformal.guarantee import Construction
from anomaly.errors import DataError, ModelError, UsageError

TYPICAL = np.array([0.0, 120.0, 40.0, 900.0, 15.0])
SPREAD = np.array([0.3, 2.0, 1.0, 40.0, 0.5])
N = 100


def rows(num: int, *, seed: int) -> NDArray[np.float32]:
    """Scores and statistics (num, 5) of undrifted images."""
    normal = np.random.default_rng(seed).standard_normal((num, 5))
    return (TYPICAL + SPREAD * normal).astype(np.float32)


def monitor_of(
    *, seed: int = 0, keeps_values: bool = True, alpha: float = 0.01, num_calibration: int = N
) -> DriftMonitor:
    calibration = rows(num_calibration, seed=1000 + seed)
    stats: dict[str, dict[str, Any]] = {}
    for at, name in enumerate(STATISTICS, start=1):
        stats[name] = {
            "mean": float(calibration[:, at].mean()),
            "deviation": float(calibration[:, at].std()),
        }
        if keeps_values:
            stats[name]["values"] = calibration[:, at].tolist()
    return DriftMonitor(CalibrationScores(np.sort(calibration[:, 0])), stats, threshold=1.0, alpha=alpha, seed=seed)


@pytest.mark.slow
@pytest.mark.parametrize("keeps_values", [False, True])
def test_monitor_is_silent_on_undrifted_runs(keeps_values: bool) -> None:
    alarmed = 0
    for seed in range(15):
        monitor = monitor_of(seed=seed, keeps_values=keeps_values)
        monitor.replay(rows(1100, seed=seed))
        alarmed += monitor.summary()["alarmed"]
    assert alarmed == 0  # at most 0.15 are expected


@pytest.mark.parametrize(("construction", "text"), [("split", "at most"), ("leave_one_out", "are expected")])
def test_rejects_are_compared_with_the_guarantee_of_part_groups(construction: Construction, text: str) -> None:
    scores = np.linspace(-1, 0.9, 40)
    calibration = CalibrationScores(scores, [4] * 40, construction)
    stats: dict[str, Any] = {name: {"mean": 0.0, "deviation": 1.0} for name in STATISTICS}
    monitor = DriftMonitor(calibration, stats, threshold=1.0, alpha=0.01, seed=0)
    monitor.replay(np.array([[9.0, 50.0, 0.0, 0.0, 0.0]] * 60, dtype=np.float32))
    summary = monitor.summary()
    assert summary["rejects"]["expected"] == pytest.approx(1 / 11, abs=1e-6)
    assert summary["rejects"]["bound"] == pytest.approx(1 - 0.05**0.1, abs=1e-6)
    assert summary["rejects"]["changed"]
    assert text in summary["cause"]
    assert ("approximate" in summary["guarantee"]) == (construction != "split")


def test_summary_of_an_undrifted_run_states_the_guarantee() -> None:
    monitor = monitor_of()
    monitor.replay(rows(300, seed=3))
    summary = json.loads(json.dumps(monitor.summary(), allow_nan=False))
    assert summary["alarmed"] is False
    assert summary["first_alarm"] is None
    assert summary["cause"] == ""
    assert summary["num_images"] == summary["num_scored"] == 300
    assert set(summary["streams"]) == set(STREAMS)
    assert summary["streams"]["score"]["log10_threshold"] == pytest.approx(math.log10(600), abs=1e-3)
    assert "at most 0.01" in summary["guarantee"]
    assert summary["rejects"]["expected"] == pytest.approx(1 / 101, abs=1e-6)
    assert summary["rejects"]["bound"] == pytest.approx(1 - 0.05**0.01, abs=1e-6)


def changed(clean: NDArray[np.float32], **deviations: float) -> NDArray[np.float32]:
    names = ("score", *STATISTICS)
    away = np.array([deviations.get(name, 0.0) for name in names])
    return (clean + SPREAD * away).astype(np.float32)


@pytest.mark.parametrize(
    ("deviations", "cause"),
    [
        ({"brightness": -4}, "darker"),
        ({"brightness": 4, "score": 2}, "brighter"),
        ({"contrast": -3, "sharpness": -3 * 2 * 900 / 40 / 40}, "less contrast"),
        ({"sharpness": -5}, "blurred"),
        ({"sharpness": -8, "contrast": -2}, "blurred"),
        ({"sharpness": 5}, "sharper or noisier"),
        ({"sharpness": 5, "colour": 4}, "noisier"),
        ({"colour": 5}, "colour cast (more colour)"),
        ({"colour": -5}, "colour cast (less colour)"),
    ],
)
@pytest.mark.parametrize("num_clean", [0, 150])
def test_changed_images_raise_an_early_alarm_with_a_cause(
    deviations: dict[str, float], cause: str, num_clean: int
) -> None:
    monitor = monitor_of()
    clean = rows(num_clean + 100, seed=5)
    clean[num_clean:] = changed(clean[num_clean:], **deviations)
    monitor.replay(clean)
    summary = monitor.summary()
    assert num_clean <= summary["first_alarm"] < num_clean + 25
    assert summary["cause"].partition(";")[0] == f"compared with the calibration images: {cause}"
    for name, away in deviations.items():
        assert summary["moved_by_deviations"][name] == pytest.approx(away, abs=0.8 + abs(away) / 8)


def test_darker_images_are_not_reported_with_less_contrast_and_colour() -> None:
    clean = rows(100, seed=5)
    clean[:, 1:] *= np.array([0.8, 0.8, 0.64, 0.8], dtype=np.float32)
    monitor = monitor_of()
    monitor.replay(clean)
    assert monitor.summary()["cause"] == "compared with the calibration images: darker"
    assert len(monitor.summary()["alarms"]) > 1


def test_changed_score_alone_is_reported_in_both_directions() -> None:
    for away in (-2.5, 2.0):
        monitor = monitor_of()
        monitor.replay(changed(rows(200, seed=5), score=away))
        summary = monitor.summary()
        assert summary["alarms"].keys() <= {"score", "accepted"}
        assert summary["first_alarm"] < 30
        assert summary["cause"].startswith(
            "the scores changed, the image statistics did not: a shifted or rotated part"
        )
        assert not summary["explained_by_reject_rate"]


def test_accepted_scores_distinguish_more_defects_from_drift() -> None:
    images = rows(2000, seed=6)
    defects = np.random.default_rng(0).random(2000) < 0.3
    images[defects, 0] += 3
    monitor = monitor_of()
    monitor.replay(images)
    summary = monitor.summary()
    assert set(summary["alarms"]) == {"score"}
    assert summary["explained_by_reject_rate"]
    assert summary["cause"].endswith("more defects")
    assert summary["rejects"]["changed"]
    assert summary["rejects"]["num"] == int((images[:, 0] > 1).sum())
    low, high = summary["rejects"]["interval"]
    assert low < summary["rejects"]["rate"] < high


def test_shifted_part_with_only_rejected_images_is_not_reported_as_defects() -> None:
    images = rows(400, seed=6)
    images[200:, 0] += 3
    monitor = monitor_of()
    monitor.replay(images)
    summary = monitor.summary()
    assert 200 <= summary["first_alarm"] < 215
    assert not summary["explained_by_reject_rate"]
    assert "shifted or rotated part" in summary["cause"]
    assert "above the threshold" in summary["cause"]


def test_calibration_score_of_the_threshold_is_not_a_reference_of_accepted_scores() -> None:
    scores = rows(N, seed=0)[:, 0]
    stats: dict[str, dict[str, Any]] = {name: {"mean": 0.0, "deviation": 1.0, "values": [0.0]} for name in STATISTICS}
    threshold = float(np.sort(scores)[-3])
    monitor = DriftMonitor(CalibrationScores(np.sort(scores)), stats, threshold=threshold, alpha=0.01, seed=0)
    monitor.update(threshold, dict.fromkeys(STATISTICS, 0.0))
    summary = monitor.summary()
    assert summary["streams"]["accepted"]["num_calibration"] == N - 3
    assert summary["streams"]["accepted"]["log10_maximum"] == 0
    assert summary["rejects"]["num"] == 0
    assert summary["rejects"]["expected"] == pytest.approx(3 / (N + 1), abs=1e-6)


def test_means_raise_an_alarm_without_stored_values() -> None:
    monitor = monitor_of(keeps_values=False)
    monitor.replay(changed(rows(40, seed=5), brightness=2))
    summary = monitor.summary()
    assert summary["alarms"] == {"mean brightness": 31}
    assert summary["cause"] == "compared with the calibration images: brighter"
    assert "means of 32" in summary["guarantee"]
    assert summary["streams"]["brightness"]["num_calibration"] == 0
    assert summary["streams"]["brightness"]["log10_threshold"] == pytest.approx(math.log10(1200), abs=1e-3)


def test_ties_of_identical_images_raise_no_alarm() -> None:
    stats: dict[str, dict[str, Any]] = {name: {"mean": 50.0, "deviation": 0.0} for name in STATISTICS}
    monitor = DriftMonitor(CalibrationScores(np.sort(rows(N, seed=0)[:, 0])), stats, threshold=1.0, alpha=0.01, seed=0)
    scores = rows(600, seed=4)[:, :1]
    monitor.replay(np.column_stack([scores, np.full((600, 4), 50, np.float32)]))
    assert not monitor.summary()["alarmed"]


def test_run_rebuilt_from_its_records_continues_equally(tmp_path: Path) -> None:
    images = rows(400, seed=8)
    images[250:] = changed(images[250:], brightness=-3)
    statistics = [dict(zip(STATISTICS, row[1:].astype(float) + 1e-9, strict=True)) for row in images]
    whole, before = monitor_of(), monitor_of()
    with (tmp_path / "drift.bin").open("wb") as file:
        for at, image in enumerate(images):
            score = None if at % 50 == 7 else float(image[0])
            whole.update(score, statistics[at])
            if at < 300:
                before.update(score, statistics[at])
                file.write(to_record(score, statistics[at]))
        file.write(b"torn")
    assert RECORD.size == 20
    rebuilt = monitor_of()
    rebuilt.replay(read_records(tmp_path / "drift.bin", num=300))
    assert rebuilt.summary() == before.summary()
    for at in range(300, 400):
        rebuilt.update(None if at % 50 == 7 else float(images[at, 0]), statistics[at])
    assert rebuilt.summary() == whole.summary()
    assert whole.summary()["alarmed"]
    with pytest.raises(DataError, match=r"holds 300 of 301 records"):
        read_records(tmp_path / "drift.bin", num=301)


def test_rows_without_a_score_only_count_in_the_numbering() -> None:
    images = changed(rows(60, seed=5), score=8)
    plain, with_gaps = monitor_of(), monitor_of()
    for score, *statistics in images.tolist():
        named = dict(zip(STATISTICS, statistics, strict=True))
        plain.update(score, named)
        with_gaps.update(None, None)
        with_gaps.update(math.nan, named)
        with_gaps.update(score, named)
    plain_summary, gaps_summary = plain.summary(), with_gaps.summary()
    assert gaps_summary["num_images"] == 180
    assert gaps_summary["num_scored"] == 60
    assert gaps_summary["first_alarm"] == 3 * plain_summary["first_alarm"] + 2
    assert gaps_summary["streams"] == plain_summary["streams"]


def test_update_reports_each_stream_once() -> None:
    monitor = monitor_of()
    alarms = [monitor.update(float(r[0]), dict(zip(STATISTICS, r[1:].tolist(), strict=True)))
            for r in changed(rows(100, seed=5), score=8, brightness=8)]  # fmt: skip
    flat = [name for names in alarms for name in names]
    assert sorted(flat) == sorted(monitor.summary()["alarms"])
    assert {"score", "brightness"} <= set(flat)


def test_wrong_alpha_and_missing_statistics_are_refused() -> None:
    with pytest.raises(UsageError, match=r"alpha 0 is not a probability"):
        monitor_of(alpha=0)
    with pytest.raises(ModelError, match=r"statistics contrast, sharpness, colour are missing"):
        DriftMonitor(
            CalibrationScores(np.array([0.1, 0.2])),
            {"brightness": {"mean": 1.0, "deviation": 1.0}},
            threshold=1.0,
            alpha=0.01,
            seed=0,
        )
