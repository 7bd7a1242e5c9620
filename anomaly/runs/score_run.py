"""Score a source into a run: every image exactly once, in bounded memory, across any interruption."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from anomaly.conformal.drift import DriftMonitor, read_records, to_record
from anomaly.errors import UsageError
from anomaly.imaging.image_file import write_png
from anomaly.imaging.map_png import MAP_STEP, MAP_ZERO, map_levels
from anomaly.inference.scorer import OnnxScorer
from anomaly.runs.evidence_files import open_finders, write_evidence
from anomaly.runs.run_files import EVIDENCE, MAPS, OVERLAYS, PARTS, RECORDS, read_inputs
from anomaly.runs.run_writer import RunWriter
from anomaly.runs.sinks import Format, read_rows
from anomaly.scoring.folder_watch import stop_on_signals, watch_folder
from anomaly.scoring.overlays import OverlaysOf, has_overlay, overlay_name, write_overlay
from anomaly.scoring.part_verdicts import write_parts
from anomaly.scoring.pipeline import Engine
from anomaly.scoring.settings import DEFAULT_PRODUCT, Settings
from anomaly.scoring.sources import Item, Source
from anomaly.scoring.tables import ScoreSummary
from anomaly.scoring.windows import ScoredImage
from anomaly.system.files import as_path, sha256_of
from anomaly.system.progress import progress_bar

COMMIT_IMAGES = 256
"""Approximate number of images between two commits, rounded to whole windows"""
DRIFT_ALPHA = 0.01
"""Probability of a false drift alarm over a whole run"""


@dataclass(frozen=True)
class RunOptions:
    """Contents of a run.

    Args:
        format: row format.
        overlays_of: verdicts whose overlays are drawn.
        maps: whether every anomaly map is written.
        evidence: whether the nearest good patches of rejected images are written.
        shard: shard I/N of the images: every N-th image from the I-th on; None for all images.
        by_product: whether the product of an image chooses its model.
        watch: whether the source is a folder that is watched for new images.

    Raises:
        UsageError: an invalid shard.
    """

    format: Format = "csv"
    overlays_of: OverlaysOf = "defect"
    maps: bool = False
    evidence: bool = False
    shard: str | None = None
    by_product: bool = False
    watch: bool = False

    def __post_init__(self) -> None:
        if self.shard is None:
            return
        number, _, num = self.shard.partition("/")
        if not (number.isdigit() and num.isdigit() and 1 <= int(number) <= int(num)):
            raise UsageError(f"--shard {self.shard!r}: give I/N, with I from 1 to N, e.g. 1/4")

    def select(self, source: Source) -> Source:
        """Reduce a source to the items of the shard."""
        if self.shard is None:
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
    folder: str | Path,
    options: RunOptions,
    resume: bool,
    engine: Engine,
) -> ScoreSummary:
    """Score a source into a run, or resume an unfinished run.

    Args:
        source: images to score; a resumed run uses its own list instead.
        name: text of the source, for the ledger.
        models: product -> its model file, which is copied into the run.
        scorers: product -> its opened model.
        settings: settings of the run.
        folder: folder of the run.
        options: contents of the run.
        resume: whether an unfinished run is continued.
        engine: function that reads, decodes and scores, such as `score_images`.

    Raises:
        UsageError: a folder with other files, or an unfinished run with other options.
        OutputError: the folder cannot be written; the run can be resumed.
    """
    folder = as_path(folder, name="folder")
    finders = open_finders(scorers) if options.evidence else {}
    with ExitStack() as stack:
        recorded = _recorded_options(name, scorers, settings, options)
        run = stack.enter_context(RunWriter(folder, options=recorded, resume=resume))
        report = stack.enter_context(progress_bar("score"))
        for product, copy in run.keep_models(models).items():
            if sha256_of(copy) != scorers[product].sha256:
                raise UsageError(f"{models[product]} changed while the run began: start it again in a new folder")
        if run.is_new and not options.watch:
            run.keep_inputs(options.select(source))
        elif run.is_new:
            run.begin_watch()
        total = int(run.listed()["num"])
        run.open_rows(options.format)
        counts = _count_rows(folder, run.done)
        monitors = _start_monitors(run, scorers, threshold=settings.threshold, by_product=options.by_product)
        _make_folders(folder, options)
        seconds: dict[str, float] = {}
        arriving = stack.enter_context(_arriving(run, Path(name))) if options.watch else ()
        items = (
            replace(item, product=DEFAULT_PRODUCT) if item and not options.by_product else item
            for item in chain(run.remaining(), arriving)
        )
        commit_images = 1 if options.watch else max(1, COMMIT_IMAGES // settings.window) * settings.window
        num_waiting = 0
        scoring = engine(items, scorers=scorers, settings=settings, seconds=seconds)
        for number, scored in enumerate(scoring, start=run.done):
            record = to_record(scored.row.score, scored.statistics)
            pictures = _write_pictures(scored, number, scorers, folder, options)
            if finders:
                finder = finders[scored.item.product]
                pictures += write_evidence(scored, number, finder=finder, folder=folder)
            run.add(scored.row, record=record, pictures=pictures)
            for product, monitor in monitors.items():
                is_own = product == scored.item.product
                alarms = monitor.update(*((scored.row.score, scored.statistics) if is_own else (None, None)))
                if alarms:
                    run.note("drift", image=number, product=product, streams=alarms, cause=monitor.summary()["cause"])
            counts[scored.row.verdict or scored.row.status] += 1
            num_waiting += 1
            if num_waiting == commit_images:
                run.commit(seconds=seconds)
                num_waiting = 0
            report(number + 1, max(total, number + 1))
        if num_waiting:
            run.commit(seconds=seconds)
        summary = summarise(counts)
        if run.listed()["has_parts"]:
            alpha_of = {
                scorer.sha256[:16]: scorer.calibration.expected_rate_above(settings.threshold)
                for scorer in scorers.values()
            }
            summary["num_parts"] = write_parts(read_rows(folder), folder / PARTS, alpha_of=alpha_of)
        summary["drift"] = {product or "all": monitor.summary() for product, monitor in monitors.items()}
        run.finish(summary)
    return ScoreSummary(summary["num_images"], counts["defect"], summary["num_errors"], seconds, summary["drift"])


def _recorded_options(
    name: str, scorers: Mapping[str, OnnxScorer], settings: Settings, options: RunOptions
) -> dict[str, Any]:
    """All options that determine the rows, as JSON values for the ledger."""
    return {
        "source": name,
        "models": {product: scorer.sha256 for product, scorer in scorers.items()},
        "device": {product: scorer.device for product, scorer in scorers.items()},
        "threshold": settings.threshold,
        "review_threshold": settings.review_threshold,
        "batch_size": settings.batch_size,
        "max_pixels": settings.max_pixels,
        "frame": settings.frame,
        "format": options.format,
        "overlays_of": options.overlays_of,
        "maps": options.maps,
        "shard": options.shard or "",
        "by_product": options.by_product,
        "watch": options.watch,
        **({"evidence": True} if options.evidence else {}),
    }


@contextmanager
def _arriving(run: RunWriter, folder: Path) -> Iterator[Iterator[Item | None]]:
    """Yield the new images of a watched folder, each added to the run's list first; Ctrl-C ends the iteration."""
    seen = {item.path for item in read_inputs(run.folder)}

    def listed(stop: threading.Event) -> Iterator[Item | None]:
        yield None  # images of the list are scored first
        for item in watch_folder(folder, seen=seen, stop=stop):
            if item is not None:
                run.list_input(item)
            yield item

    with stop_on_signals() as stop:
        yield listed(stop)


def _start_monitors(
    run: RunWriter, scorers: Mapping[str, OnnxScorer], *, threshold: float, by_product: bool
) -> dict[str, DriftMonitor]:
    """Start one drift monitor per product and replay the committed images of the run."""
    monitors = {
        product: DriftMonitor(
            scorer.calibration,
            scorer.metadata.image_stats,
            threshold=threshold,
            alpha=DRIFT_ALPHA,
            seed=0,
        )
        for product, scorer in scorers.items()
    }
    records = read_records(run.folder / RECORDS, num=run.done)
    if not by_product:
        monitors[DEFAULT_PRODUCT].replay(records)
        return monitors
    products = [item.product for item in islice(read_inputs(run.folder), run.done)]
    for product, monitor in monitors.items():
        is_own = np.array([name == product for name in products], dtype=bool)
        monitor.replay(np.where(is_own[:, None], records, np.float32(np.nan)))
    return monitors


def summarise(counts: Mapping[str, int]) -> dict[str, Any]:
    """Build the summary of a run.

    Args:
        counts: verdict or error code -> number of rows.
    """
    verdicts = {name: counts.get(name, 0) for name in ("good", "review", "defect")}
    errors = {name: count for name, count in sorted(counts.items()) if name not in verdicts}
    return {
        "num_images": sum(counts.values()),
        "verdicts": verdicts,
        "num_errors": sum(errors.values()),
        "errors": errors,
    }


def _count_rows(folder: Path, num: int) -> Counter[str]:
    """Count the verdicts and error codes of the first rows."""
    return Counter(row["verdict"] or row["status"] for row in islice(read_rows(folder), num))


def _make_folders(folder: Path, options: RunOptions) -> None:
    if options.maps:
        (folder / MAPS).mkdir(exist_ok=True)
    if options.evidence:
        (folder / EVIDENCE).mkdir(exist_ok=True)
    if options.overlays_of != "none":
        (folder / OVERLAYS).mkdir(exist_ok=True)


def _write_pictures(
    scored: ScoredImage, number: int, scorers: Mapping[str, OnnxScorer], folder: Path, options: RunOptions
) -> list[Path]:
    """Write the map and the overlay of one image; return their paths."""
    pictures: list[Path] = []
    if scored.row.status != "ok":
        return pictures
    if options.maps:
        pictures.append(folder / MAPS / f"{number:08d}.png")
        write_png(
            pictures[-1],
            map_levels(scored.anomaly_map),
            text={"Comment": f"anomaly map: stored value * {MAP_STEP} - {MAP_ZERO}"},
        )
    if has_overlay(scored, options.overlays_of):
        pictures.append(folder / OVERLAYS / overlay_name(number, scored.item))
        write_overlay(scored, pictures[-1], resize=scorers[scored.item.product].metadata.resize)
    return pictures
