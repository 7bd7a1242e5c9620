"""The models of a service by name and version, each replaced as a whole when its file is.

    FILE.onnx          its name is the file's, or its folder's where the file is called model.onnx; version 1
    NAME=FILE.onnx     version 1
    FOLDER             its model.onnx, as in a run folder; else FOLDER/NAME.onnx and FOLDER/NAME/VERSION/model.onnx, the
                       layout of a Triton model repository

A file that changes is loaded beside the model that serves; only when it is ours, whole, and scores its golden image as it did
at export does it take over. Otherwise the model before it stays.
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
NAMES = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
"""What a model may be called: it stands in addresses and in metrics"""

Identity = tuple[int, int, int]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """Where a model lies."""

    name: str
    version: int
    path: Path


def find_places(models: Sequence[str]) -> list[Place]:
    """Resolve what was named on the command line.

    Raises:
        UsageError: nothing there, a name that cannot be one, or one name and version twice.
    """
    places = [place for model in models for place in _places(model)]
    taken: dict[tuple[str, int], Path] = {}
    for place in places:
        if not NAMES.fullmatch(place.name):
            raise UsageError(
                f"{place.path}: {place.name!r} is no name for a model; give NAME=FILE in letters, digits, . _ -"
            )
        if (place.name, place.version) in taken:
            raise UsageError(
                f"{taken[place.name, place.version]} and {place.path} are both {place.name} version {place.version}:"
                " give one of them another name with NAME=FILE"
            )
        taken[place.name, place.version] = place.path
    if not places:
        raise UsageError("no model to serve: name .onnx files, NAME=FILE, or a folder of them")
    return places


def _places(model: str) -> list[Place]:
    path = Path(model)
    name, equals, file = model.partition("=")
    if equals and not path.exists():
        return [Place(name, 1, Path(file))]
    if not path.is_dir():
        return [Place(_name(path), 1, path)]
    if (path / MODEL_FILE).is_file():
        return [Place(path.resolve().name, 1, path / MODEL_FILE)]
    found = [Place(file.stem, 1, file) for file in sorted(path.glob("*.onnx"))]
    found += [
        Place(file.parent.parent.name, int(file.parent.name), file)
        for file in sorted(path.glob(f"*/*/{MODEL_FILE}"))
        if file.parent.name.isdecimal()
    ]
    if not found:
        raise UsageError(f"{path} holds no model: FOLDER/NAME.onnx or FOLDER/NAME/VERSION/{MODEL_FILE} is looked for")
    return found


def _name(file: Path) -> str:
    return file.resolve().parent.name if file.name == MODEL_FILE else file.stem


class Served:
    """One version of a model: the scorer that answers now, and the file that it came from.

    Args:
        place: of the file.
        load: opens it.

    Raises:
        AnomalyError: the file cannot be loaded.
    """

    def __init__(self, place: Place, *, load: Callable[[Path], OnnxScorer]) -> None:
        self.place = place
        self._load = load
        self._seen = self._loaded = _identity(place.path)
        self.scorer = load(place.path)
        self.is_current = True
        """whether the file that lies there now is the one that answers"""

    def reload(self) -> bool | None:
        """Load the file again where it was replaced and has not changed since the last look.

        Returns:
            True when it took over, False when it was refused, None when there was nothing to do.
        """
        identity = _identity(self.place.path)
        settled, self._seen = identity == self._seen, identity
        if not settled or identity == self._loaded:
            return None
        self._loaded = identity
        self.is_current = False
        try:
            scorer = self._load(self.place.path)
        except Exception as error:  # whatever lies there, the model that serves goes on
            _log.warning(
                "%s version %d is not replaced: %s; the model before it goes on",
                self.place.name,
                self.place.version,
                error,
            )
            return False
        if _identity(self.place.path) != identity:  # replaced again meanwhile: the next look will see
            self._loaded = None
            return None
        self.scorer, self.is_current = scorer, True
        return True


def model_card(
    served: Served, *, threshold: float, drift: Mapping[str, str | int]
) -> dict[str, str | int | float | bool]:
    """Tell what a model is and guarantees, in plain values as the protocol's parameters are.

    Args:
        served: the model.
        threshold: of the verdicts here; the guarantee holds at the model's own, 1.
        drift: as `Drift.state` tells it.
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
        "num_calibration": stored.calibration.num_images,
        "calibration_date": stored.calibration.date,
        "precision": stored.precision,
        "provider": scorer.provider,
        **drift,
    }


def _identity(path: Path) -> Identity | None:
    """What changes when a file is replaced or written to; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


class Models:
    """All models of a service.

    Args:
        places: where they lie.
        device: auto, cpu, cuda or tensorrt.
        num_threads: of one inference on the CPU; 0 takes all this process may use.

    Raises:
        AnomalyError: one of them cannot be loaded.
    """

    def __init__(self, places: Sequence[Place], *, device: Device, num_threads: int) -> None:
        def load(path: Path) -> OnnxScorer:
            return OnnxScorer(path, device=device, num_threads=num_threads)

        self._served: dict[str, dict[int, Served]] = {}
        for place in sorted(places, key=lambda p: (p.name, p.version)):
            self._served.setdefault(place.name, {})[place.version] = Served(place, load=load)

    def all(self) -> list[Served]:
        """Every version of every model, by name and version."""
        return [served for versions in self._served.values() for served in versions.values()]

    def versions(self, name: str) -> list[str]:
        """Versions of a model, ascending.

        Raises:
            RequestError: 404, there is no such model.
        """
        return [str(version) for version in self._of(name)]

    def find(self, name: str, version: str) -> Served:
        """Find a model; an empty name stands for the only one, an empty version for the highest.

        Raises:
            RequestError: 404 no such model or version, 400 no name where there are several.
        """
        if not name:
            if len(self._served) != 1:
                raise RequestError(400, f"name a model: {', '.join(self._served)}")
            name = next(iter(self._served))
        versions = self._of(name)
        if not version:
            return versions[max(versions)]
        for number, served in versions.items():
            if version == str(number):
                return served
        raise RequestError(
            404, f"no version {version[:100]!r} of the model {name!r}: it has {', '.join(map(str, versions))}"
        )

    def _of(self, name: str) -> dict[int, Served]:
        if name not in self._served:
            raise RequestError(404, f"no model {name[:100]!r}: there are {', '.join(self._served)}")
        return self._served[name]
