"""What a calibration makes of the images that a person labelled."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from anomaly.commands.main import run as cli
from anomaly.commands.score import choose_threshold
from anomaly.conformal.calibration import SCALE_MARGIN, fit_scale, raised_threshold, rank_for
from anomaly.errors import CalibrationError, DataError, UsageError
from anomaly.imaging.image_file import read_image, write_png
from anomaly.inference.artifact import calibration_tensors, load_graph, read_metadata, write_model
from anomaly.inference.scorer import OnnxScorer
from anomaly.recalibration.recalibrate import calibrate
from anomaly.runs.labels import labels_file, read_labels, set_label
from anomaly.runs.sinks import read_rows
from tests.plates import draw_part


@pytest.fixture
def night(model: Path, category: Path, tmp_path: Path) -> Path:
    """A finished run over good parts, others under a brighter lamp, which are rejected, and defects."""
    images = tmp_path / "images"
    shutil.copytree(category / "test", images)
    (images / "bright").mkdir()
    for n in range(6):
        part = draw_part(3000 + n) * 1.33
        part += np.random.default_rng(n).normal(0, 12, part.shape)  # a grain of its own: no two are near-duplicates
        write_png(images / "bright" / f"{n:03d}.png", np.clip(np.rint(part), 0, 255).astype(np.uint8))
    run = tmp_path / "night"
    assert cli(["score", str(model), str(images), "--run", str(run), "--device", "cpu"]) == 0
    return run


def label(run: Path, folder: str, kind: Any, *, num: int = 6) -> Path:
    """Label the first images of a folder."""
    rows = [row for row in read_rows(run) if Path(row["path"]).parent.name == folder]
    for row in rows[:num]:
        set_label(labels_file(run), row, label=kind, by="")
    assert len(rows[:num]) == num
    return labels_file(run)


def limits(path: Path) -> tuple[float, float]:
    """The raw score and the raw map's value that are the threshold."""
    values = calibration_tensors(load_graph(path))
    return values["offset_score"] + values["scale_score"], values["offset_map"] + values["scale_map"]


def certificate_of(model: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(model.with_suffix(".certificate.json").read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("chosen", ["high", "low", "at random"])
def test_labelled_good_images_never_break_the_guarantee_and_never_lower_the_threshold(chosen: str) -> None:
    rng = np.random.default_rng(7)
    alpha, rates = 0.05, []
    for _ in range(400):
        scores = rng.normal(size=60)
        scale = fit_scale(scores, alpha=alpha, guarantee="expected")
        calibration_images = np.sort((scores - scale.offset) / scale.scale)
        reviewed = np.sort((rng.normal(size=300) - scale.offset) / scale.scale)
        labelled = {"high": reviewed[-10:], "low": reviewed[:200], "at random": rng.permutation(reviewed)[:50]}[chosen]
        threshold = raised_threshold(calibration_images, labelled=labelled, alpha=alpha, guarantee="expected")
        assert threshold >= 1 - 1e-9
        assert threshold == pytest.approx(1) or chosen != "low"
        rates.append(np.mean(rng.normal(size=4000) > scale.offset + threshold * scale.scale))
    assert np.mean(rates) <= alpha + 3 * np.std(rates) / np.sqrt(len(rates))


def test_threshold_moves_as_the_arithmetic_says(model: Path, night: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = OnnxScorer(model, device="cpu", num_threads=1)
    before, tensors = limits(model), calibration_tensors(load_graph(model))
    file = label(night, "bright", "good", num=4)
    label(night, "scratch", "defect", num=3)
    rows = {row["sha256"]: row["score"] for row in read_rows(night)}
    labels = read_labels(file)
    good = [rows[one.sha256] for one in labels.values() if one.label == "good"]
    defects = [rows[one.sha256] for one in labels.values() if one.label == "defect"]
    assert min(good) > 1
    together = np.sort([*old.metadata.calibration.scores, *good])
    threshold = together[rank_for(14, alpha=old.metadata.alpha, guarantee="expected") - 1] * (1 + SCALE_MARGIN)
    assert calibrate(model, labels=str(file)) == model
    new = OnnxScorer(model, device="cpu", num_threads=1)
    raw = tensors["offset_score"] + threshold * tensors["scale_score"]
    assert limits(model)[0] == pytest.approx(raw, rel=1e-5)
    assert limits(model)[1] > before[1]
    after = calibration_tensors(load_graph(model))
    assert after["offset_score"] == tensors["offset_score"]
    assert after["offset_map"] == tensors["offset_map"]
    peaks = np.array(new.metadata.labelled.peaks) if new.metadata.labelled else np.zeros(0)
    # all ten calibration maps are at the threshold or below it: the threshold of fourteen is the largest of the labelled ones
    assert rank_for(14, alpha=old.metadata.alpha, guarantee="expected") == 14
    assert np.max(peaks) == pytest.approx(1 / (1 + SCALE_MARGIN), rel=1e-5)
    for name in ("alpha", "guarantee", "image_stats", "category"):
        assert getattr(new.metadata, name) == getattr(old.metadata, name)
    assert new.metadata.golden.png == old.metadata.golden.png
    record = new.metadata.calibration
    assert (record.num_images, record.num_part_groups) == (10, old.metadata.calibration.num_part_groups)
    np.testing.assert_allclose(np.array(record.scores) * threshold, old.metadata.calibration.scores, rtol=1e-5, atol=1e-6)
    assert record.source == "calibration + 4 labelled good (night.labels.csv)"
    assert new.metadata.labelled is not None
    assert new.metadata.labelled.map_threshold == pytest.approx(tensors["scale_map"] / after["scale_map"], rel=1e-5)
    np.testing.assert_allclose(np.array(new.metadata.labelled.scores) * threshold, good, rtol=1e-4)
    # the threshold that the file's own alpha sets is the file's own, labels counted
    assert choose_threshold(new, threshold="model", alpha=new.metadata.alpha, guarantee="expected") == pytest.approx(1, abs=1e-5)
    certificate = certificate_of(model)
    told = certificate["labels"]
    assert (certificate["num_images"], certificate["expected_rate"]) == (10, pytest.approx(1 / 11))
    assert (told["source"], told["num_good"], told["num_defect"]) == ("night.labels.csv", 4, 3)
    assert told["good_rejected"] == [4, sum(good > threshold for good in good images)]
    assert told["defects_accepted"] == [sum(d <= 1 for d in defects), sum(d <= threshold for d in defects)]
    assert certificate["moved"]["score"]["threshold"] == pytest.approx([before[0], raw], rel=1e-5)
    card = json.loads(model.with_suffix(".calibrate.run.json").read_text(encoding="utf-8"))
    assert card["result"]["labels"] == told
    assert str(night.parent).encode() not in model.read_bytes()
    said = capsys.readouterr()
    assert "labels of night.labels.csv: 4 good count for the threshold" in said.out
    assert ("more of the images that are labelled defect" in said.err) == (
        told["defects_accepted"][1] > told["defects_accepted"][0]
    )


def test_defects_and_good_images_below_the_threshold_do_not_move_it(model: Path, night: Path) -> None:
    before = limits(model)
    file = label(night, "scratch", "defect")
    with pytest.raises(DataError, match="labels no image as good, and defects move no threshold"):
        calibrate(model, labels=str(file))
    rows = [row for row in read_rows(night) if row["score"] is not None and row["score"] < 1]
    assert len(rows) >= 3
    for row in rows:
        set_label(file, row, label="good", by="")
    calibrate(model, labels=str(file))
    assert limits(model) == pytest.approx(before, rel=1e-6)
    assert certificate_of(model)["labels"]["num_defect"] == 6


def test_cost_of_a_raised_threshold_is_told_loudly(model: Path, night: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bright = sorted(
        (row for row in read_rows(night) if Path(row["path"]).parent.name == "bright"), key=lambda row: row["score"]
    )
    set_label(labels_file(night), bright[0], label="defect", by="")
    set_label(labels_file(night), bright[-1], label="good", by="")
    calibrate(model, labels=str(labels_file(night)))
    assert certificate_of(model)["labels"]["defects_accepted"] == [0, 1]
    assert "WARNING: the new threshold accepts 1 more of the images that are labelled defect" in capsys.readouterr().err


def test_labels_of_earlier_calibrations_count_until_they_are_taken_back(
    model: Path, night: Path, tmp_path: Path
) -> None:
    before = limits(model)
    file = label(night, "bright", "good", num=6)
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    both, first, second, back = (tmp_path / name for name in ("both.onnx", "first.onnx", "second.onnx", "back.onnx"))
    calibrate(model, labels=str(file), out=str(both))
    one, other = tmp_path / "one.csv", tmp_path / "other.csv"
    one.write_text("".join(lines[:4]), encoding="utf-8")
    other.write_text("".join([lines[0], *lines[4:]]), encoding="utf-8")
    calibrate(model, labels=str(one), out=str(first))
    calibrate(first, labels=str(other), out=str(second))
    assert limits(second) == pytest.approx(limits(both), rel=1e-5)
    assert certificate_of(second)["labels"]["num_good_earlier"] == 3
    calibrate(second, labels=str(other), out=str(second))  # once more says no more
    assert limits(second) == pytest.approx(limits(both), rel=1e-5)
    assert limits(both)[0] > before[0]
    low = next(row for row in read_rows(night) if row["score"] < 1)
    for row in [row for row in read_rows(night) if row["sha256"] in read_labels(file)]:
        set_label(file, row, label="defect", by="")
    set_label(file, low, label="good", by="")
    calibrate(second, labels=str(file), out=str(back))
    assert limits(back) == pytest.approx(before, rel=1e-5)
    metadata = read_metadata(load_graph(back), name="back")
    assert metadata.labelled is not None
    assert metadata.labelled.sha256 == [low["sha256"]]
    assert metadata.calibration.source == "calibration + 1 labelled good (night.labels.csv)"


def test_moved_images_are_found_by_their_hash_and_changed_ones_refused(
    model: Path, night: Path, tmp_path: Path
) -> None:
    file = label(night, "bright", "good", num=2)
    (tmp_path / "images" / "bright").rename(tmp_path / "archive")
    with pytest.raises(DataError, match="is gone, and no image of its SHA-256"):
        calibrate(model, labels=str(file))
    assert cli(["calibrate", str(model), "--labels", str(file), "--images", str(tmp_path / "archive")]) == 0
    (tmp_path / "archive").rename(tmp_path / "images" / "bright")
    labelled = Path(next(iter(read_labels(file).values())).path)
    labelled.write_bytes((tmp_path / "images" / "good" / "001.png").read_bytes())
    with pytest.raises(DataError, match=r"1 of 2 labelled images cannot be used, first: .*other bytes than when it was"):
        calibrate(model, labels=str(file))


def test_pixels_labelled_both_ways_are_refused_and_copies_count_once(
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
    set_label(file, row, label="defect", by="")
    with pytest.raises(DataError, match="and both have the same pixels: unset one label"):
        calibrate(model, labels=str(file))
    set_label(file, row, label="good", by="")
    set_label(file, other, label="defect", by="")
    calibrate(model, labels=str(file))
    told = certificate_of(model)["labels"]
    assert (told["num_good"], told["copies_left_out"]) == (3, ["000.png"])
    assert told["good_like_defect"] == [["001.png", "001.png"]]
    assert "WARNING: 001.png is labelled good and 001.png defect, and they look alike" in capsys.readouterr().err


def test_images_and_labels_together(model: Path, night: Path, category: Path, tmp_path: Path) -> None:
    good, alone, both = str(category / "test/good"), tmp_path / "alone.onnx", tmp_path / "both.onnx"
    file = label(night, "bright", "good", num=2)
    label(night, "good", "good", num=1)  # the same image as among the good ones
    options = ["--alpha", "0.2", "--out"]
    assert cli(["calibrate", str(model), good, *options, str(alone)]) == 0
    assert cli(["calibrate", str(model), good, "--labels", str(file), *options, str(both)]) == 0
    assert limits(both)[0] > limits(alone)[0]
    metadata = OnnxScorer(both, device="cpu", num_threads=1).metadata
    assert (metadata.calibration.num_images, metadata.calibration.source) == (
        6,
        "good + 2 labelled good (night.labels.csv)",
    )
    assert certificate_of(both)["labels"]["copies_left_out"] == ["000.png"]
    assert certificate_of(both)["expected_rate"] == certificate_of(alone)["expected_rate"]
    assert cli(["calibrate", str(both), good, *options, str(both)]) == 0  # new images alone: labels are gone
    assert limits(both) == pytest.approx(limits(alone), rel=1e-5)
    assert OnnxScorer(both, device="cpu", num_threads=1).metadata.labelled is None


def test_guarantee_comes_from_calibration_images_images_alone(model: Path, night: Path) -> None:
    file = str(label(night, "bright", "good", num=2))
    with pytest.raises(UsageError, match=r"guarantees alpha 0\.09091 \(expected\) .* give GOOD images"):
        calibrate(model, labels=file, alpha=0.05)
    with pytest.raises(UsageError, match="give GOOD images"):
        calibrate(model, labels=file, guarantee="bound")
    with pytest.raises(UsageError, match="nothing to calibrate on"):
        calibrate(model)
    with pytest.raises(DataError, match=r"no labels at none\.csv"):
        calibrate(model, labels="none.csv")
    with pytest.raises(CalibrationError, match="at least 99"):
        raised_threshold(np.arange(10.0), labelled=np.arange(500.0), alpha=0.01, guarantee="expected")


def test_file_of_before_labels_is_read(model: Path) -> None:
    graph = load_graph(model)
    metadata = read_metadata(graph, name="model")
    write_model(model, graph, metadata)
    graph = load_graph(model)
    kept = [p for p in graph.metadata_props if p.key != "anomaly.labelled"]
    assert len(kept) == len(graph.metadata_props) - 1
    del graph.metadata_props[:]
    graph.metadata_props.extend(kept)
    assert read_metadata(graph, name="model") == metadata
    # a reader of before takes the fields that it knows from the top level; below it, it takes no others
    calibration = json.loads(next(p.value for p in kept if p.key == "anomaly.calibration"))
    assert set(calibration) == {"num_images", "num_part_groups", "scores", "date", "source", "excluded"}
