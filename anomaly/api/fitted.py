"""A detector fitted on good images: its guarantee, its figures, its export."""

from __future__ import annotations

import html
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from anomaly.api.model import Model, load
from anomaly.conformal.calibration import CalibrationScores, OperatingPoint
from anomaly.conformal.guarantee import Guarantee, GuaranteeKind
from anomaly.conformal.outliers import Outliers
from anomaly.errors import Unsupported
from anomaly.inference.artifact import Brightness
from anomaly.inference.session import Device
from anomaly.system.argument_types import check_types
from anomaly.system.files import usable_path
from anomaly.system.progress import show_progress

if TYPE_CHECKING:
    from anomaly.evaluation.evaluate import Evaluation
    from anomaly.training.fitted_model import FittedModel
    from anomaly.training.race_record import Race
    from anomaly.training.suspects_files import Suspect


@dataclass(frozen=True, eq=False)
class Calibration:
    """Scores of the calibration images and the guarantee that they support."""

    ranked: CalibrationScores
    """scores with their part groups"""
    guarantee: Guarantee
    """expected false-alarm rate, its 95 % upper bound, and the construction"""
    outliers: Outliers | None = None
    """images with scores far above the rest, and the threshold without them; None without such images"""

    @property
    def scores(self) -> NDArray[np.float64]:
        """Calibrated scores (n,), ascending; 1 is the threshold."""
        return self.ranked.scores

    @property
    def operating_points(self) -> tuple[OperatingPoint, ...]:
        """Thresholds at 1, 2 and 5 %, those that the calibration images support."""
        return self.ranked.operating_points(guarantee=self.guarantee.guarantee)

    def at(self, alpha: float) -> OperatingPoint:
        """Find the threshold of another alpha, with its expected rate and 95 % upper bound.

        Args:
            alpha: share of good parts that may be rejected, in (0, 1).

        Raises:
            CalibrationError: too few calibration images of different parts for alpha.
        """
        return self.ranked.at(alpha, guarantee=self.guarantee.guarantee)

    def __repr__(self) -> str:
        return f"Calibration({self.guarantee})"


def fit(
    data: str | Path,
    *,
    detector: str = "auto",
    options: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    alpha: float | None = None,
    guarantee: GuaranteeKind = "expected",
    seed: int = 0,
    part_group: str | None = None,
    exclude: str | Path | None = None,
    roi: str | Path | None = None,
    white: int | None = None,
    max_pixels: int = 100_000_000,
    precision: Literal["fastest", "fp32", "bf16"] = "fp32",
    device: Literal["auto", "cpu", "cuda"] = "auto",
    tile: str | None = None,
    windows: int | None = None,
    brightness: Brightness = "kept",
    calibration: Literal["auto", "split", "leave_one_out", "cross"] = "auto",
    budget_ms: float | None = None,
    suspects: Literal["mutual", "calibration", "none"] = "mutual",
    progress: bool = False,
) -> Fitted:
    """Train and calibrate a detector on good images.

    Args:
        data: folder of good images, or a category in a known layout.
        detector: name of a detector, `package.module:Class`, or `auto`: the winner of a race on the good images.
        options: arguments of the detector's constructor.
        out: folder of the fitted model; None keeps it in a temporary folder for the life of the result.
        alpha: share of good parts that may be rejected, in (0, 1); None takes 1 %, or the smallest possible one.
        guarantee: kind of guarantee: `expected` bounds the expected rate by alpha, `bound` its 95 % upper bound.
        seed: seed of the split, the initial weights and the training order.
        part_group: regular expression on the paths, or CSV of path and group, that joins the images of one part.
        exclude: text file with names of excluded images, one per line.
        roi: region of interest, x,y,w,h in pixels or the path of a mask.
        white: stored value of 16-bit images that becomes 255, 1 to 65535; None derives it from the brightest image.
        max_pixels: largest width × height that is decoded.
        precision: number format of training; `fastest` is bf16 where the hardware supports it. Calibration is fp32.
        device: training device.
        tile: tile size H,W in pixels: large images are scored in seamless tiles.
        windows: window distance in pixels: large images are scored in overlapping windows.
        brightness: brightness correction; `levelled` scales every image to the training images' mean grey level.
        calibration: use of the images. `split` calibrates on a fifth of them, which do not train. `leave_one_out` trains and
            calibrates on all of them: each is scored without itself. `cross` does so by five further trainings, each without
            a fifth of the images. `auto` takes `leave_one_out` where the detector supports it, else `split`.
        budget_ms: largest permitted time in milliseconds to score an image on one core, for `auto`; None for any.
        suspects: ranking that names suspicious images; none is excluded. `mutual` compares all images with each other.
            `calibration` takes the calibration scores, which costs no time. `none` names no image.
        progress: whether progress bars are shown on standard error.

    Raises:
        DataError: images that cannot be used, or too few.
        CalibrationError: an alpha that the calibration images cannot support.
        TrainingError: a loss that is not finite, or too little memory.
        UsageError: an unknown or invalid option.
        Unsupported: a sampler that cannot score.
    """
    from anomaly.registry import model_class
    from anomaly.samplers.base import Sampler
    from anomaly.training.choice import AUTO, reason_for
    from anomaly.training.fit import fit_model

    folder, place = usable_path(data, name="data"), None if out is None else usable_path(out, name="out")
    check_types({"detector": detector}, {"detector": str})
    found = model_class(detector) if detector != AUTO else None
    if found is not None and issubclass(found, Sampler) and not found.supports("anomaly_map"):
        raise Unsupported(
            f"{detector}: this sampler draws images and cannot score them; see `anomaly fit` and `anomaly sample`"
        )
    with show_progress() if progress else nullcontext():
        fitted = fit_model(
            folder, out=place, detector=detector, options=options, alpha=alpha, guarantee=guarantee, seed=seed,
            part_group=part_group, exclude=exclude, roi=roi, white=white, max_pixels=max_pixels, precision=precision,
            device=device, tile=tile, windows=windows, brightness=brightness, calibration=calibration,
            budget_ms=budget_ms, suspects=suspects,
        )  # fmt: skip
    return Fitted(fitted, reason=reason_for(fitted.description.race))


class Fitted:
    """A fitted, calibrated detector on disk. Made by `fit`."""

    def __init__(self, fitted: FittedModel, *, reason: str) -> None:
        if fitted.detector is None:
            raise Unsupported(f"{fitted.description.detector}: this sampler draws images and cannot score them")
        self._fitted = fitted
        self.folder: Path = fitted.folder
        """Folder of the fitted model"""
        self.detector: str = fitted.description.detector
        """Name of the detector"""
        self.reason = reason
        """Reason for the choice of the detector"""
        self.race: Race | None = fitted.description.race
        """Race that chose the detector; None for a detector by name"""

    @property
    def calibration(self) -> Calibration:
        """Scores of the calibration images, and the guarantee."""
        description = self._fitted.description
        return Calibration(description.calibration.ranked(), description.certified, description.outliers)

    @property
    def suspects(self) -> list[Suspect]:
        """Training images that look unlike the others, the most suspicious first. None of them was excluded."""
        from anomaly.training.suspects_files import read_suspects

        return read_suspects(self.folder)

    def evaluate(self, data: str | Path, *, batch_size: int = 8, seed: int = 0) -> Evaluation:
        """Measure the detector on a folder with labelled test images.

        Args:
            data: category in a known layout, with good and defective test images.
            batch_size: images per inference, at least 1.
            seed: seed of the resampling for the intervals.

        Raises:
            DataError: labelled images are missing or cannot be used.
        """
        from anomaly.evaluation.evaluate import evaluate

        pixels = self._fitted.description.max_pixels
        return evaluate(
            self.folder, usable_path(data, name="data"), batch_size=batch_size, max_pixels=pixels, seed=seed
        )

    def export(
        self,
        path: str | Path,
        *,
        precision: Literal["fp32", "fp16", "int8"] = "fp32",
        fixed: str | None = None,
        device: Device = "auto",
    ) -> Model:
        """Write the .onnx file and load it.

        Args:
            path: file to write.
            precision: precision of the learned convolutions.
            fixed: shape N,H,W of the only accepted input; None accepts any number and size.
            device: inference device.

        Raises:
            OutputError: the place cannot be written.
            ParityError: fp16 or int8 loses too many verdicts.
        """
        from anomaly.export.model_file import export_model

        check_types({"device": device}, {"device": Device})
        file = export_model(self._fitted, usable_path(path, name="path"), precision=precision, fixed=fixed)
        return load(file, device=device, max_pixels=self._fitted.description.max_pixels)

    def __repr__(self) -> str:
        return f"Fitted({self.detector} of {self._fitted.description.category}; {self.calibration!r})"

    def _repr_html_(self) -> str:
        """Card of the fitted model, for notebooks."""
        description, calibration = self._fitted.description, self.calibration
        rows = {
            "Detector": f"{self.detector} ({self.reason})",
            "Training folder": description.category,
            "Training images": str(len(description.train)),
            "Calibration images": str(len(calibration.scores)),
            "False alarms, expected": f"{calibration.guarantee.expected_rate:.2%}",
            "False alarms, 95 % bound": calibration.guarantee.bound_text,
            "Calibration": calibration.guarantee.basis,
        }
        for point in calibration.operating_points:
            rows[f"Threshold at {point.alpha:.0%}"] = f"{point.threshold:.3f}"
        if calibration.outliers is not None:
            rows["Outliers"] = str(calibration.outliers)
        if self._fitted.suspects is not None:
            rows["Suspicious training images"] = str(len(self.suspects))
        cells = "".join(f"<tr><th>{html.escape(k)}</th><td>{html.escape(v)}</td></tr>" for k, v in rows.items())
        return f"<table>{cells}</table>"
