"""A detector fitted on good images: its guarantee, its figures, its export."""

from __future__ import annotations

import html
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from anomaly.api.arguments import checked_path
from anomaly.api.model import Model, load
from anomaly.conformal.calibration import Guarantee, GuaranteeKind, guarantee_for

if TYPE_CHECKING:
    from anomaly.evaluation.evaluate import Evaluation


@dataclass(frozen=True)
class Calibration:
    """Scores of the calibration images and the guarantee that they support."""

    scores: NDArray[np.float64]
    """(n,) calibrated, ascending; 1 is the threshold"""
    guarantee: Guarantee
    """expected false-alarm rate and its 95 % upper bound"""

    def __repr__(self) -> str:
        rate = self.guarantee
        return (
            f"Calibration({len(self.scores)} images; false alarms {rate.expected_rate:.2%} expected,"
            f" at most {rate.rate_bound:.2%} with 95 % confidence)"
        )


def fit(
    data: str | Path,
    *,
    detector: str = "auto",
    out: str | Path | None = None,
    options: dict[str, Any] | None = None,
    alpha: float | None = None,
    guarantee: GuaranteeKind = "expected",
    seed: int = 0,
    **more: Any,
) -> Fitted:
    """Train a detector on good images and calibrate it on a fifth of them.

    Args:
        data: folder of good images, or a category in a known layout.
        detector: name of a detector, `package.module:Class`, or `auto`: FastFlow where its pretrained weights are available,
            else the autoencoder.
        out: folder of the fitted model; None keeps it in a temporary folder for the life of the result.
        options: arguments of the detector's constructor.
        alpha: share of good parts that may be rejected, in (0, 1); None takes 1 %, or the tightest that the images support.
        guarantee: `expected` bounds the expected rate by alpha, `bound` its 95 % upper bound.
        seed: seed of split, weights and order.
        more: further options of `anomaly fit`, such as `part_group`, `roi`, `exclude`, `device`, `tile`.

    Raises:
        DataError: images that cannot be used, or too few.
        CalibrationError: an alpha that the calibration images cannot support.
        TrainingError: a loss that is not finite, or too little memory.
        UsageError: an unknown or invalid option.
    """
    from anomaly.training.choice import choose_detector
    from anomaly.training.fit import fit as fit_model

    folder = checked_path(data, "data")
    name, reason = choose_detector(detector)
    keep = None
    if out is None:
        keep = tempfile.TemporaryDirectory(prefix="anomaly-fit-")
        out = keep.name
    fit_model(
        folder,
        out=checked_path(out, "out"),
        detector=name,
        model=options,
        guarantee=guarantee,
        seed=seed,
        alpha=alpha,
        **more,
    )
    return Fitted(Path(out), reason=reason, keep=keep)


class Fitted:
    """A fitted, calibrated detector on disk."""

    def __init__(self, folder: Path, *, reason: str, keep: tempfile.TemporaryDirectory[str] | None = None) -> None:
        from anomaly.training.fitted_model import load as load_fitted

        self._model, self._description = load_fitted(folder)
        self._keep = keep
        self.folder = folder
        """Folder of the fitted model"""
        self.detector: str = self._description.detector
        """Name of the detector"""
        self.reason = reason
        """Reason for the choice of the detector"""

    @property
    def calibration(self) -> Calibration:
        """Scores of the calibration images and the guarantee."""
        record, description = self._description.calibration, self._description
        rate = guarantee_for(record.num_images, alpha=description.alpha, guarantee=description.guarantee)
        return Calibration(np.asarray(record.scores), rate)

    def evaluate(self, data: str | Path, **options: Any) -> Evaluation:
        """Measure the detector on a folder with labelled test images.

        Args:
            data: category in a known layout, with good and defective test images.
            options: further arguments of `anomaly.evaluation.evaluate.evaluate`.

        Raises:
            DataError: no labelled images.
        """
        from anomaly.evaluation.evaluate import evaluate

        return evaluate(self.folder, checked_path(data, "data"), **options)

    def export(self, path: str | Path, **options: Any) -> Model:
        """Write the certified .onnx file and load it.

        Args:
            path: file to write, ending in .onnx.
            options: further options of `anomaly export`, such as `precision`.

        Raises:
            OutputError: the place cannot be written.
        """
        from anomaly.export.detector import export

        return load(export(self.folder, out=checked_path(path, "path"), **options), device="cpu")

    def __repr__(self) -> str:
        return f"Fitted({self.detector} of {self._description.category}; {self.calibration!r})"

    def _repr_html_(self) -> str:
        rows = {
            "Detector": f"{self.detector} ({self.reason})",
            "Training folder": self._description.category,
            "Training images": str(len(self._description.train)),
            "Calibration images": str(len(self.calibration.scores)),
            "False alarms, expected": f"{self.calibration.guarantee.expected_rate:.2%}",
            "False alarms, 95 % bound": f"{self.calibration.guarantee.rate_bound:.2%}",
        }
        cells = "".join(f"<tr><th>{html.escape(k)}</th><td>{html.escape(v)}</td></tr>" for k, v in rows.items())
        return f"<table>{cells}</table>"
