"""Nearest good patches of a rejected region, and the archive of reduced training images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import anomaly
from anomaly.imaging.pair_sheet import TILE, Frame, sheet, tile
from anomaly.imaging.regions import Region
from anomaly.inference.evidence import EvidenceFinder, evidence_sheet
from anomaly.inference.references import References, references_path
from anomaly.inference.scorer import OnnxScorer
from tests.plates import HEIGHT, WIDTH, draw_part, draw_scratch


def finder(path: Path) -> EvidenceFinder:
    return EvidenceFinder(OnnxScorer(path, device="cpu"))


def test_training_image_is_its_own_nearest_patch(fitted_bank: Path, plain: Path) -> None:
    own = finder(fitted_bank / "model.onnx")
    bank = own.metadata.bank
    assert bank is not None
    (part,) = bank.backbones
    image, cell = part.image[0], part.cell[0]
    rows, columns = bank.grid
    centre = (cell // columns + 0.5) * HEIGHT / rows, (cell % columns + 0.5) * WIDTH / columns
    region = Region(int(centre[1]), int(centre[0]), 1, 1, 1, 2.0, False)
    picture = draw_part(image)
    (found,) = own.find(picture, [region])
    assert (found.number, found.image) == (image, f"{image:03d}.png")
    assert found.distance == pytest.approx(0, abs=1e-3)
    assert found.box == found.place
    (other,) = own.find(picture, [region], without=[image])
    assert other.number != image
    assert other.distance > found.distance


def test_result_shows_the_nearest_good_patch_of_each_region(bank_model: Path) -> None:
    model = anomaly.load(bank_model, device="cpu")
    defect, mask = draw_scratch(draw_part(2001), 1)
    result = model(defect)
    assert result.verdict == "defect"
    assert len(result.evidence) == len(result.regions) > 0
    strongest = result.evidence[0]
    assert strongest.region == result.regions[0]
    assert mask[strongest.place.y :][: strongest.place.height, strongest.place.x :][:, : strongest.place.width].any()
    assert strongest.reference is not None
    assert strongest.reference.shape == (HEIGHT, WIDTH, 3)
    drawn = result.evidence_sheet()
    assert drawn is not None
    assert drawn.shape[1] > 2 * TILE
    good = model(draw_part(3000))
    assert (good.evidence, good.evidence_sheet()) == ([], None)


def test_missing_and_foreign_archives_are_named(bank_model: Path) -> None:
    metadata = OnnxScorer(bank_model, device="cpu").metadata
    assert References(bank_model, metadata).missing is None
    path = references_path(bank_model)
    archive = path.read_bytes()
    path.write_bytes(archive[:-16] + b"0" * 16)
    assert "belongs to another model" in (References(bank_model, metadata).missing or "")
    path.write_bytes(archive[:50])
    assert "is damaged" in (References(bank_model, metadata).missing or "")
    path.unlink()
    own = finder(bank_model)
    assert "is missing: copy it beside the model" in (own.references.missing or "")
    defect, _ = draw_scratch(draw_part(2001), 1)
    found = own.find(defect, [Region(30, 30, 20, 10, 200, 2.0, False)])
    assert found[0].reference is None
    assert evidence_sheet(defect, found) is None


def test_detector_without_a_bank_gives_no_evidence(model: Path) -> None:
    own = finder(model)
    assert own.reason is not None
    assert "no bank of patches" in own.reason
    assert own.find(draw_part(0), [Region(0, 0, 5, 5, 25, 2.0, False)]) == []


def test_tiles_keep_the_frame_and_captions_are_ascii() -> None:
    image = np.zeros((100, 60, 3), np.uint8)
    for frame in (Frame(0, 0, 10, 10), Frame(55, 95, 5, 5), Frame(20, 40, 30, 30)):
        drawn = tile(image, frame, share=0.5, colour=(255, 0, 0))
        assert drawn.shape == (TILE, TILE, 3)
        assert (drawn == (255, 0, 0)).all(axis=2).any()
    assert sheet([(drawn, drawn, "Grüße")]).shape[0] > TILE
