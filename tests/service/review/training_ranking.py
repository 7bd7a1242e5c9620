"""A fitted model's folder with a ranking of its training images, without any training."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from anomaly.data.folders import Sample
from anomaly.imaging.image_file import read_image, write_png
from anomaly.training.suspects import RankedImage, Suspects
from anomaly.training.suspects_files import write_suspects
from tests.plates import draw_part


def write_ranking(root: Path, *, excluded: tuple[str, ...] = (), reason: str | None = None) -> Path:
    """Write six parts and their ranking, the first two suspicious; returns the folder of the fitted model."""
    data, folder = root / "parts", root / "model"
    folder.mkdir(parents=True)
    paths = [data / f"{n}.png" for n in range(6)]
    for n, path in enumerate(paths):
        write_png(path, draw_part(n))
    ranked = tuple(
        RankedImage(path, path.name, 2.0 - 0.3 * n, 0.001 * (n + 1), n < 2, np.full((4, 5), 1.5 - 0.3 * n, np.float32))
        for n, path in enumerate(paths)
    )
    description: Any = SimpleNamespace(detector="memory_bank", white=255, max_pixels=10**6)

    def read(sample: Sample) -> Any:
        return read_image(sample.path, white=255, max_pixels=10**6)

    ranking = Suspects(ranked, threshold_without=0.5, reason=reason)
    write_suspects(ranking, folder, description=description, data=data, excluded=excluded, read=read)
    (folder / "detector.json").write_text("{}")
    return folder
