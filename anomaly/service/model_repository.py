"""The served models by name and version; a model is replaced as a whole when its file changes.

    FILE.onnx          named after the file, or after its folder if the file is called model.onnx; version 1
    NAME=FILE.onnx     version 1
    FOLDER             FOLDER/model.onnx, as in a fitted model; otherwise FOLDER/NAME.onnx and
                       FOLDER/NAME/VERSION/model.onnx, the layout of a Triton model repository

A changed file is loaded beside the active model. It becomes active only if it is a complete model and scores its
golden image as at export. Otherwise the previous model stays active.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from anomaly.errors import RequestError, UsageError
from anomaly.inference.scorer import OnnxScorer
from anomaly.inference.session import Device

MODEL_FILE = "model.onnx"
NAME_PATTERN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
"""Valid names of a model: they appear in URLs and in metrics"""

FileState = tuple[int, int, int]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelFile:
    """Name, version and path of a model."""

    name: str
    version: int
    path: Path


def find_model_files(models: Sequence[str | Path]) -> list[ModelFile]:
    """Resolve the models of the command line.

    Args:
        models: files, NAME=FILE, or folders.

    Raises:
        UsageError: no model found, an invalid name, or a duplicate name and version.
    """
    files = [file for model in models for file in _files(str(model))]
    found: dict[tuple[str, int], Path] = {}
    for file in files:
        if not NAME_PATTERN.fullmatch(file.name):
            raise UsageError(
                f"{file.path}: {file.name!r} is an invalid model name; give NAME=FILE in letters, digits, . _ -"
            )
        if (file.name, file.version) in found:
            raise UsageError(
                f"{found[file.name, file.version]} and {file.path} are both {file.name} version {file.version}:"
                " give one of them another name with NAME=FILE"
            )
        found[file.name, file.version] = file.path
    if not files:
        raise UsageError("no model to serve: name .onnx files, NAME=FILE, or a folder of them")
    return files


def _files(model: str) -> list[ModelFile]:
    path = Path(model)
    name, equals, file = model.partition("=")
    if equals and not path.exists():
        return [ModelFile(name, 1, Path(file))]
    if not path.is_dir():
        return [ModelFile(_name(path), 1, path)]
    if (path / MODEL_FILE).is_file():
        return [ModelFile(path.resolve().name, 1, path / MODEL_FILE)]
    found = [ModelFile(file.stem, 1, file) for file in sorted(path.glob("*.onnx"))]
    found += [
        ModelFile(file.parent.parent.name, int(file.parent.name), file)
        for file in sorted(path.glob(f"*/*/{MODEL_FILE}"))
        if file.parent.name.isdecimal()
    ]
    if not found:
        raise UsageError(
            f"{path} contains no model: expected FOLDER/{MODEL_FILE}, FOLDER/NAME.onnx or"
            f" FOLDER/NAME/VERSION/{MODEL_FILE}"
        )
    return found


def _name(file: Path) -> str:
    return file.resolve().parent.name if file.name == MODEL_FILE else file.stem


class ServedModel:
    """One version of a model: its file and its active scorer.

    Args:
        file: file of the model.
        load: function that opens the file.

    Raises:
        AnomalyError: the file cannot be loaded.
    """

    def __init__(self, file: ModelFile, *, load: Callable[[Path], OnnxScorer]) -> None:
        self.file = file
        self._load = load
        self._last_state = self._loaded_state = _state(file.path)
        self.scorer = load(file.path)
        self.is_current = True
        """whether the active scorer comes from the present file"""

    def reload(self) -> bool | None:
        """Load the file again if it was replaced and has not changed since the previous check.

        Returns:
            True if the new file is active, False if it was refused, None without a new file.
        """
        state = _state(self.file.path)
        is_stable, self._last_state = state == self._last_state, state
        if not is_stable or state == self._loaded_state:
            return None
        self._loaded_state = state
        self.is_current = False
        try:
            scorer = self._load(self.file.path)
        except Exception as error:  # the active model must survive any content of the file
            _log.warning(
                "%s version %d was not replaced: %s; the previous model stays active",
                self.file.name,
                self.file.version,
                error,
            )
            return False
        if _state(self.file.path) != state:  # replaced during loading: the next check loads it
            self._loaded_state = None
            return None
        self.scorer, self.is_current = scorer, True
        return True


def model_card(
    served: ServedModel, *, threshold: float, drift: Mapping[str, str | int]
) -> dict[str, str | int | float | bool]:
    """Describe a model and its guarantee in plain values, for the parameters of the protocol.

    Args:
        served: model to describe.
        threshold: threshold of the verdicts; the guarantee holds at the model's own threshold, 1.
        drift: result of `WindowedDriftMonitor.state`.
    """
    scorer, stored = served.scorer, served.scorer.metadata
    return {
        "sha256": scorer.sha256,
        "current": served.is_current,
        "threshold": threshold,
        "detector": stored.detector,
        "category": stored.category,
        "alpha": stored.alpha,
        "guarantee": stored.guarantee,
        "expected_rate": stored.certified.expected_rate,
        "basis": stored.certified.basis,
        "num_calibration": stored.calibration.num_images,
        "num_part_groups": stored.certified.num_groups,
        "calibration_date": stored.calibration.date,
        "precision": stored.precision,
        "provider": scorer.provider,
        **drift,
    }


def _state(path: Path) -> FileState | None:
    """Values that change when a file is replaced or written; None if the file is missing."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


class ModelRepository:
    """All models of a service.

    Args:
        files: files of the models.
        device: inference device: auto, cpu, cuda or tensorrt.
        num_threads: threads of one inference on the CPU; 0 takes all processors.

    Raises:
        AnomalyError: a model cannot be loaded.
    """

    def __init__(self, files: Sequence[ModelFile], *, device: Device, num_threads: int) -> None:
        def load(path: Path) -> OnnxScorer:
            return OnnxScorer(path, device=device, num_threads=num_threads)

        self._served: dict[str, dict[int, ServedModel]] = {}
        for file in sorted(files, key=lambda f: (f.name, f.version)):
            self._served.setdefault(file.name, {})[file.version] = ServedModel(file, load=load)

    def all(self) -> list[ServedModel]:
        """List every version of every model, by name and version."""
        return [served for versions in self._served.values() for served in versions.values()]

    def versions(self, name: str) -> list[str]:
        """List the versions of a model, ascending.

        Raises:
            RequestError: 404, unknown model.
        """
        return [str(version) for version in self._versions(name)]

    def find(self, name: str | None, version: str | None) -> ServedModel:
        """Find a model.

        Args:
            name: model name; None selects the only model.
            version: version number; None selects the highest.

        Raises:
            RequestError: 404 unknown model or version, 400 no name given and several models served.
        """
        if name is None:
            if len(self._served) != 1:
                raise RequestError(400, f"no model name: choose one of {', '.join(self._served)}")
            name = next(iter(self._served))
        versions = self._versions(name)
        if version is None:
            return versions[max(versions)]
        for number, served in versions.items():
            if version == str(number):
                return served
        raise RequestError(
            404, f"model {name!r} has no version {version[:100]!r}; versions: {', '.join(map(str, versions))}"
        )

    def _versions(self, name: str) -> dict[int, ServedModel]:
        if name not in self._served:
            raise RequestError(404, f"unknown model {name[:100]!r}; models: {', '.join(self._served)}")
        return self._served[name]
