"""Constructions of a calibration: which images train, which calibrate, and how each is scored."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anomaly.data.folders import Category, Sample, find_category
from anomaly.detectors.memory_bank import MemoryBank
from anomaly.errors import CalibrationError, DataError, UsageError
from anomaly.imaging.image_file import read_image, write_png
from anomaly.training.calibrate import left_out_scores
from anomaly.training.construction import choose_construction, group_sizes
from anomaly.training.fit import fit_model
from anomaly.training.fitted_model import load_fitted_model
from tests.detectors.tiny_detectors import OPTIONS, build
from tests.plates import draw_part
from tests.training.quick_training import ONE_EPOCH, write_parts

pytestmark = pytest.mark.slow
BANK: dict[str, Any] = OPTIONS["memory_bank"]


def category(*calibration_images: Sample) -> Category:
    return Category(
        root=Path("/plates"), name="plates", train=(), calibration_images=calibration_images, test=(), stray_masks=(),
        ignored=(),
    )  # fmt: skip


def choose(name: str, calibration: str, **changes: Any) -> str:
    arguments: dict[str, Any] = {
        "model": build(name), "category": category(), "tiled": False,
        "guarantee": "expected",
    }  # fmt: skip
    return choose_construction(calibration, **(arguments | changes))  # type: ignore[arg-type]


def test_auto_uses_every_image_twice_where_the_detector_can_leave_one_out() -> None:
    assert choose("memory_bank", "auto") == "leave_one_out"
    assert choose("autoencoder", "auto") == "split"
    assert choose("memory_bank", "split") == "split"
    assert choose("autoencoder", "cross") == "cross"


def test_auto_splits_where_a_bound_or_windows_or_own_calibration_images_need_it() -> None:
    assert choose("memory_bank", "auto", guarantee="bound") == "split"
    assert choose("memory_bank", "auto", tiled=True) == "split"
    own = Sample(Path("/plates/a.png"), "good", False, None)
    assert choose("memory_bank", "auto", category=category(own)) == "split"


def test_leave_one_out_of_a_trained_detector_is_refused() -> None:
    with pytest.raises(UsageError, match=r"Autoencoder is trained on all images at once.*split"):
        choose("autoencoder", "leave_one_out")
    with pytest.raises(UsageError, match="tiles or windows"):
        choose("memory_bank", "leave_one_out", tiled=True)
    with pytest.raises(UsageError, match="bound"):
        choose("memory_bank", "leave_one_out", guarantee="bound")
    with pytest.raises(UsageError, match="leave one out"):
        build("autoencoder").anomaly_without(torch.zeros(1, 3, 32, 32), [0])


def test_left_out_score_equals_the_score_by_a_bank_of_the_other_images(tmp_path: Path) -> None:
    """With the exact construction, each image's rows do not depend on the other images."""
    options = BANK | {"exact": True, "bank_size": 12 * 8}
    fitted = fit_model(write_parts(tmp_path / "all", 12), detector="memory_bank", options=options)
    whole = fitted.detector
    assert isinstance(whole, MemoryBank)
    others = tmp_path / "others"
    others.mkdir()
    for n in range(1, 12):
        write_png(others / f"{n:03d}.png", draw_part(n))
    bank = fit_model(others, detector="memory_bank", options=options | {"bank_size": 11 * 8}).detector
    assert isinstance(bank, MemoryBank)
    x = bank.preprocess(torch.from_numpy(draw_part(0)[None]))
    with torch.no_grad():
        assert torch.allclose(whole.anomaly_without(x, [0]).anomaly_map, bank.anomaly(x).anomaly_map, atol=1e-4)
    assert fitted.description.calibration.exact


def test_every_image_trains_and_calibrates(tmp_path: Path) -> None:
    folder = write_parts(tmp_path / "parts", 24)
    description = load_fitted_model(
        fit_model(folder, out=tmp_path / "run", detector="memory_bank", options=BANK).folder
    ).description
    assert description.train == description.calibration_images
    assert len(description.train) == description.calibration.num_images == 24
    assert description.alpha == pytest.approx(1 / (description.calibration.num_part_groups + 1))
    assert sorted(description.calibration_scores) == description.calibration.scores
    assert (description.calibration.construction, description.calibration.exact) == ("leave_one_out", False)
    assert (np.array(description.calibration_scores) > 1).sum() == 0


def test_images_of_one_part_are_left_out_together(tmp_path: Path) -> None:
    """A copy of an image in the bank would hide the image's own oddity."""
    folder = tmp_path / "parts"
    folder.mkdir()
    for n in range(12):
        for view in range(2):
            noisy = draw_part(n).astype(int) + np.random.default_rng((n, view)).integers(-2, 3, (72, 88, 3))
            write_png(folder / f"part{n:02d}_{view}.png", np.clip(noisy, 0, 255).astype(np.uint8))
    fitted = fit_model(folder, detector="memory_bank", options=BANK, part_group=r"part\d+", alpha=0.2)
    assert fitted.description.calibration.num_part_groups <= 12
    assert min(fitted.description.calibration.group_sizes) == 2
    read = partial(read_image, white=255, max_pixels=10_000)
    bank, samples = fitted.detector, sorted(find_category(folder).train, key=lambda s: s.path.as_posix())
    assert isinstance(bank, MemoryBank)
    together, alone = (
        left_out_scores(bank, samples, {s.path: s.path.name[:end] for s in samples}, read=lambda s: read(s.path))
        for end in (6, None)
    )
    assert together.score.mean() > alone.score.mean()


def test_cross_calibration_scores_each_image_by_a_model_of_the_others(tmp_path: Path) -> None:
    folder = write_parts(tmp_path / "parts", 20)
    description = fit_model(folder, detector="autoencoder", options=ONE_EPOCH, calibration="cross").description
    assert description.train == description.calibration_images
    assert (description.calibration.construction, description.calibration.exact) == ("cross", False)
    assert len(set(description.calibration_scores)) == 20


@pytest.mark.parametrize("num", [2, 5])
def test_a_bank_of_few_images_states_what_it_can_guarantee(num: int, tmp_path: Path) -> None:
    fitted = fit_model(write_parts(tmp_path / "parts", num), detector="memory_bank", options=BANK)
    assert fitted.description.alpha == pytest.approx(1 / (num + 1))
    assert len(fitted.description.train) == num


def test_one_image_is_refused_with_the_number_needed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least 2 images of different parts"):
        fit_model(write_parts(tmp_path / "parts", 1), detector="memory_bank", options=BANK)


def test_copies_of_one_image_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    for n in range(12):
        write_png(folder / f"{n}.png", draw_part(0))
    with pytest.raises((DataError, CalibrationError), match="different"):
        fit_model(folder, detector="memory_bank", options=BANK)


def test_group_sizes_are_empty_for_images_of_different_parts() -> None:
    samples = [Sample(Path(name), "good", False, None) for name in "abc"]
    paths = [s.path for s in samples]
    assert group_sizes(samples, dict(zip(paths, "xyz", strict=True))) == []
    assert group_sizes(samples, dict(zip(paths, "xyx", strict=True))) == [2, 1, 2]


def test_left_out_scores_are_higher_than_scores_with_the_image_in_the_bank(tmp_path: Path) -> None:
    folder = write_parts(tmp_path / "parts", 12)
    bank = fit_model(folder, detector="memory_bank", options=BANK).detector
    assert isinstance(bank, MemoryBank)
    samples = sorted(find_category(folder).train, key=lambda s: s.path.as_posix())
    images = {s.path: draw_part(int(s.path.stem)) for s in samples}
    left = left_out_scores(bank, samples, {s.path: s.path.name for s in samples}, read=lambda s: images[s.path])
    with torch.no_grad():
        plain = [float(bank.anomaly(bank.preprocess(torch.from_numpy(images[s.path][None]))).score[0]) for s in samples]
    assert (left.score >= np.array(plain) - 1e-5).all()
    assert left.score.mean() > np.mean(plain)
