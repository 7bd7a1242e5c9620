from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from anomaly.commands.main import run
from anomaly.errors import CalibrationError, DataError, ParityError
from anomaly.imaging.image_file import read_image, write_png
from anomaly.inference.artifact import calibration_tensors, load_graph
from anomaly.inference.scorer import OnnxScorer, Scores
from anomaly.recalibration import calibrated_file
from anomaly.recalibration.recalibrate import recalibrate
from tests.plates import draw_part


@pytest.fixture
def calibration_images(fitted_plate: Path, tmp_path: Path) -> Path:
    """A list of the images that the model was calibrated on."""
    description = json.loads((fitted_plate / "detector.json").read_text(encoding="utf-8"))
    path = tmp_path / "calibration_images.txt"
    path.write_text("\n".join(description["calibration_images"]), encoding="utf-8")
    return path


def brighter(calibration_images: Path, folder: Path) -> Path:
    """A folder of the same images under a lamp a third brighter."""
    folder.mkdir()
    for path in calibration_images.read_text(encoding="utf-8").splitlines():
        image = read_image(path, white=255, max_pixels=10_000)
        write_png(folder / Path(path).name, np.clip(np.rint(image * 1.33), 0, 255).astype(np.uint8))
    return folder


def load(path: Path) -> OnnxScorer:
    return OnnxScorer(path, device="cpu", num_threads=1)


def images_of(folder: Path) -> NDArray[np.uint8]:
    return np.stack([read_image(p, white=255, max_pixels=10_000) for p in sorted(folder.iterdir())])


def raw_thresholds(path: Path) -> tuple[float, float]:
    """Thresholds of the score and the map in raw units."""
    values = calibration_tensors(load_graph(path))
    return values["offset_score"] + values["scale_score"], values["offset_map"] + values["scale_map"]


def test_same_images_give_the_same_threshold(model: Path, calibration_images: Path, category: Path) -> None:
    old, old_thresholds, images = load(model), raw_thresholds(model), images_of(category / "test/good")
    assert recalibrate(model, good=calibration_images).path == model
    new = load(model)
    assert raw_thresholds(model) == pytest.approx(old_thresholds, rel=1e-5)
    assert new.metadata.alpha == pytest.approx(old.metadata.alpha)
    np.testing.assert_allclose(new.metadata.calibration.scores, old.metadata.calibration.scores, atol=1e-4)
    np.testing.assert_allclose(new.score(images).score, old.score(images).score, atol=1e-4)
    np.testing.assert_allclose(new.score(images).anomaly_map, old.score(images).anomaly_map, atol=1e-4)
    assert new.metadata.golden.png == old.metadata.golden.png


def test_brighter_images_move_the_threshold_and_keep_the_guarantee(
    model: Path, calibration_images: Path, tmp_path: Path
) -> None:
    folder = brighter(calibration_images, tmp_path / "brighter")
    images, before = images_of(folder), raw_thresholds(model)
    assert load(model).score(images).score.max() > 1
    old = load(model).metadata
    recalibrate(model, good=folder)
    new = load(model)
    assert raw_thresholds(model) != pytest.approx(before, rel=0.05)
    scores = new.score(images)
    assert scores.score.max() < 1
    assert scores.anomaly_map.max() < 1
    assert scores.score.max() == pytest.approx(1 / (1 + 1e-3), abs=1e-5)
    assert float(np.median(scores.score)) == pytest.approx(0, abs=1e-5)
    assert new.metadata.image_stats["brightness"]["mean"] > old.image_stats["brightness"]["mean"] * 1.1
    assert new.metadata.golden.png != old.golden.png


def test_ranks_of_the_scores_stay(model: Path, calibration_images: Path, category: Path, tmp_path: Path) -> None:
    images = images_of(category / "test/good")
    before = load(model).score(images).score
    recalibrate(str(model), good=str(brighter(calibration_images, tmp_path / "brighter")))
    assert np.array_equal(np.argsort(load(model).score(images).score), np.argsort(before))


def test_training_images_are_refused(model: Path, category: Path) -> None:
    before = model.read_bytes()
    with pytest.raises(DataError, match=r"30 of 40 images trained .*model.onnx, first "):
        recalibrate(model, good=category / "train/good")
    assert model.read_bytes() == before


def test_metadata_certificate_and_card_hold_the_new_calibration(
    model: Path, calibration_images: Path, category: Path, tmp_path: Path
) -> None:
    old, old_bytes, new_path = load(model), model.read_bytes(), tmp_path / "new" / "again.onnx"
    options = ["--out", str(new_path), "--alpha", "0.2", "--guarantee", "bound"]
    good = tmp_path / "good"
    good.mkdir()
    for n in range(40):
        write_png(good / f"{n:03d}.png", draw_part(3000 + n))
    assert run(["calibrate", str(model), str(good), *options]) == 0
    assert model.read_bytes() == old_bytes
    names = ["again.calibrate.run.json", "again.certificate.json", "again.onnx"]
    assert sorted(p.name for p in new_path.parent.iterdir()) == names
    new = load(new_path)
    record = new.metadata.calibration
    assert (new.metadata.alpha, new.metadata.guarantee) == (0.2, "bound")
    assert (record.num_images, record.source, record.excluded) == (40, "good", [])
    assert record.scores == sorted(record.scores)
    assert new.metadata.sha256 != old.metadata.sha256
    for name in ("detector", "category", "config", "resize", "white", "size", "roi", "commit", "seed", "contract"):
        assert getattr(new.metadata, name) == getattr(old.metadata, name)
    certificate = json.loads((new_path.parent / "again.certificate.json").read_text(encoding="utf-8"))
    assert certificate["model"] == new.sha256 == hashlib.sha256(new_path.read_bytes()).hexdigest()
    assert certificate["previous_model"] == old.sha256
    assert (certificate["alpha"], certificate["guarantee"], certificate["num_images"]) == (0.2, "bound", 40)
    assert certificate["expected_rate"] < certificate["rate_bound"] <= 0.2
    assert certificate["score"]["max"] <= 1e-4
    assert certificate["map_maximum"]["max"] <= 1e-4
    card = json.loads((new_path.parent / "again.calibrate.run.json").read_text(encoding="utf-8"))
    assert card["config"]["good"] == str(good)
    assert str(category.parent).encode() not in new_path.read_bytes()


def test_calibration_scores_in_the_file_are_its_outputs(model: Path, calibration_images: Path) -> None:
    recalibrate(model, good=calibration_images)
    scorer = load(model)
    paths = calibration_images.read_text(encoding="utf-8").splitlines()
    given = [float(scorer.score(read_image(p, white=255, max_pixels=10_000)[None]).score[0]) for p in paths]
    np.testing.assert_allclose(np.sort(given), scorer.metadata.calibration.scores, atol=1e-4)


def refuse(model: Path, error: type[BaseException], message: str, good: Path, **options: Any) -> None:
    """Check that a calibration fails and leaves the old file alone."""
    before, beside = model.read_bytes(), sorted(p.name for p in model.parent.iterdir())
    with pytest.raises(error, match=message):
        recalibrate(model, good=good, **options)
    assert model.read_bytes() == before
    assert sorted(p.name for p in model.parent.iterdir()) == beside


def test_unsupported_alpha_leaves_the_file(model: Path, calibration_images: Path) -> None:
    refuse(model, CalibrationError, "of 10 good parts .* at least 99", calibration_images, alpha=0.01)
    refuse(model, CalibrationError, "of 10 good parts .* at least 29", calibration_images, alpha=0.1, guarantee="bound")
    refuse(model, CalibrationError, "between 0 and 1", calibration_images, alpha=1.5)
    refuse(model, CalibrationError, "at their median or below", calibration_images, alpha=0.7)


def test_unusable_image_leaves_the_file(model: Path, calibration_images: Path, tmp_path: Path) -> None:
    folder = brighter(calibration_images, tmp_path / "brighter")
    (folder / "bad.png").write_bytes(b"no image")
    (folder / "empty.png").write_bytes(b"")
    refuse(model, DataError, r"2 of 12 good images cannot be used, first: .*bad\.png", folder)


def test_copies_of_one_image_leave_the_file(model: Path, calibration_images: Path) -> None:
    first = calibration_images.read_text(encoding="utf-8").splitlines()[0]
    calibration_images.write_text("\n".join([first] * 20), encoding="utf-8")
    refuse(model, CalibrationError, "20 calibration images have almost the same score", calibration_images)


class Drifting(OnnxScorer):
    """A runtime that gives unexpected scores for the new file."""

    def score(self, image: NDArray[np.uint8]) -> Scores:
        scores = super().score(image)
        if self.path.name.endswith(".partial") and len(image) > 1:
            return Scores(scores.score + np.float32(0.01), scores.anomaly_map)
        return scores


def test_file_with_unexpected_scores_is_not_kept(
    model: Path, calibration_images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrated_file, "OnnxScorer", Drifting)
    refuse(model, ParityError, r"differs from the expected values by 0\.01", calibration_images)


def test_interruption_leaves_the_file(model: Path, calibration_images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(OnnxScorer):
        def score(self, image: NDArray[np.uint8]) -> Scores:
            if self.path.name.endswith(".partial") and len(image) > 1:
                raise KeyboardInterrupt
            return super().score(image)

    monkeypatch.setattr(calibrated_file, "OnnxScorer", Interrupted)
    refuse(model, KeyboardInterrupt, "^$", calibration_images)
