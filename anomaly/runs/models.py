"""The models that a finished run was scored with, and the maps it kept; of a merged run they lie in its shards."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anomaly.errors import DataError
from anomaly.inference.artifact import Metadata, load_graph, read_metadata
from anomaly.inference.scorer import OnnxScorer
from anomaly.inference.session import Device
from anomaly.runs.run_directory import MANIFEST, MAPS, MODELS, read_ledger
from anomaly.system.files import sha256_of


@dataclass(frozen=True)
class RunModel:
    """A run's copy of a model."""

    path: Path
    sha256: str
    metadata: Metadata


class RunModels:
    """The models of a run; used from several threads.

    Args:
        run: the run directory.
        device: to score on again.

    Raises:
        ModelError: a copy that is no model.
    """

    def __init__(self, run: Path, *, device: Device) -> None:
        begun = read_ledger(run)[0]
        self.asked: dict[str, Any] = begun["asked"]
        self.date: str = begun["date"]
        self._folders = [run]
        if "shards" in begun:
            manifests = [(Path(shard), sha256) for shard, sha256 in begun["shards"].items()]
            is_there = all((s / MANIFEST).is_file() and sha256_of(s / MANIFEST) == sha256 for s, sha256 in manifests)
            self._folders = [shard for shard, _ in manifests] if is_there else []
        self._device = device
        self._scorers: dict[Path, OnnxScorer] = {}
        self._lock = threading.Lock()
        self.all: list[RunModel] = []
        for number, product in enumerate(sorted(self.asked["models"])):
            for path in [path for folder in self._folders for path in (folder / MODELS).glob(f"{number:02d}_*")][:1]:
                metadata = read_metadata(load_graph(path), name=str(path))
                self.all.append(RunModel(path, self.asked["models"][product], metadata))

    def of(self, model: str) -> RunModel:
        """Find the model of a row.

        Args:
            model: the beginning of its SHA-256, as in the row.

        Raises:
            DataError: the run, or the shards that were merged to it, are not there with their copies.
        """
        for one in self.all:
            if model and one.sha256.startswith(model):
                return one
        raise DataError(
            f"the run's copy of the model {model} is not there, without which no map can be drawn: a merged run needs its"
            " shards where they were when it was merged"
        )

    def scorer(self, model: RunModel) -> OnnxScorer:
        """Open a model, once.

        Raises:
            DataError: the copy is not the file that scored the run.
            ModelError, ProviderError: as `OnnxScorer`.
        """
        with self._lock:
            if model.path not in self._scorers:
                scorer = OnnxScorer(model.path, device=self._device, num_threads=0)
                if scorer.sha256 != model.sha256:
                    raise DataError(f"{model.path} was changed since the run: its SHA-256 is another; use a true copy")
                self._scorers[model.path] = scorer
            return self._scorers[model.path]

    def kept_map(self, number: int) -> Path | None:
        """Find the map that the run kept of an image, where it kept maps: merged rows lie in turn in the shards."""
        if not self._folders:
            return None
        place = self._folders[number % len(self._folders)] / MAPS / f"{number // len(self._folders):08d}.png"
        return place if place.is_file() else None
