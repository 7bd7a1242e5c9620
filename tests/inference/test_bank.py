"""An exported memory bank: images left out, patch embeddings, and the record in the metadata."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from anomaly.errors import ModelError, UsageError
from anomaly.export.model_file import export_files
from anomaly.imaging.image_file import read_image
from anomaly.inference.artifact import HASH_LENGTH, PREFIX, load_graph, read_metadata
from anomaly.inference.bank import BankFile, LeftOutScorer, calibration_scorers
from anomaly.inference.bank_graph import bank_without, find_embedding
from anomaly.inference.bank_record import short_names
from anomaly.inference.scorer import OnnxScorer
from anomaly.system.files import sha256_of
from anomaly.training.fitted_model import load_fitted_model
from tests.plates import HEIGHT, WIDTH

Image = np.ndarray


def images_of(folder: Path) -> list[Image]:
    """Training images of a fitted model, in its order."""
    description = load_fitted_model(folder).description
    return [read_image(path, white=255, max_pixels=10_000) for path in description.train]


def test_record_describes_the_training_images(fitted_bank: Path, plain: Path) -> None:
    metadata = read_metadata(load_graph(fitted_bank / "model.onnx"), name="model")
    bank = metadata.bank
    assert bank is not None
    assert bank.images == [f"{n:03d}.png" for n in range(24)]
    assert all(bank.part_groups[n] == bank.part_groups[n + 1] for n in range(0, 24, 2))
    assert bank.sizes == [[HEIGHT, WIDTH]] * 24
    assert {4, 5} <= set(bank.members(5))
    assert metadata.training_hashes == [sha256_of(plain / name)[:HASH_LENGTH] for name in bank.images]
    (part,) = bank.backbones
    assert len(part.image) == len(part.cell) == 100
    assert part.embedding is not None
    assert len(bank.raw_scores) == len(bank.raw_peaks) == 24


@pytest.mark.parametrize("fixed", [None, f"4,{HEIGHT},{WIDTH}"])
def test_calibration_images_are_scored_without_their_part(fitted_bank: Path, fixed: str | None, tmp_path: Path) -> None:
    path = export_files(fitted_bank, tmp_path / "one.onnx", fixed=fixed).path
    expected = load_fitted_model(fitted_bank).description.calibration_scores
    scorer = OnnxScorer(path, device="cpu")
    images = images_of(fitted_bank)
    own = calibration_scorers(scorer, range(24))
    found = [float(one.score(image[None]).score[0]) for one, image in zip(own, images, strict=True)]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    with_itself = np.concatenate([scorer.score(image[None]).score for image in images])
    assert (with_itself <= np.array(found) + 1e-5).all()


def test_left_out_scores_and_embeddings_are_those_of_the_trained_model(fitted_bank: Path) -> None:
    fitted = load_fitted_model(fitted_bank)
    detector = fitted.detector
    assert detector is not None
    bank = BankFile.open(fitted_bank / "model.onnx")
    batch = np.stack(images_of(fitted_bank)[:3])
    with torch.no_grad():
        x = detector.preprocess(torch.from_numpy(batch))
        without = detector.calibration(detector.anomaly_without(x, [0, 7, 9]))
        embedded = detector.embeddings[0](x)
    found = bank.score(batch, without=[0, 7, 9])
    np.testing.assert_allclose(found.score, without.score, atol=1e-4)
    np.testing.assert_allclose(found.anomaly_map, without.anomaly_map, atol=1e-4)
    (patches,) = bank.embed(batch)
    np.testing.assert_allclose(patches, embedded, atol=1e-4)
    plain = OnnxScorer(fitted_bank / "model.onnx", device="cpu").score(batch)
    np.testing.assert_allclose(bank.score(batch).score, plain.score, atol=1e-6)
    np.testing.assert_allclose(LeftOutScorer(bank, [0, 7, 9]).score(batch).score, found.score, atol=1e-6)


def test_replaced_rows_are_copies_of_remaining_rows(fitted_bank: Path) -> None:
    bank = BankFile.open(fitted_bank / "model.onnx")
    image = np.array(bank.bank.backbones[0].image)
    (changed,) = bank_without(bank.bank, bank.rows, [3]).values()
    assert changed.shape == bank.rows[0].shape
    kept = {row.tobytes() for row in bank.rows[0][image != 3]}
    assert {row.tobytes() for row in changed} == kept


def test_leaving_out_all_images_is_refused(fitted_bank: Path) -> None:
    bank = BankFile.open(fitted_bank / "model.onnx")
    with pytest.raises(UsageError, match="all rows of the bank"):
        bank.score(np.zeros((1, HEIGHT, WIDTH, 3), np.uint8), without=range(24))


def test_detector_without_a_bank_is_refused(model: Path) -> None:
    with pytest.raises(ModelError, match="has no bank of patches: it holds 'autoencoder'"):
        BankFile.open(model)
    scorer = OnnxScorer(model, device="cpu")
    assert calibration_scorers(scorer, [0, 1]) == [scorer, scorer]


def test_file_of_an_earlier_version_is_read(bank_model: Path) -> None:
    graph = load_graph(bank_model)
    old = [p for p in graph.metadata_props if p.key in (f"{PREFIX}bank", f"{PREFIX}training_hashes")]
    assert len(old) == 2
    for value in old:
        graph.metadata_props.remove(value)
    onnx.save(graph, bank_model)
    metadata = OnnxScorer(bank_model, device="cpu").metadata
    assert metadata.bank is None
    assert metadata.training_hashes == []


def test_embedding_is_found_by_its_readers_alone(fitted_bank: Path) -> None:
    graph = load_graph(fitted_bank / "model.onnx").graph
    assert find_embedding(graph, "banks.0.rows") is not None
    assert find_embedding(graph, "embeddings.0.mean") is None


def test_metadata_hold_no_folder_of_this_machine(fitted_bank: Path, plain: Path) -> None:
    text = json.dumps({p.key: p.value for p in load_graph(fitted_bank / "model.onnx").metadata_props})
    assert str(plain.parent) not in text


def test_equal_file_names_keep_a_folder() -> None:
    paths = ["/data/a/1.png", "/data/b/1.png", "/data/b/2.png"]
    assert short_names(paths) == ["a/1.png", "b/1.png", "2.png"]
    assert short_names(["1.png", "/new/1.png"]) == ["1.png", "new/1.png"]
