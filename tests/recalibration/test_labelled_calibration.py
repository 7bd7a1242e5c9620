"""Calibration with labelled images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from anomaly.commands.main import run as cli
from anomaly.conformal.calibration import SCALE_MARGIN, CalibrationScores
from anomaly.conformal.guarantee import rank_for
from anomaly.conformal.scale import fit_scale
from anomaly.errors import CalibrationError, DataError, UsageError
from anomaly.imaging.image_file import read_image, write_png
from anomaly.inference.artifact import calibration_tensors, load_graph, read_metadata, write_model
from anomaly.inference.scorer import OnnxScorer
from anomaly.recalibration.recalibrate import recalibrate
from anomaly.runs.labels import labels_file, read_labels, set_label
from anomaly.runs.sinks import read_rows
from anomaly.scoring.run_threshold import choose_threshold
from tests.plates import draw_part


@pytest.fixture
def night(model: Path, category: Path, tmp_path: Path) -> Path:
    """A finished run over good parts, defects, and good parts under a brighter lamp, which are rejected."""
    images = tmp_path / "images"
    shutil.copytree(category / "test", images)
    (images / "bright").mkdir()
    for n in range(6):
        part = draw_part(3000 + n) * 1.33
        part += np.random.default_rng(n).normal(0, 12, part.shape)  # own noise: no near-duplicates
        write_png(images / "bright" / f"{n:03d}.png", np.clip(np.rint(part), 0, 255).astype(np.uint8))
    run = tmp_path / "night"
    assert cli(["score", str(model), str(images), "--run", str(run), "--device", "cpu"]) == 0
    return run


def label(run: Path, folder: str, kind: Any, *, num: int = 6) -> Path:
    """Label the first images of a folder."""
    rows = [row for row in read_rows(run) if Path(row["path"]).parent.name == folder]
    for row in rows[:num]:
        set_label(labels_file(run), row, label=kind)
    assert len(rows[:num]) == num
    return labels_file(run)


def raw_thresholds(path: Path) -> tuple[float, float]:
    """Thresholds of the score and the map in raw units."""
    values = calibration_tensors(load_graph(path))
    return values["offset_score"] + values["scale_score"], values["offset_map"] + values["scale_map"]


def certificate_of(model: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(model.with_suffix(".certificate.json").read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("chosen", ["high", "low", "at random"])
def test_labelled_good_images_keep_the_guarantee_and_never_lower_the_threshold(chosen: str) -> None:
    rng = np.random.default_rng(7)
    alpha, rates = 0.05, []
    for _ in range(400):
        scores = rng.normal(size=60)
        scale = fit_scale(scores, alpha=alpha, guarantee="expected")
        calibration = CalibrationScores(np.sort((scores - scale.offset) / scale.scale))
        reviewed = np.sort((rng.normal(size=300) - scale.offset) / scale.scale)
        labelled = {"high": reviewed[-10:], "low": reviewed[:200], "at random": rng.permutation(reviewed)[:50]}[chosen]
        threshold = calibration.raised_threshold(labelled, alpha=alpha, guarantee="expected")
        assert threshold >= 1 - 1e-9
        assert threshold == pytest.approx(1) or chosen != "low"
        rates.append(np.mean(rng.normal(size=4000) > scale.offset + threshold * scale.scale))
    assert np.mean(rates) <= alpha + 3 * np.std(rates) / np.sqrt(len(rates))


def test_new_threshold_equals_the_expected_threshold(model: Path, night: Path) -> None:
    old = OnnxScorer(model, device="cpu", num_threads=1)
    before, tensors = raw_thresholds(model), calibration_tensors(load_graph(model))
    file = label(night, "bright", "good", num=4)
    label(night, "scratch", "defect", num=3)
    rows = {row["sha256"]: row["score"] for row in read_rows(night)}
    labels = read_labels(file)
    good = [rows[one.sha256] for one in labels.values() if one.label == "good"]
    defects = [rows[one.sha256] for one in labels.values() if one.label == "defect"]
    assert min(good) > 1
    together = np.sort([*old.metadata.calibration.scores, *good])
    threshold = together[rank_for(14, alpha=old.metadata.alpha, guarantee="expected") - 1] * (1 + SCALE_MARGIN)
    assert recalibrate(model, labels=file).path == model
    new = OnnxScorer(model, device="cpu", num_threads=1)
    raw = tensors["offset_score"] + threshold * tensors["scale_score"]
    assert raw_thresholds(model)[0] == pytest.approx(raw, rel=1e-5)
    assert raw_thresholds(model)[1] > before[1]
    after = calibration_tensors(load_graph(model))
    assert after["offset_score"] == tensors["offset_score"]
    assert after["offset_map"] == tensors["offset_map"]
    peaks = np.array(new.metadata.labelled.peaks) if new.metadata.labelled else np.zeros(0)
    # all ten calibration maps are at most the threshold: the threshold of fourteen is the largest labelled one
    assert rank_for(14, alpha=old.metadata.alpha, guarantee="expected") == 14
    assert np.max(peaks) == pytest.approx(1 / (1 + SCALE_MARGIN), rel=1e-5)
    for name in ("alpha", "guarantee", "image_stats", "category"):
        assert getattr(new.metadata, name) == getattr(old.metadata, name)
    assert new.metadata.golden.png == old.metadata.golden.png
    record = new.metadata.calibration
    assert (record.num_images, record.num_part_groups) == (10, old.metadata.calibration.num_part_groups)
    np.testing.assert_allclose(
        np.array(record.scores) * threshold, old.metadata.calibration.scores, rtol=1e-5, atol=1e-6
    )
    assert record.source == "calibration + 4 labelled good (night.labels.csv)"
    assert new.metadata.labelled is not None
    assert new.metadata.labelled.map_threshold == pytest.approx(tensors["scale_map"] / after["scale_map"], rel=1e-5)
    np.testing.assert_allclose(np.array(new.metadata.labelled.scores) * threshold, good, rtol=1e-4)
    # the alpha of the file gives the threshold of the file, with labels
    assert choose_threshold(new, alpha=new.metadata.alpha) == pytest.approx(1, abs=1e-5)
    certificate = certificate_of(model)
    entry = certificate["labels"]
    assert (certificate["num_images"], certificate["expected_rate"]) == (10, pytest.approx(1 / 11))
    assert (entry["source"], entry["num_good"], entry["num_defect"]) == ("night.labels.csv", 4, 3)
    assert entry["good_rejected"] == [4, sum(score > threshold for score in good)]
    assert entry["defects_accepted"] == [
        sum(score <= 1 for score in defects),
        sum(score <= threshold for score in defects),
    ]
    assert certificate["moved"]["score"]["threshold"] == pytest.approx([before[0], raw], rel=1e-5)
    assert str(night.parent).encode() not in model.read_bytes()


def test_library_prints_nothing_and_the_verb_reports_the_labels(
    model: Path, night: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = label(night, "bright", "good", num=4)
    label(night, "scratch", "defect", num=3)
    capsys.readouterr()
    result = recalibrate(model, labels=file, out=tmp_path / "library.onnx")
    assert capsys.readouterr() == ("", "")
    assert result.has_labels
    assert result.certificate == certificate_of(result.path)
    new = tmp_path / "verb.onnx"
    assert cli(["calibrate", str(model), "--labels", str(file), "--out", str(new)]) == 0
    card = json.loads(new.with_suffix(".calibrate.run.json").read_text(encoding="utf-8"))
    assert card["result"]["labels"] == result.certificate["labels"]
    printed = capsys.readouterr()
    assert "labels of night.labels.csv: 4 good images count" in printed.out
    before, after = result.certificate["labels"]["defects_accepted"]
    assert ("more images labelled defect" in printed.err) == (after > before)


def test_defects_and_good_images_below_the_threshold_do_not_move_it(model: Path, night: Path) -> None:
    before = raw_thresholds(model)
    file = label(night, "scratch", "defect")
    with pytest.raises(DataError, match="has no label good, and defects move no threshold"):
        recalibrate(model, labels=file)
    rows = [row for row in read_rows(night) if row["score"] is not None and row["score"] < 1]
    assert len(rows) >= 3
    for row in rows:
        set_label(file, row, label="good")
    recalibrate(model, labels=file)
    assert raw_thresholds(model) == pytest.approx(before, rel=1e-6)
    assert certificate_of(model)["labels"]["num_defect"] == 6


def test_verb_warns_of_newly_accepted_defects(model: Path, night: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bright = sorted(
        (row for row in read_rows(night) if Path(row["path"]).parent.name == "bright"), key=lambda row: row["score"]
    )
    set_label(labels_file(night), bright[0], label="defect")
    set_label(labels_file(night), bright[-1], label="good")
    assert cli(["calibrate", str(model), "--labels", str(labels_file(night))]) == 0
    assert certificate_of(model)["labels"]["defects_accepted"] == [0, 1]
    assert "WARNING: the new threshold accepts 1 more images labelled defect" in capsys.readouterr().err


def test_labels_of_earlier_calibrations_count_until_they_change(model: Path, night: Path, tmp_path: Path) -> None:
    before = raw_thresholds(model)
    file = label(night, "bright", "good", num=6)
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    both, first, second, back = (tmp_path / name for name in ("both.onnx", "first.onnx", "second.onnx", "back.onnx"))
    recalibrate(model, labels=file, out=both)
    one, other = tmp_path / "one.csv", tmp_path / "other.csv"
    one.write_text("".join(lines[:4]), encoding="utf-8")
    other.write_text("".join([lines[0], *lines[4:]]), encoding="utf-8")
    recalibrate(model, labels=one, out=first)
    recalibrate(first, labels=other, out=second)
    assert raw_thresholds(second) == pytest.approx(raw_thresholds(both), rel=1e-5)
    assert certificate_of(second)["labels"]["num_good_earlier"] == 3
    recalibrate(second, labels=other, out=second)  # the same labels have no further effect
    assert raw_thresholds(second) == pytest.approx(raw_thresholds(both), rel=1e-5)
    assert raw_thresholds(both)[0] > before[0]
    low = next(row for row in read_rows(night) if row["score"] < 1)
    for row in [row for row in read_rows(night) if row["sha256"] in read_labels(file)]:
        set_label(file, row, label="defect")
    set_label(file, low, label="good")
    recalibrate(second, labels=file, out=back)
    assert raw_thresholds(back) == pytest.approx(before, rel=1e-5)
    metadata = read_metadata(load_graph(back), name="back")
    assert metadata.labelled is not None
    assert metadata.labelled.sha256 == [low["sha256"]]
    assert metadata.calibration.source == "calibration + 1 labelled good (night.labels.csv)"


def test_moved_images_are_found_by_their_hash_and_changed_images_are_refused(
    model: Path, night: Path, tmp_path: Path
) -> None:
    file = label(night, "bright", "good", num=2)
    (tmp_path / "images" / "bright").rename(tmp_path / "archive")
    with pytest.raises(DataError, match="is missing, and no folder was searched"):
        recalibrate(model, labels=file)
    assert cli(["calibrate", str(model), "--labels", str(file), "--images", str(tmp_path / "archive")]) == 0
    (tmp_path / "archive").rename(tmp_path / "images" / "bright")
    labelled = Path(next(iter(read_labels(file).values())).path)
    labelled.write_bytes((tmp_path / "images" / "good" / "001.png").read_bytes())
    with pytest.raises(DataError, match=r"1 of 2 labelled images cannot be used, first: .*SHA-256 has changed"):
        recalibrate(model, labels=file)


def test_pixels_with_both_labels_are_refused_and_copies_count_once(
    model: Path, night: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "images" / "bright" / "000.png"
    again = tmp_path / "again" / "000.png"
    again.parent.mkdir()
    cv2.imwrite(str(again), cv2.imread(str(source)), [cv2.IMWRITE_PNG_COMPRESSION, 1])
    assert again.read_bytes() != source.read_bytes()
    darker = np.rint(read_image(source.with_name("001.png"), white=255, max_pixels=10_000) * 0.97).astype(np.uint8)
    write_png(again.with_name("001.png"), darker)
    second = tmp_path / "second"
    assert cli(["score", str(model), str(again.parent), "--run", str(second), "--device", "cpu"]) == 0
    file = label(night, "bright", "good", num=3)
    row, other = read_rows(second)
    set_label(file, row, label="defect")
    with pytest.raises(DataError, match="and both have the same pixels: remove one label"):
        recalibrate(model, labels=file)
    set_label(file, row, label="good")
    set_label(file, other, label="defect")
    assert cli(["calibrate", str(model), "--labels", str(file)]) == 0
    entry = certificate_of(model)["labels"]
    assert (entry["num_good"], entry["copies_left_out"]) == (3, ["000.png"])
    assert entry["good_like_defect"] == [["001.png", "001.png"]]
    assert "WARNING: 001.png is labelled good, 001.png defect, and they are near-duplicates" in capsys.readouterr().err


@pytest.mark.slow
def test_images_and_labels_together(model: Path, night: Path, category: Path, tmp_path: Path) -> None:
    good, alone, both = str(category / "test/good"), tmp_path / "alone.onnx", tmp_path / "both.onnx"
    file = label(night, "bright", "good", num=2)
    label(night, "good", "good", num=1)  # one of the good images
    options = ["--alpha", "0.2", "--out"]
    assert cli(["calibrate", str(model), good, *options, str(alone)]) == 0
    assert cli(["calibrate", str(model), good, "--labels", str(file), *options, str(both)]) == 0
    assert raw_thresholds(both)[0] > raw_thresholds(alone)[0]
    metadata = OnnxScorer(both, device="cpu", num_threads=1).metadata
    assert (metadata.calibration.num_images, metadata.calibration.source) == (
        6,
        "good + 2 labelled good (night.labels.csv)",
    )
    assert certificate_of(both)["labels"]["copies_left_out"] == ["000.png"]
    assert certificate_of(both)["expected_rate"] == certificate_of(alone)["expected_rate"]
    assert cli(["calibrate", str(both), good, *options, str(both)]) == 0  # good images without labels remove the labels
    assert raw_thresholds(both) == pytest.approx(raw_thresholds(alone), rel=1e-5)
    assert OnnxScorer(both, device="cpu", num_threads=1).metadata.labelled is None


def test_guarantee_rests_on_the_calibration_images(model: Path, night: Path) -> None:
    file = label(night, "bright", "good", num=2)
    with pytest.raises(UsageError, match=r"guarantees alpha 0\.09091 \(expected\) .* give GOOD images"):
        recalibrate(model, labels=file, alpha=0.05)
    with pytest.raises(UsageError, match="give GOOD images"):
        recalibrate(model, labels=file, guarantee="bound")
    with pytest.raises(UsageError, match="a calibration needs images"):
        recalibrate(model)
    with pytest.raises(DataError, match=r"none\.csv does not exist: name the file of labels"):
        recalibrate(model, labels="none.csv")
    with pytest.raises(CalibrationError, match="at least 99"):
        CalibrationScores(np.arange(10.0)).raised_threshold(np.arange(500.0), alpha=0.01, guarantee="expected")


def test_file_without_labelled_images_is_read(model: Path) -> None:
    graph = load_graph(model)
    metadata = read_metadata(graph, name="model")
    write_model(model, graph, metadata)
    graph = load_graph(model)
    kept = [p for p in graph.metadata_props if p.key != "anomaly.labelled"]
    assert len(kept) == len(graph.metadata_props) - 1
    del graph.metadata_props[:]
    graph.metadata_props.extend(kept)
    assert read_metadata(graph, name="model") == metadata
    # fields of earlier readers
    calibration = json.loads(next(p.value for p in kept if p.key == "anomaly.calibration"))
    assert set(calibration) == {"num_images", "num_part_groups", "scores", "date", "source", "excluded"}
