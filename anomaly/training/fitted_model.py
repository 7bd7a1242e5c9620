"""The run folder that `fit` writes and `export` and `verify` read: the detector's state and how to build it again.

`detector.safetensors` holds the state, `detector.json` the description, `run.json` the run card.
"""

from __future__ import annotations

import inspect
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from anomaly.conformal.calibration import GuaranteeKind
from anomaly.detectors.base import Detector
from anomaly.errors import ModelError, OutputError, UsageError
from anomaly.inference.artifact import Brightness, CalibrationRecord
from anomaly.inference.tiles import Tiling
from anomaly.registry import detector_class
from anomaly.system.files import atomic_write, write_json
from anomaly.system.suggestions import nearest

STATE_FILE, DESCRIPTION_FILE, CARD_FILE = "detector.safetensors", "detector.json", "run.json"


@dataclass(frozen=True)
class Description:
    """What a run folder says of its detector beside the state."""

    detector: str
    """its registry name, or package.module:Class"""
    config: dict[str, Any]
    """the constructor's arguments"""
    provenance: dict[str, str]
    """where pretrained weights came from, with their hash"""
    category: str
    white: int
    roi: str
    alpha: float
    guarantee: GuaranteeKind
    seed: int
    max_pixels: int
    calibration: CalibrationRecord
    image_stats: dict[str, dict[str, Any]]
    golden: str
    """base64 of the PNG"""
    train: list[str]
    """paths of the images learned from"""
    calibration_images: list[str]
    """paths of the images calibrated on"""
    stopping: list[str]
    """paths of the images that gave the stopping signal"""
    tiling: Tiling | None = None
    """how it walks over large images; none where they are scored whole"""
    brightness: Brightness = "kept"
    """whether each image is brought to the training images' mean grey level, by the graph"""


def build_detector(name: str, options: dict[str, Any]) -> Detector:
    """Build a detector from its registry name and its constructor's options.

    Raises:
        UsageError: an option that its constructor does not have, with the nearest one.
    """
    found = detector_class(name)
    known = list(inspect.signature(found).parameters)
    for option in options:
        if option not in known:
            raise UsageError(f"detector {name!r} has no option {option!r}; nearest: {nearest(option, known)!r}")
    detector: Detector = found(**options)
    return detector


def save(detector: Detector, description: Description, run: Path) -> None:
    """Write a detector's state and description into a run folder.

    Raises:
        OutputError: the folder cannot be written.
    """
    state = {key: value.detach().cpu().contiguous() for key, value in detector.state_dict().items()}
    try:
        with atomic_write(run / STATE_FILE) as partial:
            save_file(state, partial)
    except SafetensorError as error:
        raise OutputError(f"{run / STATE_FILE} cannot be written: {error}; choose another place") from error
    write_json(run / DESCRIPTION_FILE, asdict(description))


def load(run: Path) -> tuple[Detector, Description]:
    """Build the detector of a run folder, calibrated, on the CPU and in eval mode.

    Raises:
        ModelError: no run folder, or files in it that are damaged or do not fit each other.
    """
    lacking = [name for name in (STATE_FILE, DESCRIPTION_FILE) if not (run / name).is_file()]
    if lacking:
        raise ModelError(f"{run} is no run folder of `anomaly fit`: it has no {lacking[0]}")
    try:
        values = json.loads((run / DESCRIPTION_FILE).read_text(encoding="utf-8"))
        values["calibration"] = CalibrationRecord(**values["calibration"])
        if values.get("tiling"):
            values["tiling"] = Tiling(**values["tiling"])
        description = Description(**values)
        state = load_file(run / STATE_FILE)
        options = dict(description.config)
        if "weights" in options:
            options["weights"] = "none"  # the state brings them
        detector = build_detector(description.detector, options)
        detector.load_state_dict(state)
        if description.tiling:
            detector.preprocess.resize = "native"
    except (json.JSONDecodeError, TypeError, KeyError, SafetensorError, RuntimeError) as error:
        raise ModelError(f"{run} holds a damaged or foreign detector ({error}): fit it again") from error
    return detector.eval(), description


def config_to_travel(description: Description) -> dict[str, Any]:
    """Give the configuration as an exported file carries it: names of files, not where they lay, and the backbone's origin."""
    return {
        **{key: _without_folders(value) for key, value in description.config.items()},
        **{f"backbone_{key}": value for key, value in description.provenance.items()},
    }


def _without_folders(value: Any) -> Any:
    """An option's value with every absolute path in it cut down to its name."""
    if isinstance(value, dict):
        return {key: _without_folders(inner) for key, inner in value.items()}
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
