from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from anomaly.conformal.beta_distribution import beta_quantile
from anomaly.conformal.drift import (
    RECORD,
    STATISTICS,
    STREAMS,
    Bets,
    DriftWatch,
    Ranks,
    cell_of,
    read_records,
    to_record,
)
from anomaly.errors import DataError, ModelError, UsageError

TYPICAL = np.array([0.0, 120.0, 40.0, 900.0, 15.0])
SPREAD = np.array([0.3, 2.0, 1.0, 40.0, 0.5])
N = 100


def rows(num: int, *, seed: int) -> NDArray[np.float32]:
    """Scores and statistics (num, 5) of undrifted images."""
    normal = np.random.default_rng(seed).standard_normal((num, 5))
    return (TYPICAL + SPREAD * normal).astype(np.float32)


def watch(*, seed: int = 0, keeps_values: bool = True, alpha: float = 0.01, num_calibration: int = N) -> DriftWatch:
    calibration_images = rows(num_calibration, seed=1000 + seed)
    stats: dict[str, dict[str, Any]] = {}
    for at, name in enumerate(STATISTICS, start=1):
        stats[name] = {
            "mean": float(calibration_images[:, at].mean()),
            "deviation": float(calibration_images[:, at].std()),
        }
        if keeps_values:
            stats[name]["values"] = calibration_images[:, at].tolist()
    return DriftWatch(calibration_images[:, 0].tolist(), stats, threshold=1.0, alpha=alpha, seed=seed)


def test_ranks_count_below_and_equal() -> None:
    values = np.random.default_rng(0).integers(0, 50, 3000).astype(np.float32)
    ranks = Ranks(values[:10].tolist())
    for n, value in enumerate(values[10:].tolist(), start=10):
        assert ranks.add(value) == (int((values[:n] < value).sum()), int((values[:n] == value).sum()))
    assert len(ranks) == 3000


def test_bets_neither_win_nor_lose_on_uniform_values() -> None:
    logit = np.linspace(-27, 27, 100_001)
    u = 1 / (1 + np.exp(-logit))
    weight = u * (1 - u) * (logit[1] - logit[0])
    bets = Bets(len(u))
    bets.bet(u)
    assert 0.995 < float((weight * np.exp(bets.log_capital)).sum()) < 1 + 1e-9  # what is capped at the edges is lost


def test_bets_leave_a_stream_without_a_value_alone() -> None:
    bets = Bets(2)
    for _ in range(20):
        bets.bet(np.array([0.999, np.nan]))
    assert bets.log_capital[0] > math.log(1000)
    assert bets.log_capital[1] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("ties", [False, True])
def test_undrifted_runs_keep_the_stated_error_which_fixed_ranks_do_not(ties: bool) -> None:
    num_runs, length, n = 60, 2000, 42
    rng = np.random.default_rng(7)
    values = rng.standard_normal((num_runs, n + length)).astype(np.float32)
    values = np.round(values, 1) if ties else values
    theta = rng.random((num_runs, length))
    online, fixed = np.empty((2, length, num_runs))
    for run in range(num_runs):
        ranks = Ranks(values[run, :n].tolist())
        order = np.sort(values[run, :n])
        for t, value in enumerate(values[run, n:].tolist()):
            below, equal = ranks.add(value)
            online[t, run] = (below + theta[run, t] * (equal + 1)) / len(ranks)
        left, right = order.searchsorted(values[run, n:], "left"), order.searchsorted(values[run, n:], "right")
        fixed[:, run] = (left + theta[run] * (right - left + 1)) / (n + 1)
    shares = []
    for u in (online, fixed):
        bets = Bets(num_runs)
        maximum = np.zeros(num_runs)
        for row in u:
            bets.bet(row)
            np.maximum(maximum, bets.log_capital, out=maximum)
        shares.append(float((maximum >= math.log(1 / 0.05)).mean()))
    assert shares[0] <= beta_quantile(0.99, 0.05 * num_runs + 1, 0.95 * num_runs)
    assert shares[1] > 0.3


@pytest.mark.parametrize("keeps_values", [False, True])
def test_the_whole_watch_is_silent_on_undrifted_runs(keeps_values: bool) -> None:
    alarmed = 0
    for seed in range(15):
        one = watch(seed=seed, keeps_values=keeps_values)
        one.replay(rows(1100, seed=seed))
        alarmed += one.summary()["alarmed"]
    assert alarmed == 0  # 0.15 are expected at most


def test_summary_of_a_quiet_run_says_what_is_guaranteed() -> None:
    one = watch()
    one.replay(rows(300, seed=3))
    told = json.loads(json.dumps(one.summary(), allow_nan=False))
    assert told["alarmed"] is False
    assert told["first_alarm"] is None
    assert told["cause"] == ""
    assert told["num_images"] == told["num_scored"] == 300
    assert set(told["streams"]) == set(STREAMS)
    assert told["streams"]["score"]["log10_threshold"] == pytest.approx(math.log10(600), abs=1e-3)
    assert "at most 0.01" in told["guarantee"]
    assert told["rejects"]["expected"] == pytest.approx(1 / 101, abs=1e-6)
    assert told["rejects"]["bound"] == pytest.approx(1 - 0.05**0.01, abs=1e-6)


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
def test_changed_images_alarm_soon_and_are_named(deviations: dict[str, float], cause: str, num_clean: int) -> None:
    one = watch()
    clean = rows(num_clean + 100, seed=5)
    clean[num_clean:] = changed(clean[num_clean:], **deviations)
    one.replay(clean)
    told = one.summary()
    assert num_clean <= told["first_alarm"] < num_clean + 25
    assert told["cause"].partition(";")[0] == f"the images against those of calibration: {cause}"
    for name, away in deviations.items():
        assert told["moved_by_deviations"][name] == pytest.approx(away, abs=0.8 + abs(away) / 8)


def test_darker_images_are_not_told_to_have_lost_contrast_and_colour_as_well() -> None:
    clean = rows(100, seed=5)
    clean[:, 1:] *= np.array([0.8, 0.8, 0.64, 0.8], dtype=np.float32)
    one = watch()
    one.replay(clean)
    assert one.summary()["cause"] == "the images against those of calibration: darker"
    assert len(one.summary()["alarms"]) > 1


def test_a_moved_score_alone_is_told_as_such_in_either_direction() -> None:
    for away in (-2.5, 2.0):
        one = watch()
        one.replay(changed(rows(200, seed=5), score=away))
        told = one.summary()
        assert told["alarms"].keys() <= {"score", "accepted"}
        assert told["first_alarm"] < 30
        assert told["cause"].startswith("the score moved, the image statistics did not: a shifted or turned part")
        assert not told["explained_by_reject_rate"]


def test_defects_alarm_and_are_told_from_drift_by_the_accepted_scores() -> None:
    images = rows(2000, seed=6)
    defects = np.random.default_rng(0).random(2000) < 0.3
    images[defects, 0] += 3
    one = watch()
    one.replay(images)
    told = one.summary()
    assert set(told["alarms"]) == {"score"}
    assert told["explained_by_reject_rate"]
    assert told["cause"].endswith("more defects")
    assert told["rejects"]["changed"]
    assert told["rejects"]["num"] == int((images[:, 0] > 1).sum())
    low, high = told["rejects"]["interval"]
    assert low < told["rejects"]["rate"] < high


def test_a_part_that_moved_and_is_rejected_throughout_is_not_told_to_be_defects() -> None:
    images = rows(400, seed=6)
    images[200:, 0] += 3
    one = watch()
    one.replay(images)
    told = one.summary()
    assert 200 <= told["first_alarm"] < 215
    assert not told["explained_by_reject_rate"]
    assert "shifted or turned part" in told["cause"]
    assert "above the threshold" in told["cause"]


def test_the_calibration_score_that_sets_the_threshold_is_no_reference_of_the_accepted_ones() -> None:
    scores = rows(N, seed=0)[:, 0]
    stats: dict[str, dict[str, Any]] = {name: {"mean": 0.0, "deviation": 1.0, "values": [0.0]} for name in STATISTICS}
    threshold = float(np.sort(scores)[-3])
    one = DriftWatch(scores.tolist(), stats, threshold=threshold, alpha=0.01, seed=0)
    one.update(threshold, dict.fromkeys(STATISTICS, 0.0))
    told = one.summary()
    assert told["streams"]["accepted"]["num_calibration"] == N - 3
    assert told["streams"]["accepted"]["log10_maximum"] == 0
    assert told["rejects"]["num"] == 0
    assert told["rejects"]["expected"] == pytest.approx(3 / (N + 1), abs=1e-6)


def test_means_alarm_where_the_metadata_keep_no_values() -> None:
    one = watch(keeps_values=False)
    one.replay(changed(rows(40, seed=5), brightness=2))
    told = one.summary()
    assert told["alarms"] == {"mean brightness": 31}
    assert told["cause"] == "the images against those of calibration: brighter"
    assert "means of 32" in told["guarantee"]
    assert told["streams"]["brightness"]["num_calibration"] == 0
    assert told["streams"]["brightness"]["log10_threshold"] == pytest.approx(math.log10(1200), abs=1e-3)


def test_identical_images_of_a_grey_camera_do_not_alarm_by_their_ties() -> None:
    stats: dict[str, dict[str, Any]] = {name: {"mean": 50.0, "deviation": 0.0} for name in STATISTICS}
    one = DriftWatch(rows(N, seed=0)[:, 0].tolist(), stats, threshold=1.0, alpha=0.01, seed=0)
    scores = rows(600, seed=4)[:, :1]
    one.replay(np.column_stack([scores, np.full((600, 4), 50, np.float32)]))
    assert not one.summary()["alarmed"]


def test_a_run_rebuilt_from_its_records_is_the_run_that_went_on(tmp_path: Path) -> None:
    images = rows(400, seed=8)
    images[250:] = changed(images[250:], brightness=-3)
    statistics = [dict(zip(STATISTICS, row[1:].astype(float) + 1e-9, strict=True)) for row in images]
    through, before = watch(), watch()
    with (tmp_path / "drift.bin").open("wb") as file:
        for at, image in enumerate(images):
            score = None if at % 50 == 7 else float(image[0])
            through.update(score, statistics[at])
            if at < 300:
                before.update(score, statistics[at])
                file.write(to_record(score, statistics[at]))
        file.write(b"torn")
    assert RECORD.size == 20
    again = watch()
    again.replay(read_records(tmp_path / "drift.bin", num=300))
    assert again.summary() == before.summary()
    for at in range(300, 400):
        again.update(None if at % 50 == 7 else float(images[at, 0]), statistics[at])
    assert again.summary() == through.summary()
    assert through.summary()["alarmed"]
    with pytest.raises(DataError, match=r"holds 300 of 301 records"):
        read_records(tmp_path / "drift.bin", num=301)


def test_rows_without_a_score_count_in_the_numbering_alone() -> None:
    images = changed(rows(60, seed=5), score=8)
    plain, holed = watch(), watch()
    for score, *statistics in images.tolist():
        named = dict(zip(STATISTICS, statistics, strict=True))
        plain.update(score, named)
        holed.update(None, None)
        holed.update(math.nan, named)
        holed.update(score, named)
    one, other = plain.summary(), holed.summary()
    assert other["num_images"] == 180
    assert other["num_scored"] == 60
    assert other["first_alarm"] == 3 * one["first_alarm"] + 2
    assert other["streams"] == one["streams"]


def test_update_tells_of_each_stream_once() -> None:
    one = watch()
    told = [one.update(float(r[0]), dict(zip(STATISTICS, r[1:].tolist(), strict=True)))
            for r in changed(rows(100, seed=5), score=8, brightness=8)]  # fmt: skip
    flat = [name for names in told for name in names]
    assert sorted(flat) == sorted(one.summary()["alarms"])
    assert {"score", "brightness"} <= set(flat)


def test_cells_are_in_order_of_size_and_half_a_thousandth_wide() -> None:
    size = np.geomspace(1e-30, 1e30, 2000)
    values = np.concatenate([[-math.inf], -size[::-1], [-0.0, 0.0], size, [math.inf]]).tolist()
    cells = [cell_of(value) for value in values]
    assert cells == sorted(cells)
    assert 0 <= cells[0] < cells[-1] < 2**20
    assert cell_of(-0.0) == cell_of(0.0)
    for value in (-700.0, -0.3, 1e-3, 1.0, 130.0):
        assert cell_of(value) != cell_of(value * 1.001)


def test_memory_of_ranks_does_not_grow_with_the_values() -> None:
    ranks = Ranks([0.0])
    held = ranks._num.nbytes + ranks._num_of_row.nbytes
    for value in np.random.default_rng(0).normal(120, 2, 20_000).tolist():
        ranks.add(value)
    assert ranks._num.nbytes + ranks._num_of_row.nbytes == held
    assert ranks._num.any(axis=1).sum() < 8  # rows are pages, and those that no value meets are never the process's


def test_wrong_alpha_and_missing_statistics_are_refused() -> None:
    with pytest.raises(UsageError, match=r"alpha 0 is no probability"):
        watch(alpha=0)
    with pytest.raises(ModelError, match=r"lack contrast, sharpness, colour"):
        DriftWatch([0.1, 0.2], {"brightness": {"mean": 1.0, "deviation": 1.0}}, threshold=1.0, alpha=0.01, seed=0)
