"""Score images into result tables, with overlays in a folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from anomaly.errors import OutputError, UsageError
from anomaly.inference.scorer import OnnxScorer
from anomaly.scoring.overlays import OverlaysOf, has_overlay, overlay_name, write_overlay
from anomaly.scoring.pipeline import score_images
from anomaly.scoring.settings import DEFAULT_PRODUCT, Settings
from anomaly.scoring.sources import Source
from anomaly.scoring.table_files import Tables
from anomaly.system.files import as_path
from anomaly.system.progress import progress_bar


@dataclass(frozen=True)
class ScoreSummary:
    """Counts and durations of a scoring run."""

    num_images: int
    num_defect: int
    num_errors: int
    seconds: dict[str, float]
    """stage -> seconds"""
    drift: dict[str, dict[str, Any]] = field(default_factory=dict)
    """product (`all` for a single model) -> summary of its drift monitor; empty for tables"""


def score_to_tables(
    source: Source,
    *,
    scorers: Mapping[str, OnnxScorer],
    settings: Settings,
    out: Sequence[str | Path],
    by_product: bool = False,
    overlays: str | Path | None = None,
    overlays_of: OverlaysOf = "defect",
) -> ScoreSummary:
    """Score images into tables; an interruption leaves the rows written so far.

    Args:
        source: images to score.
        scorers: product -> its model.
        settings: settings of the run.
        out: table files; .csv, .jsonl or .parquet chooses the format.
        by_product: whether the product of an image chooses its model.
        overlays: folder for overlays; None without overlays.
        overlays_of: verdicts that are drawn.

    Raises:
        UsageError: a table with an unknown ending, or overlays with a threshold that is not above 0.
        OutputError: a table or an overlay cannot be written.
    """
    folder = None if overlays is None else as_path(overlays, name="overlays")
    if folder:
        if not settings.threshold > 0:
            raise UsageError(
                f"threshold {settings.threshold:g}: overlays need a threshold above 0; leave --overlays out"
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"overlays cannot be written to {folder}: {error.strerror}; choose another place"
            ) from error
    seconds: dict[str, float] = {}
    counts: Counter[str] = Counter()
    items = (item if by_product else replace(item, product=DEFAULT_PRODUCT) for item in source.items)
    with (
        Tables([Path(path) for path in out], extra=source.extra) as tables,
        progress_bar("score") as report,
        ThreadPoolExecutor(1) as drawer,
    ):
        pending = []
        for number, scored in enumerate(score_images(items, scorers=scorers, settings=settings, seconds=seconds)):
            tables.write([scored.row])
            counts[scored.row.verdict or "error"] += 1
            if folder and has_overlay(scored, overlays_of):
                path = folder / overlay_name(number, scored.item)
                resize = scorers[scored.item.product].metadata.resize
                pending.append(drawer.submit(write_overlay, scored, path, resize=resize))
                if len(pending) > settings.batch_size:
                    pending.pop(0).result()
            report(number + 1, number + 1)
        for drawing in pending:
            drawing.result()
    rounded = {stage: round(value, 3) for stage, value in seconds.items()}
    return ScoreSummary(counts.total(), counts["defect"], counts["error"], rounded)
