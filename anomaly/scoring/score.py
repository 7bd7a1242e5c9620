"""The verb `score`: a folder, a glob, a list or standard input of images in, a table of verdicts out."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from anomaly.calibration import Promise, limit_for
from anomaly.data.folders import list_images
from anomaly.errors import OutputError, UsageError
from anomaly.image import write_png
from anomaly.image_header import Frame
from anomaly.overlay import enlarge_map, overlay
from anomaly.progress import progress_bar
from anomaly.run_card import RunCard
from anomaly.scoring.pipeline import Scored, Settings, score_images
from anomaly.scoring.processors import num_cpus
from anomaly.scoring.rows import Tables
from anomaly.scoring.scorer import Device, OnnxScorer


@dataclass(frozen=True)
class Summary:
    """What a run scored."""

    num_images: int
    num_defect: int
    num_errors: int
    seconds: dict[str, float]


def score(
    model: Path,
    images: str,
    *,
    out: Path,
    limit: float | Literal["model"] = "model",
    alpha: float | Literal["model"] = "model",
    promise: Promise = "expected",
    device: Device = "auto",
    batch_size: int = 8,
    overlays: str = "",
    overlays_of: Literal["defect", "all"] = "defect",
    max_pixels: int = 100_000_000,
    frame: Frame = "only",
    fail_on_defect: bool = False,
) -> int:
    """Score images through an exported model and write one row for each, bad files included.

    Args:
        model: the .onnx file.
        images: a folder, a glob, a .txt list of paths, or - for paths on standard input.
        out: result file; .csv, .jsonl or .parquet chooses the format.
        limit: of the verdict in calibrated units; by default the model's own, 1.
        alpha: share of good parts that may be rejected: moves the limit along the model's held-out scores.
        promise: what alpha bounds, the expected rate or its 95 % upper bound.
        device: auto, cpu, cuda or tensorrt.
        batch_size: images per inference.
        overlays: folder for pictures with the map laid over; none by default.
        overlays_of: draw those with the verdict defect, or all.
        max_pixels: largest width × height that is decoded.
        frame: of files with several frames or pages: `only` makes them error rows, `first` takes the first.
        fail_on_defect: exit with 4 where a verdict is defect.

    Returns:
        The exit code: 0 all scored, 3 some rows are errors, 4 as `fail_on_defect` says.

    Raises:
        UsageError: both a limit and an alpha, a limit that is no number or that overlays cannot be drawn to, or a batch
            without images.
        OutputError: results that cannot be written.
    """
    card = RunCard("score", config=dict(locals()))
    paths = list_images(images)
    scorer = OnnxScorer(model, device=device, num_threads=0)
    print(f"provider {scorer.provider}; model {scorer.sha256[:16]}; {len(paths)} images", file=sys.stderr)
    chosen = choose_limit(scorer, limit=limit, alpha=alpha, promise=promise)
    if overlays and not chosen > 0:
        raise UsageError(f"limit {chosen:g}: overlays are drawn to a limit above 0; leave --overlays out")
    settings = Settings(limit=chosen, batch_size=batch_size, max_pixels=max_pixels, num_threads=num_cpus(), frame=frame)
    summary = score_to_tables(
        paths, scorer=scorer, settings=settings, out=[out], overlays=overlays, overlays_of=overlays_of
    )
    card.facts["result"] = {
        "provider": scorer.provider,
        "model": scorer.sha256,
        "limit": chosen,
        "num_images": summary.num_images,
        "num_defect": summary.num_defect,
        "num_errors": summary.num_errors,
    }
    card.facts["seconds"] |= summary.seconds
    card.write(out.with_name(out.name + ".run.json"))
    print(f"{summary.num_images} images: {summary.num_defect} defects, {summary.num_errors} errors", file=sys.stderr)
    if summary.num_errors:
        return 3
    return 4 if fail_on_defect and summary.num_defect else 0


def choose_limit(
    scorer: OnnxScorer, *, limit: float | Literal["model"], alpha: float | Literal["model"], promise: Promise
) -> float:
    """Resolve the limit of a run: the model's, one given, or the one an alpha sets on the model's held-out scores.

    Raises:
        UsageError: both a limit and an alpha.
        CalibrationError: an alpha that the model's held-out scores cannot support.
    """
    if alpha == "model":
        return 1.0 if limit == "model" else limit
    if limit != "model":
        raise UsageError(f"--limit {limit} and --alpha {alpha} both set the limit: give one of them")
    return limit_for(np.asarray(scorer.metadata.calibration.scores), alpha=alpha, promise=promise)


def score_to_tables(
    paths: list[str],
    *,
    scorer: OnnxScorer,
    settings: Settings,
    out: list[Path],
    overlays: str,
    overlays_of: Literal["defect", "all"],
) -> Summary:
    """Score images into tables, with overlays where asked for; an interruption leaves the rows written so far."""
    seconds: dict[str, float] = {}
    num_defect = num_errors = 0
    if overlays:
        try:
            Path(overlays).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"overlays cannot be written to {overlays}: {error.strerror}; choose another place"
            ) from error
    with Tables(out) as tables, progress_bar("score") as report, ThreadPoolExecutor(1) as drawer:
        pending = []
        for done, scored in enumerate(score_images(paths, scorer=scorer, settings=settings, seconds=seconds)):
            tables.write([scored.row])
            num_defect += scored.row.verdict == "defect"
            num_errors += scored.row.status != "ok"
            if overlays and scored.row.status == "ok" and overlays_of in ("all", scored.row.verdict):
                name = f"{done:06d}_{Path(scored.row.path).stem[:60]}.png"
                place = Path(overlays) / name
                pending.append(drawer.submit(draw_overlay, scored, place, resize=scorer.metadata.resize))
                if len(pending) > settings.batch_size:
                    pending.pop(0).result()
            report(done + 1, len(paths))
        for drawing in pending:
            drawing.result()
    return Summary(len(paths), num_defect, num_errors, {k: round(v, 3) for k, v in seconds.items()})


def draw_overlay(scored: Scored, path: Path, *, resize: Literal["squash", "letterbox"]) -> None:
    """Write one picture of an image with its map laid over, on the scale fixed by the limit."""
    height, width = scored.image.shape[:2]
    enlarged = enlarge_map(scored.anomaly_map, height=height, width=width, resize=resize)
    write_png(path, overlay(scored.image, enlarged, limit=scored.row.limit))
