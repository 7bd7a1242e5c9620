"""The verb `score`: verdicts for images, in one table or in a run that survives a crash."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from anomaly.conformal.guarantee import GuaranteeKind
from anomaly.errors import UsageError
from anomaly.imaging.header import Frame
from anomaly.inference.scorer import OnnxScorer
from anomaly.inference.session import Device
from anomaly.runs.score_run import RunOptions, score_run
from anomaly.runs.sinks import Format
from anomaly.scoring.overlays import OverlaysOf
from anomaly.scoring.pipeline import Engine, score_images
from anomaly.scoring.product_models import open_models, read_product_models
from anomaly.scoring.run_threshold import choose_threshold
from anomaly.scoring.settings import DEFAULT_PRODUCT, Settings
from anomaly.scoring.sources import open_source, source_of
from anomaly.scoring.tables import ScoreSummary, score_to_tables
from anomaly.system.processors import num_cpus
from anomaly.system.run_card import RunCard


def score(
    model: Path,
    images: str,
    *,
    out: Path | None = None,
    run: Path | None = None,
    format: Format = "csv",
    resume: bool = False,
    models: Path | None = None,
    threshold: float | None = None,
    alpha: float | None = None,
    guarantee: GuaranteeKind = "expected",
    review_threshold: float | None = None,
    device: Device = "auto",
    batch_size: int = 8,
    overlays: Path | None = None,
    overlays_of: OverlaysOf = "defect",
    maps: bool = False,
    evidence: bool = False,
    shard: str | None = None,
    watch: bool = False,
    engine: Literal["here", "ray"] = "here",
    ray_address: str = "local",
    ray_scorers: int = 1,
    ray_decoders: int = 2,
    max_pixels: int = 100_000_000,
    frame: Frame = "only",
    fail_on_defect: bool = False,
) -> int:
    """Score images through an exported model and write one row per image; an invalid file becomes an error row.

    Exit code 0: all images scored; 3: some rows are errors; 4: a defect, with --fail-on-defect.

    Args:
        model: .onnx file.
        images: folder, glob, .tar archives, .txt list of paths, or - for paths on standard input; a .csv or .parquet table
            with the column `path`; or a URI of pyarrow or fsspec, e.g. s3://bucket/folder.
        out: result table; .csv, .jsonl or .parquet chooses the format. Give either --out or --run.
        run: folder of a run that can be interrupted and resumed, and ends with a manifest. Give either --out or --run.
        format: row format of a run.
        resume: continue the unfinished run in --run.
        models: YAML or JSON file of product -> .onnx file, for an image table with the column `product`.
        threshold: calibrated score above which the verdict is `defect`; the model's own threshold, 1, by default.
        alpha: share of good parts that may be rejected; it sets the threshold on the model's calibration scores.
        guarantee: kind of guarantee: alpha bounds the `expected` rate, or its 95 % upper `bound`.
        review_threshold: calibrated score above which the verdict is `review`, below the threshold; not used by default.
        device: inference device; `auto` takes a usable GPU, else the CPU.
        batch_size: images per inference; a tiled model scores one image at a time.
        overlays: folder for overlay images, with --out; not written by default.
        overlays_of: verdicts whose overlays are drawn; a run stores them in its overlays/.
        maps: write all anomaly maps as 16-bit PNG into the maps/ of a run.
        evidence: write the nearest good patches of every rejected image into the evidence/ of a run; for memory banks.
        shard: shard I/N of the images: every N-th image from the I-th on, for `anomaly merge`.
        watch: score the images that arrive in the folder, until Ctrl-C; with --run.
        engine: place of the computation: `here` is this process, `ray` a Ray cluster, with --run; the rows are equal.
        ray_address: address of the Ray cluster; `auto` joins this machine's cluster, `local` starts one for the run.
        ray_scorers: Ray actors that hold the models, each on one GPU, or on one processor for the device `cpu`.
        ray_decoders: simultaneous Ray decoding tasks, each on one processor.
        max_pixels: largest width × height that is decoded.
        frame: rule for files with several frames or pages: `only` makes them error rows, `first` scores the first frame.
        fail_on_defect: exit with 4 if a verdict is `defect`.
    """
    card = RunCard("score", config=dict(locals()))
    if (out is None) == (run is None):
        raise UsageError("give --out FILE for one table, or --run FOLDER for a run")
    if out and (resume or maps or evidence or shard or watch):
        raise UsageError(
            "--resume, --maps, --evidence, --shard and --watch need a run: give --run FOLDER in place of --out"
        )
    if evidence and engine == "ray":
        raise UsageError("--evidence needs the images in this process: leave --engine ray out")
    if engine == "ray" and (out or watch):
        raise UsageError("--engine ray scores a list into a run: give --run FOLDER, without --out and --watch")
    if watch and shard:
        raise UsageError("--watch and --shard exclude each other: give one of them")
    engine_function = score_images if engine == "here" else _ray(ray_address, ray_scorers, ray_decoders, overlays_of)
    paths = {DEFAULT_PRODUCT: model} | (read_product_models(models) if models else {})
    scorers = open_models(paths, device=device)
    scorer = scorers[DEFAULT_PRODUCT]
    print(f"provider {scorer.provider}; model {scorer.sha256[:16]}", file=sys.stderr)
    _show_guarantee(scorer, threshold=threshold, alpha=alpha, guarantee=guarantee)
    large = any(one.metadata.tiling for one in scorers.values())
    settings = Settings(
        threshold=choose_threshold(scorer, threshold=threshold, alpha=alpha, guarantee=guarantee),
        batch_size=1 if watch or large else batch_size,
        max_pixels=max_pixels,
        num_threads=num_cpus(),
        frame=frame,
        review_threshold=review_threshold,
        measure=run is not None,
        large=large,
    )
    by_product = models is not None
    source = source_of(iter(())) if watch else open_source(images)
    if run is not None:
        options = RunOptions(
            format=format,
            overlays_of=overlays_of,
            maps=maps,
            evidence=evidence,
            shard=shard,
            by_product=by_product,
            watch=watch,
        )
        summary = score_run(
            source,
            name=images,
            models=paths,
            scorers=scorers,
            settings=settings,
            folder=run,
            options=options,
            resume=resume,
            engine=engine_function,
        )
    else:
        assert out is not None
        summary = score_to_tables(
            source, scorers=scorers, settings=settings, out=[out], by_product=by_product, overlays=overlays,
            overlays_of=overlays_of,
        )  # fmt: skip
        card.facts["result"] = {
            "provider": scorer.provider,
            "model": scorer.sha256,
            "threshold": settings.threshold,
            "num_images": summary.num_images,
            "num_defect": summary.num_defect,
            "num_errors": summary.num_errors,
        }
        card.facts["seconds"] |= summary.seconds
        card.write(out.with_name(f"{out.name}.run.json"))
    _show(summary)
    if summary.num_errors:
        return 3
    return 4 if fail_on_defect and summary.num_defect else 0


def _show_guarantee(
    scorer: OnnxScorer, *, threshold: float | None, alpha: float | None, guarantee: GuaranteeKind
) -> None:
    if alpha is not None:
        print(scorer.calibration.guarantee(alpha=alpha, guarantee=guarantee), file=sys.stderr)
    elif threshold is not None:
        rate = scorer.calibration.expected_rate_above(threshold)
        print(f"threshold {threshold:g} without a guarantee: about {rate:.2%} false alarms expected", file=sys.stderr)
    else:
        print(scorer.metadata.certified, file=sys.stderr)


def _show(summary: ScoreSummary) -> None:
    for product, drift in summary.drift.items():
        if drift["alarmed"]:
            name = "" if product == "all" else f" of {product}"
            print(
                f"drift{name}: {drift['cause']} (from image {drift['first_alarm']} on; see summary.json)",
                file=sys.stderr,
            )
    print(f"{summary.num_images} images: {summary.num_defect} defects, {summary.num_errors} errors", file=sys.stderr)


def _ray(address: str, num_scorers: int, num_decoders: int, overlays_of: OverlaysOf) -> Engine:
    try:
        from anomaly.scoring.ray_engine import RayEngine
    except ModuleNotFoundError as error:
        raise UsageError(
            f"--engine ray needs {error.name}, which is not installed: pip install anomaly[cluster]"
        ) from error
    return RayEngine(address=address, num_scorers=num_scorers, num_decoders=num_decoders, overlays_of=overlays_of)
