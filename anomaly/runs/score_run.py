"""Score a source into a run directory: exactly once, in bounded memory, whatever interrupts it."""

from __future__ import annotations

import math
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from anomaly.conformal.drift import DriftWatch, read_records, to_record
from anomaly.errors import UsageError
from anomaly.imaging.image_file import write_png
from anomaly.imaging.map_png import MAP_STEP, MAP_ZERO, map_levels
from anomaly.inference.scorer import OnnxScorer
from anomaly.runs.run_directory import MAPS, OVERLAYS, RECORDS, RunDirectory, read_inputs
from anomaly.runs.sinks import Format, read_rows
from anomaly.scoring.folder_watch import stopped_by_signals, watch_folder
from anomaly.scoring.part_verdicts import write_parts
from anomaly.scoring.pipeline import ONLY, Engine, Scored, Settings
from anomaly.scoring.sources import Item, Source
from anomaly.scoring.tables import OverlaysOf, Summary, draw_overlay, is_drawn, overlay_name
from anomaly.system.files import sha256_of
from anomaly.system.progress import progress_bar

COMMIT_IMAGES = 256
"""About how many images lie between two commits: whole windows"""
PARTS = "parts.csv"
DRIFT_ALPHA = 0.01
"""Chance of a drift alarm over a whole run of which nothing drifts"""


@dataclass(frozen=True)
class Wanted:
    """What a run directory is to hold.

    Args:
        format: of the rows.
        overlays_of: whose pictures are drawn.
        maps: whether every map is written.
        shard: i/n for every n-th image from the i-th on, empty for all.
        by_product: whether the images' products choose the model.
        watch: whether the source is a folder in which images arrive, until the run is stopped.

    Raises:
        UsageError: a shard that is none.
    """

    format: Format
    overlays_of: OverlaysOf
    maps: bool
    shard: str
    by_product: bool
    watch: bool

    def __post_init__(self) -> None:
        number, _, num = self.shard.partition("/")
        whole = number.isdigit() and num.isdigit()
        if self.shard and not (whole and 1 <= int(number) <= int(num)):
            raise UsageError(f"--shard {self.shard!r}: give i/n, with i from 1 to n, e.g. 1/4")

    def mine(self, source: Source) -> Source:
        """Every n-th item of a source, from the i-th on; all of them without a shard."""
        if not self.shard:
            return source
        number, num = map(int, self.shard.split("/"))
        return replace(source, items=islice(source.items, number - 1, None, num))


def score_run(
    source: Source,
    *,
    name: str,
    models: Mapping[str, Path],
    scorers: Mapping[str, OnnxScorer],
    settings: Settings,
    folder: Path,
    wanted: Wanted,
    resume: bool,
    engine: Engine,
) -> Summary:
    """Score a source into a run directory, or go on where a run stopped.

    Args:
        source: the images; a run that goes on takes the list that it wrote down when it began.
        name: of the source, as it was asked for.
        models: product -> its model file, which is copied into the run.
        scorers: product -> its model.
        settings: of the run.
        folder: of the run.
        wanted: what it is to hold.
        resume: go on with an unfinished run.
        engine: what reads, decodes and infers.

    Raises:
        UsageError: a folder that is taken, or an unfinished run begun with other options.
        OutputError: the folder cannot be written; the run can go on.
    """
    asked = {
        "source": name,
        "models": {product: scorer.sha256 for product, scorer in scorers.items()},
        "device": {product: scorer.device for product, scorer in scorers.items()},
        "threshold": settings.threshold,
        "review_threshold": None if math.isinf(settings.review_threshold) else settings.review_threshold,
        "batch_size": settings.batch_size,
        "max_pixels": settings.max_pixels,
        "frame": settings.frame,
        "format": wanted.format,
        "overlays_of": wanted.overlays_of,
        "maps": wanted.maps,
        "shard": wanted.shard,
        "by_product": wanted.by_product,
        "watch": wanted.watch,
    }
    with ExitStack() as stack:
        run = stack.enter_context(RunDirectory(folder, asked=asked, resume=resume))
        report = stack.enter_context(progress_bar("score"))
        for product, copy in run.keep_models(models).items():
            if sha256_of(copy) != scorers[product].sha256:
                raise UsageError(f"{models[product]} was replaced while the run began: start it again in a new folder")
        if run.is_new and not wanted.watch:
            run.keep_inputs(wanted.mine(source))
        elif run.is_new:
            run.begin_watch()
        total = int(run.listed()["num"])
        run.open_rows(wanted.format)
        counts = _counted(folder, run.done)
        watches = _watches(run, scorers, threshold=settings.threshold, by_product=wanted.by_product)
        _make_folders(run, wanted)
        seconds: dict[str, float] = {}
        arriving = stack.enter_context(_arriving(run, Path(name))) if wanted.watch else ()
        items = (
            replace(item, product=ONLY) if item and not wanted.by_product else item
            for item in chain(run.remaining(), arriving)
        )
        between = 1 if wanted.watch else max(1, COMMIT_IMAGES // settings.window) * settings.window
        waiting = 0
        scoring = engine(items, scorers=scorers, settings=settings, seconds=seconds)
        for number, scored in enumerate(scoring, start=run.done):
            record = to_record(scored.row.score, scored.statistics)
            run.add(scored.row, record=record, pictures=_draw(scored, number, scorers, folder, wanted))
            for product, watch in watches.items():
                of_it = product == scored.item.product
                alarms = watch.update(*((scored.row.score, scored.statistics) if of_it else (None, None)))
                if alarms:
                    run.note("drift", image=number, product=product, streams=alarms, cause=watch.summary()["cause"])
            counts[scored.row.verdict or scored.row.status] += 1
            waiting += 1
            if waiting == between:
                run.commit(seconds=seconds)
                waiting = 0
            report(number + 1, max(total, number + 1))
        if waiting:
            run.commit(seconds=seconds)
        summary = summarise(counts)
        if run.listed()["has_parts"]:
            alpha_of = {scorer.sha256[:16]: alpha_at(scorer, settings.threshold) for scorer in scorers.values()}
            summary["num_parts"] = write_parts(read_rows(folder), folder / PARTS, alpha_of=alpha_of)
        summary["drift"] = {product or "all": watch.summary() for product, watch in watches.items()}
        _tell_drift(summary["drift"])
        run.finish(summary)
    return Summary(summary["num_images"], counts["defect"], summary["num_errors"], seconds)


@contextmanager
def _arriving(run: RunDirectory, folder: Path) -> Iterator[Iterator[Item | None]]:
    """Give the images that arrive in a folder and are not listed yet, listing each; Ctrl-C ends them."""
    seen = {item.path for item in read_inputs(run.folder)}

    def listed(stop: threading.Event) -> Iterator[Item | None]:
        yield None  # what was listed before is scored first
        for item in watch_folder(folder, seen=seen, stop=stop):
            if item is not None:
                run.list_input(item)
            yield item

    with stopped_by_signals() as stop:
        yield listed(stop)


def _watches(
    run: RunDirectory, scorers: Mapping[str, OnnxScorer], *, threshold: float, by_product: bool
) -> dict[str, DriftWatch]:
    """One drift watch for each model, brought to where the run stopped."""
    watches = {
        product: DriftWatch(
            scorer.metadata.calibration.scores,
            scorer.metadata.image_stats,
            threshold=threshold,
            alpha=DRIFT_ALPHA,
            seed=0,
        )
        for product, scorer in scorers.items()
    }
    records = read_records(run.folder / RECORDS, num=run.done)
    if not by_product:
        watches[ONLY].replay(records)
        return watches
    products = [item.product for item in islice(read_inputs(run.folder), run.done)]
    for product, watch in watches.items():
        mine = np.array([name == product for name in products], dtype=bool)
        watch.replay(np.where(mine[:, None], records, np.float32(np.nan)))
    return watches


def _tell_drift(drift: Mapping[str, Mapping[str, Any]]) -> None:
    for product, told in drift.items():
        if told["alarmed"]:
            which = "" if product == "all" else f" of {product}"
            print(
                f"drift{which}: {told['cause']} (from image {told['first_alarm']} on; see summary.json)",
                file=sys.stderr,
            )


def alpha_at(scorer: OnnxScorer, threshold: float) -> float:
    """Expected share of good images above a threshold, by the model's calibration scores: (1 + #{s_i > threshold}) / (n + 1)."""
    return (1 + int((scorer.calibration_images > threshold).sum())) / (len(scorer.calibration_images) + 1)


def summarise(counts: Mapping[str, int]) -> dict[str, Any]:
    """Give the summary of a run from how often each verdict and each error code came."""
    verdicts = {name: counts.get(name, 0) for name in ("good", "review", "defect")}
    errors = {name: count for name, count in sorted(counts.items()) if name not in verdicts}
    return {
        "num_images": sum(counts.values()),
        "verdicts": verdicts,
        "num_errors": sum(errors.values()),
        "errors": errors,
    }


def _counted(folder: Path, done: int) -> Counter[str]:
    """How often each verdict and error code stands in the rows that are safe."""
    return Counter(row["verdict"] or row["status"] for row in islice(read_rows(folder), done))


def _make_folders(run: RunDirectory, wanted: Wanted) -> None:
    if wanted.maps:
        (run.folder / MAPS).mkdir(exist_ok=True)
    if wanted.overlays_of != "none":
        (run.folder / OVERLAYS).mkdir(exist_ok=True)


def _draw(scored: Scored, number: int, scorers: Mapping[str, OnnxScorer], folder: Path, wanted: Wanted) -> list[Path]:
    """Write the pictures of one image; gives where they lie."""
    pictures: list[Path] = []
    if scored.row.status != "ok":
        return pictures
    if wanted.maps:
        pictures.append(folder / MAPS / f"{number:08d}.png")
        write_png(
            pictures[-1],
            map_levels(scored.anomaly_map),
            text={"Comment": f"anomaly map: stored value * {MAP_STEP} - {MAP_ZERO}"},
        )
    if is_drawn(scored, wanted.overlays_of):
        pictures.append(folder / OVERLAYS / overlay_name(number, scored.item))
        draw_overlay(scored, pictures[-1], resize=scorers[scored.item.product].metadata.resize)
    return pictures
