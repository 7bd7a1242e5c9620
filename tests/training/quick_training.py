"""A training of one epoch on a plain folder, for tests of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from anomaly.imaging.image_file import write_png
from anomaly.training.fit import fit_model
from anomaly.training.fitted_model import Description, load_fitted_model
from tests.plates import TINY, draw_part

ONE_EPOCH = TINY | {"epochs": 1}
FLOW = {
    "size": 64, "backbone": "resnet10t", "layers": [1, 2], "weights": "none", "num_steps": 2, "epochs": 1, "batch_size": 4
}  # fmt: skip
MAX_PIXELS = 10_000_000


def quick_fit(data: Path, out: Path, **arguments: Any) -> tuple[dict[str, Tensor], Description]:
    """Fit a tiny autoencoder for one epoch; return its state and description as loaded from disk."""
    defaults: dict[str, Any] = {"detector": "autoencoder", "options": ONE_EPOCH}
    fitted = load_fitted_model(fit_model(data, out=out, **(defaults | arguments)).folder)
    return fitted.model.state_dict(), fitted.description


def write_parts(folder: Path, num: int) -> Path:
    """Write `num` images of good parts into a new folder."""
    folder.mkdir(parents=True)
    for n in range(num):
        write_png(folder / f"{n:03d}.png", draw_part(n))
    return folder
