"""Sets that a factory really has, for every detector: grey, smaller than the input, or few."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from test_detectors import OPTIONS

from anomaly.detectors import DETECTORS
from anomaly.errors import DataError
from anomaly.training.fit import fit
from anomaly.training.torch_scorer import TorchScorer
from tests.plates import draw_part

EVERY = pytest.mark.parametrize("name", sorted(set(DETECTORS) - {"anomalib"}))


def write_grey(folder: Path, num: int) -> Path:
    """Small grey images, one channel on disk."""
    folder.mkdir()
    for n in range(num):
        grey = cv2.cvtColor(draw_part(n), cv2.COLOR_RGB2GRAY)
        assert cv2.imwrite(str(folder / f"{n:03d}.png"), cv2.resize(grey, (44, 40), interpolation=cv2.INTER_AREA))
    return folder


@EVERY
def test_small_grey_images_train_and_score(name: str, tmp_path: Path) -> None:
    folder = write_grey(tmp_path / "parts", 24)
    options = OPTIONS[name] | ({"epochs": 1} if "epochs" in OPTIONS[name] else {})
    scorer = TorchScorer(fit(folder, out=tmp_path / "run", detector=name, model=options))
    image = np.repeat(cv2.imread(str(folder / "000.png"), cv2.IMREAD_GRAYSCALE)[None, :, :, None], 3, axis=3)
    said = scorer.score(image.astype(np.uint8))
    assert np.isfinite(said.score).all()
    assert np.isfinite(said.anomaly_map).all()


@EVERY
def test_nine_images_are_too_few_and_the_number_needed_is_told(name: str, tmp_path: Path) -> None:
    folder = write_grey(tmp_path / "parts", 9)
    with pytest.raises(DataError, match=r"9 good images .* at least 2[01] images are needed"):
        fit(folder, out=tmp_path / "run", detector=name, model=OPTIONS[name])
