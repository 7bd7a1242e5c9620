"""From a folder to a run folder: what is read, what is split, what is refused, and going on after Ctrl-C."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from anomaly.detectors.autoencoder import Autoencoder
from anomaly.errors import CalibrationError, DataError, ModelError, OutputError, UsageError
from anomaly.export.model_file import export_model
from anomaly.export.parity import verify
from anomaly.imaging.image_file import write_png
from anomaly.inference.scorer import OnnxScorer
from anomaly.nn.batch import Batch
from anomaly.training.fit import choose_white, fit, read_roi
from anomaly.training.fitted_model import load
from tests.plates import NUM_TRAIN, TINY, draw_part
from tests.training.quick_training import FLOW, MAX_PIXELS, ONE_EPOCH, quick, write_parts


def test_same_seed_gives_the_same_detector(plain: Path, tmp_path: Path) -> None:
    (one, of_one), (two, of_two), (other, of_other) = (
        quick(plain, tmp_path / str(number), seed=seed) for number, seed in enumerate((5, 5, 6))
    )
    assert all(torch.equal(value, two[key]) for key, value in one.items())
    assert of_one.calibration.scores == of_two.calibration.scores
    assert (of_one.train, of_one.calibration_images) == (of_two.train, of_two.calibration_images)
    assert of_one.calibration_images != of_other.calibration_images
    assert not all(torch.equal(value, other[key]) for key, value in one.items())


def test_parts_are_disjoint_and_test_images_are_never_read(category: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(category, tmp_path / "plate"))
    for bad in (copy / "test/good/000.png", copy / "test/scratch/000.png", copy / "ground_truth/scratch/000_mask.png"):
        bad.write_bytes(b"not an image")
    _, description = quick(copy, tmp_path / "run")
    train, calibration_images = set(description.train), set(description.calibration_images)
    assert not train & calibration_images
    assert train | calibration_images == {str(path) for path in (copy / "train/good").iterdir()}
    assert len(train) + len(calibration_images) == NUM_TRAIN
    assert len(description.calibration.scores) == len(calibration_images) == 10
    assert description.calibration.scores == sorted(description.calibration.scores)
    assert description.alpha == pytest.approx(1 / 11)
    assert set(description.image_stats) == {"brightness", "contrast", "sharpness", "colour"}


def test_bad_image_is_named_and_can_be_excluded(tmp_path: Path) -> None:
    folder = write_parts(tmp_path / "plates", 24)
    bad = folder / "007.png"
    bad.write_bytes(bad.read_bytes()[:300])
    with pytest.raises(DataError, match=r"007\.png: .*; .*"):
        quick(folder, tmp_path / "run")
    names = tmp_path / "names.txt"
    names.write_text("007.png\n\n003.png\n")
    _, description = quick(folder, tmp_path / "run", exclude=str(names))
    assert description.calibration.excluded == ["003.png", "007.png"]
    assert len(description.train) + len(description.calibration_images) == 22
    assert not {str(bad), str(folder / "003.png")} & {*description.train, *description.calibration_images}


def test_list_of_names_that_cannot_be_read_is_refused(plain: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.txt cannot be read"):
        quick(plain, tmp_path / "run", exclude=str(tmp_path / "nowhere.txt"))
    (tmp_path / "names.txt").write_bytes(b"caf\xe9.png\n")
    with pytest.raises(DataError, match=r"names\.txt cannot be read"):
        quick(plain, tmp_path / "run", exclude=str(tmp_path / "names.txt"))


def test_too_few_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"15 good images .*at least 20 images are needed"):
        quick(write_parts(tmp_path / "few", 15), tmp_path / "run")


class Untrainable(Autoencoder):
    """Fails where it is trained at all."""

    def training_step(self, batch: Batch, index: int) -> Tensor:
        raise AssertionError("trained")


@pytest.mark.parametrize(
    ("options", "needed"),
    [({"alpha": 0.001}, "999"), ({"alpha": 0.05, "guarantee": "bound"}, "59"), ({"alpha": 1.5}, "between 0 and 1")],
)
def test_impossible_guarantee_is_refused_before_training(
    plain: Path, tmp_path: Path, options: dict[str, Any], needed: str
) -> None:
    with pytest.raises(CalibrationError, match=needed):
        quick(plain, tmp_path / "run", detector=f"{__name__}:Untrainable", **options)
    with pytest.raises(AssertionError, match="trained"):
        quick(plain, tmp_path / "run", detector=f"{__name__}:Untrainable")


def test_groups_stay_on_one_side(tmp_path: Path) -> None:
    folder = tmp_path / "plates"
    folder.mkdir()
    for n in range(30):
        write_png(folder / f"lot{n // 5}_{n % 5}.png", draw_part(n))
    _, description = quick(folder, tmp_path / "run", part_group=r"lot(\d+)_")
    lots = [{Path(path).name[:4] for path in paths} for paths in (description.train, description.calibration_images)]
    assert not lots[0] & lots[1]
    assert len(lots[0] | lots[1]) == 6
    assert description.calibration.num_part_groups == len(lots[1]) == len(description.calibration_images) / 5


def test_region_of_interest_by_numbers_and_by_mask(plain: Path, tmp_path: Path) -> None:
    mask = np.zeros((72, 88), dtype=np.uint8)
    mask[20:60, 10:70] = 255
    assert cv2.imwrite(str(tmp_path / "region.png"), mask)
    states = [
        quick(plain, tmp_path / f"run{n}", roi=roi)[0]
        for n, roi in enumerate(("10,20,60,40", str(tmp_path / "region.png"), ""))
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
        ("MASK", "is 30×20, the images are 88×72"),
        ("BLACK", "holds no whole pixel of the network's 64×64"),
        ("1,1,1,1", "'1,1,1,1' holds no whole pixel"),
    ],
)
def test_wrong_regions_are_refused(plain: Path, tmp_path: Path, roi: str, message: str) -> None:
    for name, shape, value in (("MASK", (20, 30), 255), ("BLACK", (72, 88), 0)):
        if roi == name:
            roi = str(tmp_path / f"{name}.png")
            assert cv2.imwrite(roi, np.full(shape, value, dtype=np.uint8))
    with pytest.raises(UsageError, match=message):
        quick(plain, tmp_path / "run", detector=f"{__name__}:Untrainable", roi=roi)
    with pytest.raises(DataError, match="there is no such file"):
        read_roi("1,2,3", height=72, width=88, max_pixels=MAX_PIXELS)


def test_white_level_comes_from_the_brightest_image(tmp_path: Path) -> None:
    folder = tmp_path / "deep"
    folder.mkdir()
    for n in range(22):
        image = draw_part(n).astype(np.uint16) * (15 if n == 3 else 12)  # 170 · 15: 12 bits
        assert cv2.imwrite(str(folder / f"{n:03d}.png"), image)
    _, description = quick(folder, tmp_path / "run")
    assert description.white == 4095
    samples = fit_samples(folder)
    assert choose_white("from-images", samples, max_pixels=MAX_PIXELS) == 4095
    assert choose_white(65535, samples, max_pixels=MAX_PIXELS) == 65535
    _, dark = quick(folder, tmp_path / "dark", white=65535)
    assert dark.image_stats["brightness"]["mean"] < description.image_stats["brightness"]["mean"] / 10


def fit_samples(folder: Path) -> Any:
    from anomaly.data.folders import find_category

    return find_category(folder).train


def test_run_card_tells_what_was_asked_and_what_came_out(plain: Path, tmp_path: Path) -> None:
    quick(plain, tmp_path / "deep" / "run", seed=3, alpha=0.2)
    card = json.loads((tmp_path / "deep" / "run" / "run.json").read_text())
    assert card["verb"] == "fit"
    assert card["config"]["seed"] == 3
    assert card["config"]["data"] == str(plain)
    assert card["config"]["model"].items() >= ONE_EPOCH.items()  # with the defaults beside them
    assert card["config"]["model"]["latent"] == 100
    assert {"python", "anomaly", "torch", "numpy"} <= set(card["versions"])
    assert card["hardware"]["num_cpus"] >= 1
    assert 0 < card["seconds"]["fit"] < card["seconds"]["total"]
    assert card["result"] == {
        "alpha": 0.2, "white": 255, "num_train": 14, "num_calibration": 10, "num_stopping": 0, "num_excluded": 0,
    }  # fmt: skip


def test_run_folder_that_cannot_be_made_is_refused(plain: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(OutputError, match=r"run folder .* cannot be made: .*; choose another place"):
            quick(plain, place)


def test_unknown_option_of_a_detector_is_refused(plain: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'autoencoder' has no option 'epoch'; nearest: 'epochs'"):
        quick(plain, tmp_path / "run", model={"epoch": 1})


def test_levelled_model_scores_by_no_lamp(category: Path, tmp_path: Path) -> None:
    runs = {
        asked: fit(category, out=tmp_path / asked, detector="autoencoder", model=TINY, brightness=asked)
        for asked in ("kept", "levelled")
    }
    with pytest.raises(UsageError, match="each window would be levelled by what it sees alone"):
        fit(category, out=tmp_path / "w", detector="autoencoder", model=TINY, brightness="levelled", windows=32)
    with pytest.raises(UsageError, match="brightness 'leveled' is not known: give kept or levelled"):
        quick(category, tmp_path / "w", brightness="leveled")
    part = draw_part(99) // 2
    both = np.stack([part, part * 2])
    moved = {}
    for asked, run in runs.items():
        path = export_model(run)
        assert verify(run)["score"]["max"] < 1e-4
        scorer = OnnxScorer(path, device="cpu", num_threads=1)
        assert scorer.metadata.brightness == load(run)[1].brightness == asked
        said = scorer.score(both)
        moved[asked] = abs(float(said.score[0] - said.score[1]))
    assert moved["levelled"] < 1e-3 < moved["kept"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_missing_device_is_refused(plain: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="torch sees no CUDA device"):
        quick(plain, tmp_path / "run", device="cuda")


@pytest.mark.parametrize(("detector", "model"), [("autoencoder", ONE_EPOCH), ("fastflow", FLOW)])
@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
def test_images_of_several_sizes_train(tmp_path: Path, detector: str, model: dict[str, Any], resize: str) -> None:
    folder = tmp_path / "plates"
    folder.mkdir()
    for n in range(24):
        write_png(folder / f"{n:03d}.png", np.ascontiguousarray(draw_part(n)[: 72 - n % 3, n % 5 :]))
    state, description = quick(folder, tmp_path / "run", detector=detector, model=model | {"resize": resize})
    assert description.calibration.num_images == 10
    assert all(torch.isfinite(value).all() for value in state.values())


def test_damaged_run_folders_are_refused(run_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"it has no detector\.safetensors"):
        load(tmp_path)
    for name, content in (
        ("detector.safetensors", b"short"),
        ("detector.json", b"{"),
        ("detector.json", b"{}"),
        ("detector.json", (run_folder / "detector.json").read_bytes().replace(b'"width": 8', b'"width": 4')),
    ):
        copy = Path(shutil.copytree(run_folder, tmp_path / "run", dirs_exist_ok=True))
        (copy / name).write_bytes(content)
        with pytest.raises(ModelError, match="damaged or foreign detector"):
            load(copy)


def test_mixed_precision_trains_to_finite_weights(category: Path, tmp_path: Path) -> None:
    model = TINY | {"epochs": 3, "loss": "ssim+msgms", "score": "msgms"}
    detector, _ = load(fit(category, out=tmp_path / "run", detector="autoencoder", model=model, precision="bf16"))
    assert all(torch.isfinite(value).all() for value in detector.state_dict().values())


def test_identical_images_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "same"
    folder.mkdir()
    for n in range(24):
        write_png(folder / f"{n:03d}.png", draw_part(0))
    with pytest.raises(DataError, match="24 good images in 1 groups"):
        quick(folder, tmp_path / "run")


def test_images_that_the_data_set_holds_out_calibrate(plain: Path, tmp_path: Path) -> None:
    root = tmp_path / "scenario"
    shutil.copytree(plain, root / "train" / "good")
    for n in range(12):
        (root / "validation" / "good").mkdir(parents=True, exist_ok=True)
        write_png(root / "validation" / "good" / f"{n:03d}.png", draw_part(100 + n))
    shutil.copy(root / "train/good/003.png", root / "validation/good/900.png")  # then it must not train
    _, description = quick(root, tmp_path / "run")
    assert [Path(p).parent.parent.name for p in description.calibration_images] == ["validation"] * 13
    assert 18 <= len(description.train) <= 23  # less what looks like a calibration image
    assert str(root / "train/good/003.png") not in description.train
