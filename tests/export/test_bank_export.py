"""Export of a memory bank: fewer bits with left-out scores, and the archive of reduced training images."""

from __future__ import annotations

import dataclasses
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from anomaly.commands.main import run
from anomaly.errors import UsageError
from anomaly.export.model_file import export_files
from anomaly.export.parity import compare_files
from anomaly.imaging.image_file import read_image
from anomaly.inference.references import SIDE, encode_reference, references_path
from anomaly.inference.scorer import OnnxScorer
from anomaly.training.fitted_model import load_fitted_model


def test_fp16_is_calibrated_by_left_out_scores(fitted_bank: Path, tmp_path: Path) -> None:
    exported = export_files(
        fitted_bank, tmp_path / "half.onnx", precision="fp16", max_auroc_loss=1.0, max_flips=1.0, references=False
    )
    metadata = OnnxScorer(exported.path, device="cpu").metadata
    fitted = load_fitted_model(fitted_bank)
    assert metadata.calibration.construction == "leave_one_out"
    np.testing.assert_allclose(metadata.calibration.scores, fitted.description.calibration.scores, atol=0.05)
    assert metadata.bank is not None
    assert metadata.bank.raw_scores != pytest.approx(0)
    assert exported.certificate is not None
    assert exported.certificate["calibration"]["construction"] == "leave_one_out"
    (certificate,) = compare_files(fitted, model=exported.path)
    assert certificate.values["share_of_flips"] <= 0.1


def test_cross_calibration_has_no_file_of_fewer_bits(fitted_bank: Path, tmp_path: Path) -> None:
    fitted = load_fitted_model(fitted_bank)
    record = dataclasses.replace(fitted.description.calibration, construction="cross", exact=False)
    cross = dataclasses.replace(fitted, description=dataclasses.replace(fitted.description, calibration=record))
    with pytest.raises(UsageError, match="a cross calibration needs five trained models"):
        export_files(cross, tmp_path / "half.onnx", precision="fp16")
    assert not (tmp_path / "half.onnx").exists()


def test_archive_holds_the_images_with_rows(fitted_bank: Path, tmp_path: Path) -> None:
    exported = export_files(fitted_bank, tmp_path / "model.onnx")
    metadata = OnnxScorer(exported.path, device="cpu").metadata
    assert metadata.bank is not None
    assert exported.references is not None
    with zipfile.ZipFile(exported.references.path) as archive:
        names = archive.namelist()
    assert names == [f"{n:06d}.jpg" for n in sorted(set(metadata.bank.backbones[0].image))]
    assert (exported.references.num_images, exported.references.num_missing) == (len(names), 0)
    assert exported.references.num_bytes == exported.references.path.stat().st_size


def test_moved_training_images_are_counted(fitted_bank: Path, tmp_path: Path) -> None:
    fitted = load_fitted_model(fitted_bank)
    train = [str(tmp_path / Path(path).name) if n < 12 else path for n, path in enumerate(fitted.description.train)]
    moved = dataclasses.replace(fitted, description=dataclasses.replace(fitted.description, train=train))
    stored = export_files(moved, tmp_path / "model.onnx").references
    assert stored is not None
    assert stored.num_missing > 0
    assert stored.num_images > 0


def test_option_leaves_the_archive_out_and_removes_an_old_one(fitted_bank: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bank"
    shutil.copytree(fitted_bank, folder)
    assert references_path(folder / "model.onnx").is_file()
    assert run(["export", str(folder), "--no-references"]) == 0
    assert not references_path(folder / "model.onnx").exists()


def test_detector_without_a_bank_has_no_archive(fitted_plate: Path, tmp_path: Path) -> None:
    exported = export_files(fitted_plate, tmp_path / "model.onnx")
    assert exported.references is None
    assert not references_path(exported.path).exists()


def test_reduced_images_have_a_longest_side(tmp_path: Path) -> None:
    path = tmp_path / "wide.jpg"
    path.write_bytes(encode_reference(np.zeros((500, 1000, 3), np.uint8)))
    assert read_image(path, white=255, max_pixels=10**6).shape == (SIDE // 2, SIDE, 3)
