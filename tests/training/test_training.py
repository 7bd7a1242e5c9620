"""Fit from a folder of images to a fitted model: reading, split, options, refusals, and the run card."""

from __future__ import annotations

import gc
import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from anomaly.commands.fit import fit
from anomaly.data.folders import find_category
from anomaly.detectors.autoencoder import Autoencoder
from anomaly.detectors.base import Detector
from anomaly.errors import CalibrationError, DataError, ModelError, OutputError, UsageError
from anomaly.export.model_file import export_model
from anomaly.export.parity import verify
from anomaly.imaging.image_file import write_png
from anomaly.inference.scorer import OnnxScorer
from anomaly.nn.batch import Batch
from anomaly.samplers.base import Sampler
from anomaly.training.fit import fit_model
from anomaly.training.fitted_model import load_fitted_model
from anomaly.training.options import choose_white, read_roi
from anomaly.training.torch_scorer import TorchScorer
from tests.plates import NUM_TRAIN, TINY, draw_part
from tests.training.quick_training import FLOW, MAX_PIXELS, ONE_EPOCH, quick_fit, write_parts

pytestmark = pytest.mark.slow


def test_equal_seeds_give_equal_detectors(plain: Path, tmp_path: Path) -> None:
    (one, of_one), (two, of_two), (other, of_other) = (
        quick_fit(plain, tmp_path / str(number), seed=seed) for number, seed in enumerate((5, 5, 6))
    )
    assert all(torch.equal(value, two[key]) for key, value in one.items())
    assert of_one.calibration.scores == of_two.calibration.scores
    assert (of_one.train, of_one.calibration_images) == (of_two.train, of_two.calibration_images)
    assert of_one.calibration_images != of_other.calibration_images
    assert not all(torch.equal(value, other[key]) for key, value in one.items())


def test_split_is_disjoint_and_never_reads_test_images(category: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(category, tmp_path / "plate"))
    for bad in (copy / "test/good/000.png", copy / "test/scratch/000.png", copy / "ground_truth/scratch/000_mask.png"):
        bad.write_bytes(b"not an image")
    _, description = quick_fit(copy, tmp_path / "run")
    train, calibration_images = set(description.train), set(description.calibration_images)
    assert not train & calibration_images
    assert train | calibration_images == {str(path) for path in (copy / "train/good").iterdir()}
    assert len(train) + len(calibration_images) == NUM_TRAIN
    assert len(description.calibration.scores) == len(calibration_images) == 10
    assert description.calibration.scores == sorted(description.calibration.scores)
    assert description.alpha == pytest.approx(1 / 11)
    assert set(description.image_stats) == {"brightness", "contrast", "sharpness", "colour"}


def test_damaged_image_is_named_and_can_be_excluded(tmp_path: Path) -> None:
    folder = write_parts(tmp_path / "plates", 24)
    bad = folder / "007.png"
    bad.write_bytes(bad.read_bytes()[:300])
    with pytest.raises(DataError, match=r"007\.png: .*; .*"):
        quick_fit(folder, tmp_path / "run")
    names = tmp_path / "names.txt"
    names.write_text("007.png\n\n003.png\n")
    _, description = quick_fit(folder, tmp_path / "run", exclude=str(names))
    assert description.calibration.excluded == ["003.png", "007.png"]
    assert len(description.train) + len(description.calibration_images) == 22
    assert not {str(bad), str(folder / "003.png")} & {*description.train, *description.calibration_images}


def test_unreadable_list_of_names_is_refused(plain: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.txt cannot be read"):
        quick_fit(plain, tmp_path / "run", exclude=str(tmp_path / "nowhere.txt"))
    (tmp_path / "names.txt").write_bytes(b"caf\xe9.png\n")
    with pytest.raises(DataError, match=r"names\.txt cannot be read"):
        quick_fit(plain, tmp_path / "run", exclude=str(tmp_path / "names.txt"))


def test_too_few_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"15 good images .*at least 20 images are needed"):
        quick_fit(write_parts(tmp_path / "few", 15), tmp_path / "run")


class Untrainable(Autoencoder):
    """Fails in its first training step."""

    def training_step(self, batch: Batch, index: int) -> Tensor:
        raise AssertionError("trained")


@pytest.mark.parametrize(
    ("options", "needed"),
    [({"alpha": 0.001}, "999"), ({"alpha": 0.05, "guarantee": "bound"}, "59"), ({"alpha": 1.5}, "between 0 and 1")],
)
def test_unsupported_guarantee_is_refused_before_training(
    plain: Path, tmp_path: Path, options: dict[str, Any], needed: str
) -> None:
    with pytest.raises(CalibrationError, match=needed):
        quick_fit(plain, tmp_path / "run", detector=f"{__name__}:Untrainable", **options)
    with pytest.raises(AssertionError, match="trained"):
        quick_fit(plain, tmp_path / "run", detector=f"{__name__}:Untrainable")


def test_part_groups_stay_on_one_side_of_the_split(tmp_path: Path) -> None:
    folder = tmp_path / "plates"
    folder.mkdir()
    for n in range(30):
        write_png(folder / f"lot{n // 5}_{n % 5}.png", draw_part(n))
    _, description = quick_fit(folder, tmp_path / "run", part_group=r"lot(\d+)_")
    lots = [{Path(path).name[:4] for path in paths} for paths in (description.train, description.calibration_images)]
    assert not lots[0] & lots[1]
    assert len(lots[0] | lots[1]) == 6
    assert description.calibration.num_part_groups == len(lots[1]) == len(description.calibration_images) / 5
    assert description.calibration.group_sizes == [5] * len(description.calibration_images)
    assert description.calibration_group_sizes == description.calibration.group_sizes
    assert description.alpha == pytest.approx(1 / (len(lots[1]) + 1)), "the number of groups decides alpha"
    assert description.certified.num_groups == len(lots[1])


def test_region_of_interest_is_given_by_numbers_or_by_a_mask(plain: Path, tmp_path: Path) -> None:
    mask = np.zeros((72, 88), dtype=np.uint8)
    mask[20:60, 10:70] = 255
    assert cv2.imwrite(str(tmp_path / "region.png"), mask)
    states = [
        quick_fit(plain, tmp_path / f"run{n}", roi=roi)[0]
        for n, roi in enumerate(("10,20,60,40", tmp_path / "region.png", None))
    ]
    rois = [state["preprocess.roi"] for state in states]
    assert torch.equal(rois[0], rois[1])
    assert 0.3 < rois[0].float().mean() < 60 * 40 / (72 * 88)
    assert rois[2].all()
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


@pytest.mark.parametrize(
    ("roi", "message"),
    [
        ("10,20,90,40", "'10,20,90,40' .* does not lie within 88×72 pixels"),
        ("10,20,0,40", "does not lie within 88×72 pixels"),
        ("MASK", "is 30×20 pixels, the images are 88×72: draw the mask"),
        ("BLACK", "holds no whole pixel of the network's 64×64"),
        ("1,1,1,1", "'1,1,1,1' holds no whole pixel"),
    ],
)
def test_invalid_regions_are_refused(plain: Path, tmp_path: Path, roi: str, message: str) -> None:
    for name, shape, value in (("MASK", (20, 30), 255), ("BLACK", (72, 88), 0)):
        if roi == name:
            roi = str(tmp_path / f"{name}.png")
            assert cv2.imwrite(roi, np.full(shape, value, dtype=np.uint8))
    with pytest.raises(UsageError, match=message):
        quick_fit(plain, tmp_path / "run", detector=f"{__name__}:Untrainable", roi=roi)
    with pytest.raises(DataError, match="the file does not exist"):
        read_roi("1,2,3", height=72, width=88, max_pixels=MAX_PIXELS)


def test_white_level_comes_from_the_brightest_image(tmp_path: Path) -> None:
    folder = tmp_path / "deep"
    folder.mkdir()
    for n in range(22):
        image = draw_part(n).astype(np.uint16) * (15 if n == 3 else 12)  # 170 · 15: 12 bits
        assert cv2.imwrite(str(folder / f"{n:03d}.png"), image)
    _, description = quick_fit(folder, tmp_path / "run")
    assert description.white == 4095
    samples = find_category(folder).train
    assert choose_white(None, samples, max_pixels=MAX_PIXELS) == 4095
    assert choose_white(65535, samples, max_pixels=MAX_PIXELS) == 65535
    _, dark = quick_fit(folder, tmp_path / "dark", white=65535)
    assert dark.image_stats["brightness"]["mean"] < description.image_stats["brightness"]["mean"] / 10


def test_run_card_of_the_verb_holds_options_and_results(plain: Path, tmp_path: Path) -> None:
    fit(plain, out=tmp_path / "deep" / "run", detector="autoencoder", model=ONE_EPOCH, seed=3, alpha=0.2)
    card = json.loads((tmp_path / "deep" / "run" / "run.json").read_text())
    assert card["verb"] == "fit"
    assert card["config"]["seed"] == 3
    assert card["config"]["data"] == str(plain)
    assert card["config"]["model"].items() >= ONE_EPOCH.items()  # and the defaults
    assert card["config"]["model"]["latent"] == 100
    assert {"python", "anomaly", "torch", "numpy"} <= set(card["versions"])
    assert card["hardware"]["num_cpus"] >= 1
    assert 0 < card["seconds"]["fit"] < card["seconds"]["total"]
    assert card["result"] == {
        "alpha": 0.2, "white": 255, "num_train": 14, "num_calibration": 10, "num_stopping": 0, "num_excluded": 0,
        "num_suspicious": 0,
    }  # fmt: skip


def test_unusable_folder_of_the_fitted_model_is_refused(plain: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(OutputError, match=r"folder .* cannot be created: .*; choose another place"):
            quick_fit(plain, place)


def test_unknown_option_of_a_detector_is_refused(plain: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'autoencoder' has no option 'epoch'; nearest: 'epochs'"):
        quick_fit(plain, tmp_path / "run", options={"epoch": 1})


def test_levelled_model_ignores_the_brightness_of_an_image(category: Path, tmp_path: Path) -> None:
    runs = {
        brightness: fit_model(
            category, out=tmp_path / brightness, detector="autoencoder", options=TINY, brightness=brightness
        ).folder
        for brightness in ("kept", "levelled")
    }
    with pytest.raises(UsageError, match="each window would be levelled by its own content"):
        fit_model(category, out=tmp_path / "w", detector="autoencoder", options=TINY, brightness="levelled", windows=32)
    with pytest.raises(UsageError, match="brightness is str 'leveled': give one of 'kept', 'levelled'"):
        quick_fit(category, tmp_path / "w", brightness="leveled")
    part = draw_part(99) // 2
    both = np.stack([part, part * 2])
    difference = {}
    for brightness, run in runs.items():
        path = export_model(run)
        assert verify(run)["score"]["max"] < 1e-4
        scorer = OnnxScorer(path, device="cpu", num_threads=1)
        assert scorer.metadata.brightness == load_fitted_model(run).description.brightness == brightness
        score = scorer.score(both).score
        difference[brightness] = abs(float(score[0] - score[1]))
    assert difference["levelled"] < 1e-3 < difference["kept"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_missing_device_is_refused(plain: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="torch sees no CUDA device"):
        quick_fit(plain, tmp_path / "run", device="cuda")


@pytest.mark.parametrize(("detector", "model"), [("autoencoder", ONE_EPOCH), ("fastflow", FLOW)])
@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
def test_images_of_different_sizes_train(tmp_path: Path, detector: str, model: dict[str, Any], resize: str) -> None:
    folder = tmp_path / "plates"
    folder.mkdir()
    for n in range(24):
        write_png(folder / f"{n:03d}.png", np.ascontiguousarray(draw_part(n)[: 72 - n % 3, n % 5 :]))
    state, description = quick_fit(folder, tmp_path / "run", detector=detector, options=model | {"resize": resize})
    assert description.calibration.num_images == 10
    assert all(torch.isfinite(value).all() for value in state.values())


def test_damaged_fitted_models_are_refused(fitted_plate: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"detector\.safetensors is missing"):
        load_fitted_model(tmp_path)
    for name, content in (
        ("detector.safetensors", b"short"),
        ("detector.json", b"{"),
        ("detector.json", b"{}"),
        ("detector.json", (fitted_plate / "detector.json").read_bytes().replace(b'"width": 8', b'"width": 4')),
    ):
        copy = Path(shutil.copytree(fitted_plate, tmp_path / "run", dirs_exist_ok=True))
        (copy / name).write_bytes(content)
        with pytest.raises(ModelError, match="damaged or foreign model"):
            load_fitted_model(copy)


def test_mixed_precision_trains_to_finite_weights(category: Path, tmp_path: Path) -> None:
    model = TINY | {"epochs": 3, "loss": "ssim+msgms", "score": "msgms"}
    detector = load_fitted_model(
        fit_model(category, out=tmp_path / "run", detector="autoencoder", options=model, precision="bf16").folder
    ).detector
    assert all(torch.isfinite(value).all() for value in detector.state_dict().values())


def test_identical_images_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "same"
    folder.mkdir()
    for n in range(24):
        write_png(folder / f"{n:03d}.png", draw_part(0))
    with pytest.raises(DataError, match="24 good images in 1 groups"):
        quick_fit(folder, tmp_path / "run")


def test_validation_split_of_the_dataset_becomes_the_calibration_set(plain: Path, tmp_path: Path) -> None:
    root = tmp_path / "scenario"
    shutil.copytree(plain, root / "train" / "good")
    for n in range(12):
        (root / "validation" / "good").mkdir(parents=True, exist_ok=True)
        write_png(root / "validation" / "good" / f"{n:03d}.png", draw_part(100 + n))
    shutil.copy(root / "train/good/003.png", root / "validation/good/900.png")  # now excluded from training
    _, description = quick_fit(root, tmp_path / "run")
    assert [Path(p).parent.parent.name for p in description.calibration_images] == ["validation"] * 13
    assert 18 <= len(description.train) <= 23  # without duplicates of calibration images
    assert str(root / "train/good/003.png") not in description.train


def test_fit_without_a_folder_lives_in_a_temporary_one(
    plain: Path, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    fitted = fit_model(plain, detector="autoencoder", options=ONE_EPOCH)
    folder = fitted.folder
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr() == ("", "")
    loaded = load_fitted_model(folder)
    assert loaded.description == fitted.description
    image = torch.from_numpy(draw_part(3))[None]
    assert fitted.detector is fitted.model
    assert loaded.detector is not None
    with torch.no_grad():
        assert torch.equal(loaded.detector(image).score, fitted.model(image).score)
    with pytest.raises(UsageError, match="resume continues a fit in its folder"):
        fit_model(plain, resume=True)
    del fitted
    gc.collect()
    assert not folder.exists()


def test_fitted_sampler_has_a_calibrated_detector_form(plain: Path, tmp_path: Path) -> None:
    fitted = fit_model(plain, out=tmp_path / "pca", detector="pca", options={"size": 16, "num_components": 3})
    loaded = load_fitted_model(tmp_path / "pca")
    assert isinstance(loaded.model, Sampler)
    assert not isinstance(loaded.model, Detector)
    assert fitted.detector is not None
    assert loaded.detector is not None
    image = torch.from_numpy(draw_part(3))[None]
    with torch.no_grad():
        assert torch.equal(loaded.detector(image).score, fitted.detector(image).score)
    assert TorchScorer(loaded).score(draw_part(3)[None]).score[0] == float(fitted.detector(image).score[0])


def test_fitted_sampler_without_detector_form_is_not_calibrated(plain: Path, tmp_path: Path) -> None:
    options = {"size": 16, "width": 4, "latent": 8, "epochs": 1, "batch_size": 8}
    fitted = fit_model(plain, out=tmp_path / "gan", detector="gan", options=options)
    assert fitted.detector is None
    assert fitted.description.calibration.scores == []
    assert load_fitted_model(tmp_path / "gan").detector is None
    with pytest.raises(ModelError, match="holds a Gan, which draws and does not score"):
        TorchScorer(tmp_path / "gan")


def test_second_fit_removes_the_exports_of_the_first(plain: Path, tmp_path: Path) -> None:
    options = TINY | {"epochs": 1}
    first = fit_model(plain, out=tmp_path / "m", detector="autoencoder", options=options)
    (first.folder / "model.onnx").write_bytes(b"exported from the first fit")
    (first.folder / "model.certificate.json").write_text("{}")
    (first.folder / "notes.txt").write_text("mine")
    second = fit_model(plain, out=tmp_path / "m", detector="autoencoder", options=options, seed=1)
    assert first.removed == ()
    assert second.removed == ("model.certificate.json", "model.onnx")
    assert not (second.folder / "model.onnx").exists()
    assert (second.folder / "notes.txt").read_text() == "mine"
