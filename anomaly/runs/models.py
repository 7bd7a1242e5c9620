"""The models and maps of a finished run; a merged run keeps them in its shards."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from anomaly.errors import DataError
from anomaly.imaging.overlay import Resize
from anomaly.inference.artifact import Metadata, load_graph, read_metadata
from anomaly.inference.scorer import OnnxScorer
from anomaly.inference.session import Device
from anomaly.runs.run_files import EVIDENCE, MANIFEST, MAPS, MODELS, read_ledger, run_options
from anomaly.system.files import as_path, sha256_of


@dataclass(frozen=True)
class RunModel:
    """A run's copy of a model."""

    path: Path
    sha256: str
    metadata: Metadata


class Reading(NamedTuple):
    """Conversion of images that a model scored."""

    white: int
    """stored value of 16-bit images that becomes 255"""
    resize: Resize
    """rule of resizing to the network's input"""


class RunModels:
    """The models of a run; safe for several threads.

    Args:
        run: folder of the run.
        device: device on which images are scored again.

    Raises:
        ModelError: a copy that is not a valid model.
    """

    def __init__(self, run: str | Path, *, device: Device) -> None:
        run = as_path(run, name="run")
        ledger = read_ledger(run)
        begin = ledger[0]
        self.options: dict[str, Any] = run_options(ledger)
        self.date: str = begin["date"]
        self._folders = [run]
        if "shards" in begin:
            manifests = [(Path(shard), sha256) for shard, sha256 in begin["shards"].items()]
            intact = all((s / MANIFEST).is_file() and sha256_of(s / MANIFEST) == sha256 for s, sha256 in manifests)
            self._folders = [shard for shard, _ in manifests] if intact else []
        self._device = device
        self._scorers: dict[Path, OnnxScorer] = {}
        self._lock = threading.Lock()
        self.all: list[RunModel] = []
        for number, product in enumerate(sorted(self.options["models"])):
            for path in [path for folder in self._folders for path in (folder / MODELS).glob(f"{number:02d}_*")][:1]:
                metadata = read_metadata(load_graph(path), name=str(path))
                self.all.append(RunModel(path, self.options["models"][product], metadata))

    def find(self, model: str) -> RunModel:
        """Find the model of a row.

        Args:
            model: first digits of the model's SHA-256, from the row.

        Raises:
            DataError: the run, or the shards of a merged run, have no copy of it.
        """
        for one in self.all:
            if model and one.sha256.startswith(model):
                return one
        raise DataError(
            f"the run's copy of the model {model} is missing: restore it, or the shards of a merged run at their old place"
        )

    def reading(self, model: str) -> Reading:
        """Find the conversion of the images of a model; arguments and errors as in `find`."""
        metadata = self.find(model).metadata
        return Reading(metadata.white, metadata.resize)

    def scorer(self, model: RunModel) -> OnnxScorer:
        """Open a model, once.

        Raises:
            DataError: the copy is not the file that scored the run.
            ModelError, ProviderError: as in `OnnxScorer`.
        """
        with self._lock:
            if model.path not in self._scorers:
                scorer = OnnxScorer(model.path, device=self._device, num_threads=0)
                if scorer.sha256 != model.sha256:
                    raise DataError(
                        f"{model.path} was changed since the run: its SHA-256 differs; use an unchanged copy"
                    )
                self._scorers[model.path] = scorer
            return self._scorers[model.path]

    def kept_map(self, number: int) -> Path | None:
        """Find the map file of an image; None if the run kept no maps.

        Args:
            number: number of the row.
        """
        return self._kept(number, MAPS)

    def kept_evidence(self, number: int) -> Path | None:
        """Find the picture of the nearest good patches of an image; None if the run has none.

        Args:
            number: number of the row.
        """
        return self._kept(number, EVIDENCE)

    def _kept(self, number: int, name: str) -> Path | None:
        """Find a picture of an image in a folder of the run. Rows of a merged run alternate between the shards."""
        if not self._folders:
            return None
        path = self._folders[number % len(self._folders)] / name / f"{number // len(self._folders):08d}.png"
        return path if path.is_file() else None
