"""Score images into tables as they come, with overlays beside them where asked for."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from anomaly.errors import OutputError
from anomaly.imaging.image_file import write_png
from anomaly.imaging.overlay import Resize, enlarge_map, overlay
from anomaly.inference.scorer import OnnxScorer
from anomaly.scoring.pipeline import ONLY, Scored, Settings, score_images
from anomaly.scoring.rows import Tables
from anomaly.scoring.sources import Item, Source
from anomaly.system.progress import progress_bar

OverlaysOf = Literal["defect", "all", "none"]


@dataclass(frozen=True)
class Summary:
    """What a run scored."""

    num_images: int
    num_defect: int
    num_errors: int
    seconds: dict[str, float]


def score_to_tables(
    source: Source,
    *,
    scorers: Mapping[str, OnnxScorer],
    by_product: bool,
    settings: Settings,
    out: list[Path],
    overlays: str,
    overlays_of: OverlaysOf,
) -> Summary:
    """Score images into tables, with overlays where asked for; an interruption leaves the rows written so far.

    Args:
        source: the images.
        scorers: product -> its model.
        by_product: whether the images' products choose the model.
        settings: of the run.
        out: the tables.
        overlays: folder for pictures, empty for none.
        overlays_of: whose pictures are drawn.
    """
    seconds: dict[str, float] = {}
    counts: Counter[str] = Counter()
    if overlays:
        try:
            Path(overlays).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"overlays cannot be written to {overlays}: {error.strerror}; choose another place"
            ) from error
    items = (item if by_product else replace(item, product=ONLY) for item in source.items)
    with Tables(out, extra=source.extra) as tables, progress_bar("score") as report, ThreadPoolExecutor(1) as drawer:
        pending = []
        for done, scored in enumerate(score_images(items, scorers=scorers, settings=settings, seconds=seconds)):
            tables.write([scored.row])
            counts[scored.row.verdict or "error"] += 1
            if overlays and is_drawn(scored, overlays_of):
                place = Path(overlays) / overlay_name(done, scored.item)
                resize = scorers[scored.item.product].metadata.resize
                pending.append(drawer.submit(draw_overlay, scored, place, resize=resize))
                if len(pending) > settings.batch_size:
                    pending.pop(0).result()
            report(done + 1, done + 1)
        for drawing in pending:
            drawing.result()
    rounded = {k: round(v, 3) for k, v in seconds.items()}
    return Summary(sum(counts.values()), counts["defect"], counts["error"], rounded)


def is_drawn(scored: Scored, overlays_of: OverlaysOf) -> bool:
    """Whether an image gets an overlay."""
    return scored.row.status == "ok" and overlays_of in ("all", scored.row.verdict)


def overlay_name(number: int, item: Item) -> str:
    """Name of the overlay of the image at a place in the input; what some system takes in no name is replaced."""
    stem = re.sub(r'[\x00-\x1f"*:<>?|\\]', "_", Path(item.path).stem[:60])
    return f"{number:06d}_{stem}.png"


def draw_overlay(scored: Scored, path: Path, *, resize: Resize) -> None:
    """Write one picture of an image with its map laid over, on the scale fixed by the threshold."""
    height, width = scored.image.shape[:2]
    enlarged = enlarge_map(scored.anomaly_map, height=height, width=width, resize=resize)
    write_png(path, overlay(scored.image, enlarged, threshold=scored.row.threshold))
