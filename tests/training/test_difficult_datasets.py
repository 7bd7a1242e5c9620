"""Realistic difficult data sets, for every detector: grey images, images smaller than the input, few images."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from anomaly.detectors import DETECTORS
from anomaly.errors import DataError
from anomaly.training.fit import fit_model
from anomaly.training.torch_scorer import TorchScorer
from tests.detectors.tiny_detectors import OPTIONS
from tests.plates import draw_part

EVERY = pytest.mark.parametrize("name", sorted(set(DETECTORS) - {"anomalib"}))


def write_grey(folder: Path, num: int) -> Path:
    """Write small grey images with one channel."""
    folder.mkdir()
    for n in range(num):
        grey = cv2.cvtColor(draw_part(n), cv2.COLOR_RGB2GRAY)
        assert cv2.imwrite(str(folder / f"{n:03d}.png"), cv2.resize(grey, (44, 40), interpolation=cv2.INTER_AREA))
    return folder


@EVERY
def test_small_grey_images_train_and_score(name: str, tmp_path: Path) -> None:
    folder = write_grey(tmp_path / "parts", 24)
    options = OPTIONS[name] | ({"epochs": 1} if "epochs" in OPTIONS[name] else {})
    scorer = TorchScorer(fit_model(folder, out=tmp_path / "fitted", detector=name, options=options))
    image = np.repeat(cv2.imread(str(folder / "000.png"), cv2.IMREAD_GRAYSCALE)[None, :, :, None], 3, axis=3)
    scores = scorer.score(image.astype(np.uint8))
    assert np.isfinite(scores.score).all()
    assert np.isfinite(scores.anomaly_map).all()


@pytest.mark.parametrize("name", sorted(set(DETECTORS) - {"anomalib", "memory_bank"}))
def test_too_few_images_are_refused_with_the_number_needed(name: str, tmp_path: Path) -> None:
    folder = write_grey(tmp_path / "parts", 9)
    with pytest.raises(DataError, match=r"9 good images .* at least 2[01] images are needed"):
        fit_model(folder, out=tmp_path / "run", detector=name, options=OPTIONS[name], calibration="split")
