"""The fusion of detectors: its sum, its scales, and its members' support."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anomaly.data.folders import find_category
from anomaly.detectors.fusion import Fusion, spread_of
from anomaly.errors import UsageError
from anomaly.inference.scorer import OnnxScorer
from anomaly.training.fit import fit_model
from anomaly.training.training_job import ImageReader, TrainingJob
from tests.detectors.tiny_detectors import OPTIONS, parts
from tests.training.quick_training import MAX_PIXELS, write_parts

BANK: dict[str, Any] = {k: list(v) if isinstance(v, tuple) else v for k, v in OPTIONS["memory_bank"].items()}
MEMBERS = [
    {"detector": "memory_bank", "options": BANK},
    {"detector": "memory_bank", "options": BANK | {"size": [32, 32], "pooling": "maximum", "position_scale": False}},
]
IMAGES = ImageReader(white=255, max_pixels=MAX_PIXELS, cache_gib=0.1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_parts(tmp_path_factory.mktemp("fusion") / "parts", 20)


def fitted(folder: Path, **options: Any) -> Fusion:
    job = TrainingJob(name="fusion", options={"members": MEMBERS} | options, images=IMAGES, seed=0)
    detector = job.fit(find_category(folder).train)
    assert isinstance(detector, Fusion)
    return detector


def test_the_score_is_the_sum_of_the_standardised_scores(folder: Path) -> None:
    scales = [[1.0, 2.0, 3.0, 4.0], [0.5, 0.25, 0.5, 0.5]]
    detector = fitted(folder, scales=scales)
    image = parts(3)
    raw = detector.anomaly(detector.preprocess(image))
    each = [m.anomaly(m.preprocess(image)) for m in detector.members]  # type: ignore[operator,union-attr]
    expected = sum((r.score - row[0]) / row[1] for r, row in zip(each, scales, strict=True))
    torch.testing.assert_close(raw.score, expected)
    assert raw.anomaly_map.shape == (3, 64, 64)
    first = (each[0].anomaly_map - 3) / 4
    second = torch.nn.functional.interpolate(each[1].anomaly_map[:, None], (64, 64), mode="bilinear")[:, 0]
    torch.testing.assert_close(raw.anomaly_map, first + (second - 0.5) / 0.5)


def test_missing_scales_are_measured_without_each_image(folder: Path) -> None:
    detector = fitted(folder)
    assert detector.supports_leave_one_out
    assert not detector.leave_one_out_is_exact
    samples = find_category(folder).train
    member: Any = detector.members[0]
    scores = []
    for number, sample in enumerate(samples):
        x = member.preprocess(torch.from_numpy(IMAGES.read(sample)[None]))
        scores.append(float(member.anomaly_without(x, [number]).score[0]))
    np.testing.assert_allclose(detector.scale[0, :2].numpy(), spread_of(np.array(scores)), rtol=1e-4)


def test_a_position_scale_standardises_each_place(folder: Path) -> None:
    detector = fitted(folder, pooling="maximum", position_scale=True)
    raw = detector.anomaly(detector.preprocess(parts(3)))
    torch.testing.assert_close(raw.score, raw.anomaly_map.amax(dim=(1, 2)))
    maps = [torch.full((64, 64), value) for value in (1.0, 3.0)]
    detector.set_position_scale(0, maps)
    torch.testing.assert_close(detector.typical[0], torch.full((64, 64), 2.0))
    torch.testing.assert_close(detector.deviation[0], torch.ones(64, 64))


def test_a_left_out_image_is_missing_in_the_position_scale(folder: Path) -> None:
    detector = fitted(folder, pooling="maximum", position_scale=True)
    maps = [torch.rand(64, 64, generator=torch.Generator().manual_seed(n)) for n in range(12)]
    detector.set_position_scale(0, maps[1:])
    expected = detector.typical[0].clone(), detector.deviation[0].clone()
    detector.set_position_scale(0, maps)
    found = detector._position_scale(0, maps[0][None], [0])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(detector._position_scale(0, maps[0][None], [])[0], detector.typical[0])


def test_images_of_different_sizes_are_scored(folder: Path) -> None:
    detector = fitted(folder)
    images = list(parts(2))
    wide = [images[0], images[1][:, :80].contiguous()]
    raw = detector(wide)
    torch.testing.assert_close(raw.score[:1], detector(images[0][None]).score)
    assert raw.anomaly_map.shape == (2, 64, 64)


def test_the_exported_file_scores_like_the_fusion(folder: Path, tmp_path: Path) -> None:
    from anomaly.export.model_file import export_model

    model = fit_model(folder, detector="fusion", options={"members": MEMBERS}, out=tmp_path / "run", alpha=0.2)
    assert model.description.calibration.construction == "leave_one_out"
    scorer = OnnxScorer(export_model(model, tmp_path / "model.onnx"), device="cpu", num_threads=1)
    image = parts(2)
    assert model.detector is not None
    with torch.no_grad():
        expected = model.detector(image)
    found = scorer.score(image.numpy())
    np.testing.assert_allclose(found.score, expected.score.numpy(), atol=1e-3)
    np.testing.assert_allclose(found.anomaly_map, expected.anomaly_map.numpy(), atol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"members": MEMBERS[:1]}, "a fusion of 1 detectors: give two or more"),
        ({"members": [*MEMBERS, {"detector": "fusion"}]}, "member 'fusion' of a fusion is unknown"),
        ({"members": [*MEMBERS, {"name": "riad"}]}, "give `detector`"),
        ({"members": [*MEMBERS, {"detector": "memory_bank", "options": {"sise": 3}}]}, "no option 'sise'"),
        ({"members": MEMBERS, "scales": [[1.0, 2.0]]}, "give four numbers for each of the 2 members"),
    ],
)
def test_invalid_members_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Fusion(**options)


def test_members_with_different_resizing_are_refused() -> None:
    other = {"detector": "memory_bank", "options": BANK | {"resize": "letterbox"}}
    with pytest.raises(UsageError, match="resize differently"):
        Fusion(members=[MEMBERS[0], other])


def test_spread_is_never_zero() -> None:
    assert spread_of(np.ones(5))[1] > 0
