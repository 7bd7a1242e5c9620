"""The verb `score`: images in, verdicts out, into one table or into a run directory that survives whatever happens."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Literal

import numpy as np
import yaml

from anomaly.conformal.calibration import GuaranteeKind, raised_threshold
from anomaly.errors import UsageError
from anomaly.imaging.header import Frame
from anomaly.inference.scorer import OnnxScorer, open_for_batches
from anomaly.inference.session import Device
from anomaly.runs.score_run import Wanted, score_run
from anomaly.runs.sinks import Format
from anomaly.scoring.pipeline import ONLY, Engine, Settings, score_images
from anomaly.scoring.sources import open_source, source_of
from anomaly.scoring.tables import OverlaysOf, score_to_tables
from anomaly.system.processors import num_cpus
from anomaly.system.run_card import RunCard


def score(
    model: Path,
    images: str,
    *,
    out: str = "",
    run: str = "",
    format: Format = "csv",
    resume: bool = False,
    models: str = "",
    threshold: float | Literal["model"] = "model",
    alpha: float | Literal["model"] = "model",
    guarantee: GuaranteeKind = "expected",
    review_threshold: float | Literal["none"] = "none",
    device: Device = "auto",
    batch_size: int = 8,
    overlays: str = "",
    overlays_of: OverlaysOf = "defect",
    maps: bool = False,
    shard: str = "",
    watch: bool = False,
    engine: Literal["here", "ray"] = "here",
    ray_address: str = "local",
    ray_scorers: int = 1,
    ray_decoders: int = 2,
    max_pixels: int = 100_000_000,
    frame: Frame = "only",
    fail_on_defect: bool = False,
) -> int:
    """Score images through an exported model and write one row for each, bad files included.

    Args:
        model: the .onnx file.
        images: a folder, a glob, a .txt list of paths, - for paths on standard input, a .csv or .parquet table with the
            column `path`, .tar archives, or a place that pyarrow or fsspec reaches, as s3://bucket/folder.
        out: one result file; .csv, .jsonl or .parquet chooses the format.
        run: in place of `out`, a run directory: it can be killed at any moment and goes on, and ends with a manifest.
        format: of the rows in a run directory.
        resume: go on with the unfinished run in `run`.
        models: YAML or JSON file of product -> .onnx file, for a table with a column `product`.
        threshold: of the verdict in calibrated units; by default the model's own, 1.
        alpha: share of good parts that may be rejected: moves the threshold along the model's calibration scores.
        guarantee: what alpha bounds, the expected rate or its 95 % upper bound.
        review_threshold: above it, up to the threshold, the verdict is `review`.
        device: auto, cpu, cuda or tensorrt.
        batch_size: images per inference; a model of windows takes one image at a time.
        overlays: folder for pictures with the map laid over, beside one result file; none by default.
        overlays_of: draw those with the verdict defect, all, or none; in a run directory they lie in its overlays/.
        maps: write every map as 16-bit PNG into the run directory's maps/.
        shard: i/n scores every n-th image from the i-th on, for `anomaly merge`.
        watch: score images as they arrive in the folder, each when it is complete, until stopped by Ctrl-C; one an inference.
        engine: what computes: this process, or a Ray cluster, into a run directory; the rows are the same.
        ray_address: of the cluster, auto for the one this machine belongs to, local for one that lives as long as the run.
        ray_scorers: actors that hold the models, on a GPU each where the device is one.
        ray_decoders: decoding tasks at a time, on a processor each.
        max_pixels: largest width × height that is decoded.
        frame: of files with several frames or pages: `only` makes them error rows, `first` takes the first.
        fail_on_defect: exit with 4 where a verdict is defect.

    Returns:
        The exit code: 0 all scored, 3 some rows are errors, 4 as `fail_on_defect` says.

    Raises:
        UsageError: not one of `out` and `run`, both a threshold and an alpha, a threshold that is no number or that overlays cannot
            be drawn to, a batch without images, or a run directory that is taken.
        OutputError: results that cannot be written.
    """
    card = RunCard("score", config=dict(locals()))
    if bool(out) == bool(run):
        raise UsageError("give --out FILE for one table, or --run FOLDER for a run directory")
    if out and (resume or maps or shard or watch):
        raise UsageError(
            "--resume, --maps, --shard and --watch belong to a run directory: give --run FOLDER in place of --out"
        )
    if engine == "ray" and (out or watch):
        raise UsageError(
            "--engine ray scores a list into a run directory: give --run FOLDER, without --out and --watch"
        )
    through = score_images if engine == "here" else _ray(ray_address, ray_scorers, ray_decoders, overlays_of)
    mapped = {ONLY: model} | read_models(models)
    scorers = {product: open_for_batches(path, device=device) for product, path in mapped.items()}
    scorer = scorers[ONLY]
    print(f"provider {scorer.provider}; model {scorer.sha256[:16]}", file=sys.stderr)
    chosen = choose_threshold(scorer, threshold=threshold, alpha=alpha, guarantee=guarantee)
    if overlays and not chosen > 0:
        raise UsageError(f"threshold {chosen:g}: overlays are drawn to a threshold above 0; leave --overlays out")
    large = any(scorer.metadata.tiling for scorer in scorers.values())
    settings = Settings(
        threshold=chosen,
        batch_size=1 if watch or large else batch_size,
        max_pixels=max_pixels,
        num_threads=num_cpus(),
        frame=frame,
        review_threshold=math.inf if review_threshold == "none" else review_threshold,
        measure=bool(run),
        large=large,
    )
    if watch and shard:
        raise UsageError("--watch and --shard at once: images that arrive have no list to share out")
    source = source_of(iter(())) if watch else open_source(images)
    if run:
        wanted = Wanted(
            format=format, overlays_of=overlays_of, maps=maps, shard=shard, by_product=bool(models), watch=watch
        )
        summary = score_run(
            source,
            name=images,
            models=mapped,
            scorers=scorers,
            settings=settings,
            folder=Path(run),
            wanted=wanted,
            resume=resume,
            engine=through,
        )
    else:
        summary = score_to_tables(
            source, scorers=scorers, by_product=bool(models), settings=settings, out=[Path(out)], overlays=overlays,
            overlays_of=overlays_of,
        )  # fmt: skip
        card.facts["result"] = {
            "provider": scorer.provider,
            "model": scorer.sha256,
            "threshold": chosen,
            "num_images": summary.num_images,
            "num_defect": summary.num_defect,
            "num_errors": summary.num_errors,
        }
        card.facts["seconds"] |= summary.seconds
        card.write(Path(out).with_name(Path(out).name + ".run.json"))
    print(f"{summary.num_images} images: {summary.num_defect} defects, {summary.num_errors} errors", file=sys.stderr)
    if summary.num_errors:
        return 3
    return 4 if fail_on_defect and summary.num_defect else 0


def _ray(address: str, num_scorers: int, num_decoders: int, overlays_of: OverlaysOf) -> Engine:
    try:
        from anomaly.scoring.ray_engine import RayEngine
    except ModuleNotFoundError as error:
        raise UsageError(f"--engine ray needs {error.name}, which is not here: pip install anomaly[cluster]") from error
    return RayEngine(address=address, num_scorers=num_scorers, num_decoders=num_decoders, overlays_of=overlays_of)


def read_models(file: str) -> dict[str, Path]:
    """Read a map of product -> model file; paths are relative to the map's own folder. No file, no products.

    Raises:
        UsageError: a file that is no such map.
    """
    if not file:
        return {}
    try:
        content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"--models {file} cannot be read ({error}); write PRODUCT: MODEL.onnx, one a line") from error
    if not isinstance(content, dict) or not all(isinstance(v, str) for v in content.values()):
        raise UsageError(f"--models {file} is no map: write PRODUCT: MODEL.onnx, one a line")
    return {str(product): Path(file).parent / path for product, path in content.items()}


def choose_threshold(
    scorer: OnnxScorer,
    *,
    threshold: float | Literal["model"],
    alpha: float | Literal["model"],
    guarantee: GuaranteeKind,
) -> float:
    """Resolve the threshold of a run: the model's, one given, or the one an alpha sets on the model's calibration scores.

    Raises:
        UsageError: both a threshold and an alpha.
        CalibrationError: an alpha that the model's calibration scores cannot support.
    """
    if alpha == "model":
        return 1.0 if threshold == "model" else threshold
    if threshold != "model":
        raise UsageError(f"--threshold {threshold} and --alpha {alpha} both set the threshold: give one of them")
    metadata = scorer.metadata
    labelled = np.array(metadata.labelled.scores) if metadata.labelled else np.zeros(0)
    return raised_threshold(
        np.asarray(metadata.calibration.scores), labelled=labelled, alpha=alpha, guarantee=guarantee
    )
