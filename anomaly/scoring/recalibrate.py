"""The verb `calibrate`: a new promise for an exported model from new good photographs, without torch or training."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from anomaly.calibration import Promise, Scale, fit_scale, guarantee, resolve_alpha
from anomaly.data.folders import list_images
from anomaly.errors import DataError, ParityError
from anomaly.image import read_image
from anomaly.progress import progress_bar
from anomaly.run_card import RunCard, now, versions, write_json
from anomaly.scoring.artifact import (
    CalibrationRecord,
    calibration_tensors,
    golden_batch,
    golden_png,
    graph_sha256,
    load_graph,
    set_calibration_tensors,
    write_model,
)
from anomaly.scoring.image_stats import image_statistics, summarise
from anomaly.scoring.pipeline import ONLY, Settings, score_images
from anomaly.scoring.processors import num_cpus
from anomaly.scoring.scorer import OnnxScorer, relative_difference, score_bytes
from anomaly.scoring.session import Device
from anomaly.scoring.sources import Item

REFUSE = 1e-3
"""Difference in calibrated units above which the rewritten file is refused"""


def calibrate(
    model: Path,
    good: str,
    *,
    out: str = "",
    alpha: float | Literal["default"] = "default",
    promise: Promise = "expected",
    device: Device = "cpu",
    max_pixels: int = 100_000_000,
) -> Path:
    """Calibrate an exported model again: rewrites zero, unit, held-out scores, golden image and certificate.

    Args:
        model: the .onnx file.
        good: good photographs that the model was not trained on: a folder, a glob, a .txt list, or - for standard
            input.
        out: the file to write; by default the model itself is replaced.
        alpha: share of good parts that may be rejected; by default 0.01, or the tightest that the photographs support.
        promise: whether alpha bounds the expected rate or its 95 % upper bound.
        device: to score on.
        max_pixels: largest width × height that is decoded.

    Returns:
        The file written; its certificate lies beside it.

    Raises:
        DataError: a photograph that cannot be used.
        CalibrationError: too few photographs for alpha, or photographs that score alike.
        ParityError: the rewritten file does not score as the arithmetic says.
    """
    card = RunCard("calibrate", config=dict(locals()))
    path = Path(out) if out else model
    paths = list_images(good)
    alpha = resolve_alpha(alpha, num_images=len(paths), promise=promise)
    certificate = recalibrate(
        model,
        paths,
        out=path,
        source=Path(good).name or good,  # the file travels: no path of this machine in it
        num_groups=len(paths),
        excluded=[],
        alpha=alpha,
        promise=promise,
        device=device,
        max_pixels=max_pixels,
    )
    write_json(path.with_suffix(".certificate.json"), certificate)
    card.facts["result"] = certificate
    card.write(path.with_suffix(".calibrate.run.json"))
    print(
        f"{path}: {len(paths)} good images, alpha {alpha:.4g} ({promise}); expected false-alarm rate"
        f" {certificate['expected_rate']:.2%}, at most {certificate['rate_bound']:.2%} with 95 % confidence"
    )
    return path


def recalibrate(
    model: Path,
    paths: Sequence[str],
    *,
    out: Path,
    source: str,
    num_groups: int,
    excluded: list[str],
    alpha: float,
    promise: Promise,
    device: Device,
    max_pixels: int,
) -> dict[str, Any]:
    """Fit zero and unit on good images scored through the very file, and write it with all that follows from them.

    Args:
        model: the .onnx file.
        paths: good photographs that the model was not trained on.
        out: the file to write; until it is certified what was there stays.
        source: name of the photographs' origin, for the metadata.
        num_groups: parts or lots among them.
        excluded: names of photographs that were left out.
        alpha: share of good parts that may be rejected.
        promise: what alpha bounds.
        device: to score on.
        max_pixels: largest width × height that is decoded.

    Returns:
        The certificate: what the promise is, and how far the file is from the arithmetic.

    Raises:
        DataError, CalibrationError, ParityError: as `calibrate`.
    """
    promised = guarantee(len(paths), alpha=alpha, promise=promise)  # refuse before scoring, not after
    scorer = OnnxScorer(model, device=device, num_threads=0)
    metadata = scorer.metadata
    scores, peaks, statistics = _score_good(paths, scorer, max_pixels=max_pixels)
    graph = load_graph(model)
    old = calibration_tensors(graph)
    scale = {
        "score": fit_scale(scores * old["unit_score"] + old["zero_score"], alpha=alpha, promise=promise),
        "map": fit_scale(peaks * old["unit_map"] + old["zero_map"], alpha=alpha, promise=promise),
    }
    set_calibration_tensors(
        graph, {f"{end}_{part}": getattr(scale[part], end) for part in scale for end in ("zero", "unit")}
    )
    expected_scores = _rescale(scores, old["zero_score"], old["unit_score"], scale["score"])
    expected_peaks = _rescale(peaks, old["zero_map"], old["unit_map"], scale["map"])
    typical = paths[int(np.argsort(expected_scores)[len(paths) // 2])]
    photograph = read_image(typical, white=metadata.white, max_pixels=max_pixels)
    golden = dataclasses.replace(metadata.golden, png=golden_png(photograph))
    said = score_bytes(graph.SerializeToString(), golden_batch(golden, fixed=metadata.fixed), tiling=metadata.tiling)
    metadata = dataclasses.replace(
        metadata,
        alpha=alpha,
        promise=promise,
        calibration=CalibrationRecord(
            num_images=len(paths),
            num_groups=num_groups,
            scores=[float(s) for s in np.sort(expected_scores)],
            date=now(),
            source=source,
            excluded=excluded,
        ),
        image_stats=summarise(statistics),
        versions=versions(),
        sha256=graph_sha256(graph),
        golden=dataclasses.replace(golden, score=float(said.score[0]), map_maximum=float(said.anomaly_map[0].max())),
    )
    candidate = out.with_name(out.name + ".candidate")  # the old file stays until the new one is certified
    write_model(candidate, graph, metadata)
    try:
        rewritten = OnnxScorer(candidate, device=device, num_threads=0)
        again, again_peaks, _ = _score_good(paths, rewritten, max_pixels=max_pixels)
        certificate: dict[str, Any] = {
            "kind": "calibration",
            "model": rewritten.sha256,
            "previous_model": scorer.sha256,
            "provider": rewritten.provider,
            "num_images": len(paths),
            "score": _difference(expected_scores, again),
            "map_maximum": _difference(expected_peaks, again_peaks),
            "refused_above": REFUSE,
            "alpha": alpha,
            "promise": promise,
            "expected_rate": promised.expected_rate,
            "rate_bound": promised.rate_bound,
            "date": now(),
            "versions": versions(),
        }
        worst = max(certificate["score"]["max"], certificate["map_maximum"]["max"])
        if not worst <= REFUSE:
            raise ParityError(
                f"the rewritten file differs from the arithmetic by {worst:.2g}, above {REFUSE:g}, and is not kept:"
                " calibrate on another device"
            )
        candidate.replace(out)
    finally:
        candidate.unlink(missing_ok=True)
    return certificate


def _score_good(
    paths: Sequence[str], scorer: OnnxScorer, *, max_pixels: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], list[dict[str, float]]]:
    """Scores and maxima of the maps of good images, and what the images look like; a bad file is an error."""
    settings = Settings(
        limit=1.0, batch_size=8, max_pixels=max_pixels, num_threads=num_cpus(), large=scorer.metadata.tiling is not None
    )
    scores, peaks, statistics, bad = [], [], [], []
    with progress_bar("score the good images") as report:
        scoring = score_images(map(Item, paths), scorers={ONLY: scorer}, settings=settings, seconds={})
        for done, scored in enumerate(scoring):
            if scored.row.score is None:
                bad.append(scored.row.message)
            else:
                scores.append(scored.row.score)
                peaks.append(float(scored.anomaly_map.max()))
                statistics.append(image_statistics(scored.image))
            report(done + 1, len(paths))
    if bad:
        raise DataError(
            f"{len(bad)} of {len(paths)} good images cannot be used, first: {bad[0]}; take them out and try again"
        )
    return np.array(scores), np.array(peaks), statistics


def _rescale(values: NDArray[np.float64], zero: float, unit: float, scale: Scale) -> NDArray[np.float64]:
    """Carry calibrated values from one affine scale to another."""
    return (values * unit + zero - scale.zero) / scale.unit


def _difference(expected: NDArray[np.float64], found: NDArray[np.float64]) -> dict[str, float]:
    difference = relative_difference(expected, found)
    return {"max": float(difference.max()), "mean": float(difference.mean())}
