"""`FittedModel`: a trained, calibrated model, and its folder on disk.

The folder holds `detector.safetensors`, the state with the calibration, and `detector.json`, the `Description`. `export`,
`verify` and `evaluate` read it.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from anomaly.conformal.calibration import OperatingPoint
from anomaly.conformal.guarantee import Guarantee, GuaranteeKind
from anomaly.conformal.outliers import Outliers, num_outliers
from anomaly.detectors.base import Detector
from anomaly.errors import ModelError, OutputError, UsageError
from anomaly.inference.artifact import Brightness, CalibrationRecord
from anomaly.inference.tiles import Tiling
from anomaly.registry import detector_class, model_class, sampler_class
from anomaly.samplers.base import Sampler
from anomaly.system.argument_types import check_types
from anomaly.system.files import TemporaryFolder, atomic_write, write_json
from anomaly.system.suggestions import nearest
from anomaly.training.race_record import Race, race_of

if TYPE_CHECKING:
    from anomaly.training.suspects import Suspects

STATE_FILE, DESCRIPTION_FILE, CARD_FILE = "detector.safetensors", "detector.json", "run.json"
EXPORTS = (
    "model.onnx",
    "sampler.onnx",
    "*.references.zip",
    "*.certificate.json",
    "*.export.run.json",
    "*.verify.run.json",
)
"""Files that `export` and `verify` write into the folder by default; another fit makes them stale"""
CALIBRATION = "calibration."
"""Prefix of the calibration's keys in the state"""


@dataclass(frozen=True)
class Description:
    """Everything about a fitted model except its state."""

    detector: str
    """registry name or package.module:Class, of a detector or a sampler"""
    config: dict[str, Any]
    """arguments of the constructor"""
    provenance: dict[str, str]
    """origin and hash of pretrained weights"""
    category: str
    white: int
    """stored value of 16-bit images that becomes 255"""
    roi: str | None
    """region of interest, x,y,w,h in pixels or the path of a mask; None for the whole image"""
    alpha: float
    guarantee: GuaranteeKind
    seed: int
    max_pixels: int
    calibration: CalibrationRecord
    image_stats: dict[str, dict[str, Any]]
    """statistics of the calibration images"""
    golden: str
    """base64 of the self-test image's PNG"""
    train: list[str]
    """paths of the training images"""
    calibration_images: list[str]
    """paths of the calibration images"""
    stopping: list[str]
    """paths of the early-stopping validation images"""
    calibration_scores: list[float] = field(default_factory=list)
    """calibrated score of each calibration image, in the order of the paths"""
    calibration_peaks: list[float] = field(default_factory=list)
    """maximum of the calibrated map of each calibration image, as `calibration_scores`"""
    train_part_groups: list[int] = field(default_factory=list)
    """number of the part group of each training image, in the order of the paths"""
    train_sizes: list[list[int]] = field(default_factory=list)
    """height and width of each training image in pixels, in the order of the paths"""
    train_hashes: list[str] = field(default_factory=list)
    """first digits of the SHA-256 of each training image file, in the order of the paths"""
    tiling: Tiling | None = None
    """walk over large images; None where images are scored whole"""
    brightness: Brightness = "kept"
    """`levelled` where the graph brings each image to the training images' mean grey level"""
    race: Race | None = None
    """race that chose the detector; None for a detector by name"""

    @property
    def certified(self) -> Guarantee:
        """Guarantee of the fitted threshold."""
        return self.calibration.ranked().guarantee(alpha=self.alpha, guarantee=self.guarantee)

    @property
    def operating_points(self) -> tuple[OperatingPoint, ...]:
        """Thresholds at 1, 2 and 5 %, those that the calibration supports."""
        return self.calibration.ranked().operating_points(guarantee=self.guarantee)

    @property
    def outliers(self) -> Outliers | None:
        """Calibration images with scores far above the rest, and the threshold without them; None without such images."""
        ranked = self.calibration.ranked()
        num = num_outliers(ranked.scores)
        if not num or not self.calibration_scores:
            return None
        highest = np.argsort(self.calibration_scores, kind="stable")[::-1][:num]
        positions = range(ranked.num_images - num, ranked.num_images)
        threshold = ranked.threshold_without(positions, alpha=self.alpha, guarantee=self.guarantee)
        return Outliers(tuple(Path(self.calibration_images[n]).name for n in highest), threshold)

    @property
    def calibration_group_sizes(self) -> list[int]:
        """Images in the part group of each calibration image, in the order of the paths; empty without groups."""
        sizes = np.array(self.calibration.group_sizes, dtype=np.int64)
        if len(sizes):  # the record holds them in the order of the sorted scores
            sizes[np.argsort(self.calibration_scores, kind="stable")] = sizes.copy()
        return [int(size) for size in sizes]


@dataclass(frozen=True)
class FittedModel:
    """A trained model with its calibration and its folder."""

    model: Detector | Sampler
    """trained module, on the CPU"""
    detector: Detector | None
    """calibrated detector: the model itself, or a sampler's detector form; None where a sampler cannot score"""
    description: Description
    folder: Path
    """folder of the fitted model on disk; a temporary one where none was requested"""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """duration of each step of the fit"""
    removed: tuple[str, ...] = ()
    """names of removed files: exports of an earlier fit in the same folder"""
    seam_difference: float | None = None
    """largest difference between the stitched and the whole anomaly map; None without tiling"""
    suspects: Suspects | None = field(default=None, repr=False)
    """training images by suspicion; None without a ranking, and for a loaded model"""
    temporary: TemporaryFolder | None = field(default=None, repr=False)
    """handle that keeps a temporary folder alive"""


def build_model(name: str, options: Mapping[str, Any]) -> Detector | Sampler:
    """Build a detector or a sampler from its registry name and the options of its constructor.

    Raises:
        UsageError: an unknown name or an unknown option, with the nearest known one.
    """
    built: Detector | Sampler = _build(model_class(name), name, options)
    return built


def build_detector(name: str, options: Mapping[str, Any]) -> Detector:
    """Build a detector; arguments and errors as in `build_model`."""
    built: Detector = _build(detector_class(name), name, options)
    return built


def build_sampler(name: str, options: Mapping[str, Any]) -> Sampler:
    """Build a sampler; arguments and errors as in `build_model`."""
    built: Sampler = _build(sampler_class(name), name, options)
    return built


def _build(found: type, name: str, options: Mapping[str, Any]) -> Any:
    known = list(inspect.signature(found).parameters)
    kind = "sampler" if issubclass(found, Sampler) else "detector"
    for option in options:
        if option not in known:
            raise UsageError(f"{kind} {name!r} has no option {option!r}; nearest: {nearest(option, known)!r}")
    check_types(options, get_type_hints(found.__init__))  # type: ignore[misc]
    for option, value in options.items():
        if option in ("epochs", "batch_size") and value < 1:
            raise UsageError(f"{option} {value}: give 1 or more")
        if option.endswith("learning_rate") and not 0 < value < math.inf:
            raise UsageError(f"{option} {value}: give a number above 0, e.g. 0.001")
    return found(**options)


def detector_of(model: Detector | Sampler) -> Detector | None:
    """Return the detector form of a model; None for a sampler without likelihood and reconstruction."""
    if isinstance(model, Detector):
        return model
    return model.as_detector() if model.supports("anomaly_map") else None


def save(fitted: FittedModel) -> None:
    """Write state, calibration and description into the folder of a fitted model.

    Raises:
        OutputError: the folder cannot be written.
    """
    values = fitted.model.state_dict()
    if fitted.detector is not None:
        values |= {f"{CALIBRATION}{key}": value for key, value in fitted.detector.calibration.state_dict().items()}
    state = {key: value.detach().cpu().contiguous() for key, value in values.items()}
    path = fitted.folder / STATE_FILE
    try:
        with atomic_write(path) as partial:
            save_file(state, partial)
    except SafetensorError as error:
        raise OutputError(f"{path} cannot be written: {error}; choose another place") from error
    write_json(fitted.folder / DESCRIPTION_FILE, asdict(fitted.description))


def load_fitted_model(folder: str | Path) -> FittedModel:
    """Load a fitted model from its folder, on the CPU and in eval mode.

    Raises:
        ModelError: the folder is not a fitted model, or its files are damaged or inconsistent.
    """
    folder = Path(folder)
    missing = [name for name in (STATE_FILE, DESCRIPTION_FILE) if not (folder / name).is_file()]
    if missing:
        raise ModelError(f"{folder} is not a fitted model of `anomaly fit`: {missing[0]} is missing")
    try:
        values = json.loads((folder / DESCRIPTION_FILE).read_text(encoding="utf-8"))
        values["calibration"] = CalibrationRecord(**values["calibration"])
        if values.get("tiling"):
            values["tiling"] = Tiling(**values["tiling"])
        if values.get("race"):
            values["race"] = race_of(values["race"])
        description = Description(**values)
        state = load_file(folder / STATE_FILE)
        options = dict(description.config)
        if "weights" in options:
            options["weights"] = "none"  # the state holds them
        model = build_model(description.detector, options)
        detector = detector_of(model)
        if isinstance(model, Sampler):
            calibration = {key: state.pop(key) for key in list(state) if key.startswith(CALIBRATION)}
            if detector is not None:
                detector.calibration.load_state_dict(
                    {key.removeprefix(CALIBRATION): value for key, value in calibration.items()}
                )
        model.load_state_dict(state)
        if description.tiling:
            model.preprocess.resize = "native"
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError, KeyError, SafetensorError, RuntimeError) as error:
        raise ModelError(f"{folder} holds a damaged or foreign model ({error}): fit it again") from error
    model.eval()
    return FittedModel(
        model=model, detector=detector.eval() if detector else None, description=description, folder=folder
    )


def config_to_travel(description: Description) -> dict[str, Any]:
    """Return the configuration for an exported file: file names without folders, and the backbone's origin."""
    return {
        **{key: _without_folders(value) for key, value in description.config.items()},
        **{f"backbone_{key}": value for key, value in description.provenance.items()},
    }


def _without_folders(value: Any) -> Any:
    """Shorten every absolute path in an option's value to its file name."""
    if isinstance(value, dict):
        return {key: _without_folders(inner) for key, inner in value.items()}
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
