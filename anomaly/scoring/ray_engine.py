"""A scoring run as a Ray Data job: decoders on the processors of all nodes, models in actors, rows in order.

Each row of the data set is a window of the pipeline. Batches and scores therefore equal those of one machine. Only the calling
process writes: it takes the windows in their order and commits them. Ray repeats the windows of a lost node
elsewhere, so no row is lost or doubled. A run whose calling process was lost continues with `--resume`. Each node reads its
own images: all nodes must reach them by the same name, e.g. in a shared folder or on s3://.
"""

from __future__ import annotations

import json
import os
import pickle  # our own objects, between processes of one cluster
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import ray
from ray.data import ActorPoolStrategy, DataContext, TaskPoolStrategy

from anomaly.errors import AnomalyError, UsageError
from anomaly.inference.artifact import Metadata
from anomaly.inference.scorer import OnnxScorer
from anomaly.inference.session import Device
from anomaly.scoring.loading import NO_IMAGE, load_item
from anomaly.scoring.overlays import OverlaysOf, has_overlay
from anomaly.scoring.settings import Settings
from anomaly.scoring.sources import Item
from anomaly.scoring.windows import ScoredImage, score_window


@dataclass(frozen=True)
class RayEngine:
    """An engine on a Ray cluster.

    Args:
        address: address of the cluster; `auto` joins this machine's cluster, `local` starts one for the run.
        num_scorers: actors that hold every model, each on one GPU, or on one processor for the device `cpu`.
        num_decoders: simultaneous decoding tasks, each on one processor.
        overlays_of: verdicts that are drawn; only their images are sent back.

    Raises:
        UsageError: fewer than 1 scorer or decoder.
    """

    address: str
    num_scorers: int
    num_decoders: int
    overlays_of: OverlaysOf

    def __post_init__(self) -> None:
        if min(self.num_scorers, self.num_decoders) < 1:
            raise UsageError(f"{self.num_scorers} scorers and {self.num_decoders} decoders: give at least 1 of each")

    def __call__(
        self,
        items: Iterable[Item | None],
        *,
        scorers: Mapping[str, OnnxScorer],
        settings: Settings,
        seconds: dict[str, float],
    ) -> Iterator[ScoredImage]:
        """Score images like `score_images`; the cluster's memory holds the list, not the images.

        Raises:
            UsageError: an address without a cluster.
        """
        seconds |= {"decode": 0.0, "infer": 0.0}
        windows = [json.dumps([vars(item) for item in window]) for window in _windows(items, settings.window)]
        if not windows:
            return
        has_joined = self._join()
        try:
            yield from self._scored(windows, scorers=scorers, settings=settings, seconds=seconds)
        finally:
            if has_joined:
                ray.shutdown()

    def _join(self) -> bool:
        """Join the cluster; False if this process had joined before."""
        if ray.is_initialized():
            return False
        try:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no usage reports leave the factory
            address = None if self.address == "local" else self.address
            ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, ValueError) as error:
            raise UsageError(
                f"no Ray cluster at {self.address!r} ({error}): run `ray start --head`, or give --ray-address local"
            ) from error
        return True

    def _scored(
        self, windows: list[str], *, scorers: Mapping[str, OnnxScorer], settings: Settings, seconds: dict[str, float]
    ) -> Iterator[ScoredImage]:
        context = DataContext.get_current()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        on_gpu = next(iter(scorers.values())).device != "cpu"
        files = {product: (scorer.path.name, scorer.path.read_bytes()) for product, scorer in scorers.items()}
        models = {product: scorer.metadata for product, scorer in scorers.items()}
        rows = ray.data.from_items(
            [{"number": number, "items": window} for number, window in enumerate(windows)],
            override_num_blocks=len(windows),
        )
        decoded = rows.map(
            _decode,
            fn_kwargs={"models": models, "settings": settings},
            compute=TaskPoolStrategy(size=self.num_decoders),
            num_cpus=1,
        )
        scored = decoded.map(
            _Scoring,
            fn_constructor_kwargs={
                "files": ray.put(files),
                "hashes": {product: scorer.sha256 for product, scorer in scorers.items()},
                "device": {product: scorer.device for product, scorer in scorers.items()},
                "settings": settings,
                "overlays_of": self.overlays_of,
            },
            compute=ActorPoolStrategy(size=self.num_scorers),
            num_gpus=1 if on_gpu else 0,
            num_cpus=0.5 if on_gpu else 1,
        )
        for expected, row in enumerate(scored.iter_rows()):
            if row["number"] != expected:
                raise AnomalyError(
                    f"the cluster returned window {row['number']} in place of {expected}: continue with --resume"
                )
            for name in ("decode", "infer"):
                seconds[name] += row[name]
            yield from pickle.loads(row["scored"])


def _windows(items: Iterable[Item | None], length: int) -> Iterator[list[Item]]:
    remaining = (item for item in items if item is not None)
    while window := list(islice(remaining, length)):
        yield window


def _decode(row: dict[str, Any], *, models: Mapping[str, Metadata], settings: Settings) -> dict[str, Any]:
    """Read and decode the images of a window."""
    cv2.setNumThreads(0)
    begin = time.perf_counter()
    items = [Item(**(values | {"place": tuple(values["place"])})) for values in json.loads(row["items"])]
    loaded = [load_item(item, models=models, settings=settings) for item in items]
    return {
        "number": row["number"],
        "loaded": pickle.dumps(loaded, protocol=5),
        "decode": time.perf_counter() - begin,
    }


class _Scoring:
    """An actor that holds the models of a run."""

    def __init__(
        self,
        *,
        files: ray.ObjectRef[dict[str, tuple[str, bytes]]],
        hashes: Mapping[str, str],
        device: Mapping[str, Device],
        settings: Settings,
        overlays_of: OverlaysOf,
    ) -> None:
        self.settings, self.overlays_of = settings, overlays_of
        self.scorers = {}
        with tempfile.TemporaryDirectory() as folder:
            for number, (product, (name, data)) in enumerate(ray.get(files).items()):
                path = Path(folder) / f"{number:02d}_{name}"
                path.write_bytes(data)
                self.scorers[product] = OnnxScorer(path, device=device[product], num_threads=1)
                if self.scorers[product].sha256 != hashes[product]:
                    raise UsageError(f"{name} changed while the run began: start it again in a new folder")

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        seconds = {"infer": 0.0}
        scored = [
            one if has_overlay(one, self.overlays_of) else replace(one, image=NO_IMAGE)
            for one in score_window(
                pickle.loads(row["loaded"]), scorers=self.scorers, settings=self.settings, seconds=seconds
            )
        ]
        return {"number": row["number"], "scored": pickle.dumps(scored, protocol=5), "decode": row["decode"], **seconds}
