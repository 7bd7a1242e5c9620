"""The verb `calibrate`: a new promise for an exported model from new good photographs, or from what a person marked."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from anomaly.conformal.calibration import Promise, Scale, guarantee, raised_limit, resolve_alpha
from anomaly.data.folders import list_images
from anomaly.errors import ParityError, UsageError
from anomaly.imaging.image_file import read_image
from anomaly.imaging.statistics import summarise
from anomaly.inference.artifact import (
    CalibrationRecord,
    MarkedRecord,
    calibration_tensors,
    golden_batch,
    golden_png,
    graph_sha256,
    load_graph,
    read_metadata,
    set_calibration_tensors,
    write_model,
)
from anomaly.inference.scorer import OnnxScorer, relative_difference, score_bytes
from anomaly.inference.session import Device
from anomaly.recalibration.calibration_set import Scales, Values, carried, earlier, from_file, from_photographs, say
from anomaly.recalibration.label_report import mark_report, tell
from anomaly.recalibration.labelled_images import NOTHING_MARKED, Marked, find_marked
from anomaly.scoring.sources import Item
from anomaly.system.files import write_json
from anomaly.system.run_card import RunCard, now, versions

REFUSE = 1e-3
"""Difference in calibrated units above which the rewritten file is refused"""


def calibrate(
    model: Path,
    good: str = "",
    *,
    marks: str = "",
    images: str = "",
    out: str = "",
    alpha: float | Literal["default"] = "default",
    promise: Promise | Literal["default"] = "default",
    device: Device = "cpu",
    max_pixels: int = 100_000_000,
) -> Path:
    """Calibrate an exported model again: rewrites zero, unit, held-out scores, golden image and certificate.

    With good photographs, these are the held-out goods from then on. With marks alone, the held-out goods stay those whose
    scores the file keeps. Either way it is the held-out goods that the promise is made on: images marked `good` can raise
    the limit and never lower it (`anomaly.conformal.calibration.raised_limit` says why), and zero stays the median of the held-out
    goods. Marked goods of an earlier calibration still count, unless new photographs are given, or the file of marks now
    says `defect` of them.

    Args:
        model: the .onnx file.
        good: good photographs that the model was not trained on: a folder, a glob, a .txt list, or - for standard
            input. With --marks they can be left out.
        marks: file of marks beside a run, RUN.marks.csv.
        images: where marked images that were moved are found again, by their SHA-256: a folder, glob or list.
        out: the file to write; by default the model itself is replaced.
        alpha: share of good parts that may be rejected; by default 0.01, or the tightest that the photographs support,
            with marks alone that of the file.
        promise: whether alpha bounds the expected rate or its 95 % upper bound; by default the expected rate, with marks
            alone what the file promises.
        device: to score on.
        max_pixels: largest width × height that is decoded.

    Returns:
        The file written; its certificate lies beside it.

    Raises:
        UsageError: neither photographs nor marks, or another promise than the file's with marks alone.
        DataError: a photograph that cannot be used, or marks that contradict each other.
        CalibrationError: too few photographs for alpha, or photographs that score alike.
        ParityError: the rewritten file does not score as the arithmetic says.
    """
    card = RunCard("calibrate", config=dict(locals()))
    if not good and not marks:
        raise UsageError("nothing to calibrate on: give GOOD photographs, or --marks RUN.marks.csv, or both")
    path = Path(out) if out else model
    paths = list_images(good) if good else []
    if good:
        promise = "expected" if promise == "default" else promise
        alpha = resolve_alpha(alpha, num_images=len(paths), promise=promise)
    else:
        stored = read_metadata(load_graph(model), name=str(model))
        if alpha not in ("default", stored.alpha) or promise not in ("default", stored.promise):
            raise UsageError(
                f"{model} promises alpha {stored.alpha:.4g} ({stored.promise}) and keeps no maps of its held-out images:"
                " for another promise give GOOD photographs beside the marks"
            )
        alpha, promise = stored.alpha, cast(Promise, stored.promise)
    marked = find_marked(Path(marks), images=images, good=paths, max_pixels=max_pixels) if marks else NOTHING_MARKED
    certificate = recalibrate(
        model,
        paths,
        marked=marked,
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
        f"{path}: {certificate['num_images']} good images, alpha {alpha:.4g} ({promise}); expected false-alarm rate"
        f" {certificate['expected_rate']:.2%}, at most {certificate['rate_bound']:.2%} with 95 % confidence"
    )
    if marked.marks:
        tell(certificate["marks"], certificate["moved"])
    return path


def recalibrate(
    model: Path,
    paths: Sequence[str],
    *,
    marked: Marked,
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
        paths: good photographs that the model was not trained on; none takes what the file keeps of its held-out ones.
        marked: images that a person marked, or `NOTHING_MARKED`.
        out: the file to write; until it is certified what was there stays.
        source: name of the photographs' origin, for the metadata; without photographs this and the next two stay.
        num_groups: parts or lots among them.
        excluded: names of photographs that were left out.
        alpha: share of good parts that may be rejected; that of the file where there are no photographs.
        promise: what alpha bounds; likewise.
        device: to score on.
        max_pixels: largest width × height that is decoded.

    Returns:
        The certificate: what the promise is, and how far the file is from the arithmetic.

    Raises:
        DataError, CalibrationError, ParityError: as `calibrate`.
    """
    scorer = OnnxScorer(model, device=device, num_threads=0)
    metadata = scorer.metadata
    num_images = len(paths) or metadata.calibration.num_images
    promised = guarantee(num_images, alpha=alpha, promise=promise)  # refuse before scoring, not after
    values, statistics = _say(scorer, paths, marked, max_pixels=max_pixels)
    graph = load_graph(model)
    file = _scales(calibration_tensors(graph))
    held_out = (
        from_photographs({part: values[part][: len(paths)] for part in values}, file, alpha=alpha, promise=promise)
        if paths
        else from_file(metadata, file)
    )
    kept = earlier(metadata, marked) if not paths else MarkedRecord([], [], [], 1.0)
    counted = slice(len(paths), len(paths) + marked.num_good)  # marked defects follow, and move nothing
    goods = {"score": [*values["score"][counted], *kept.scores], "map": [*values["map"][counted], *kept.peaks]}
    scale, limit = {}, {}
    for part, alone in held_out.scale.items():
        said_of_goods = carried(np.array(goods[part]), file[part], alone)
        limit[part] = raised_limit(held_out.values[part], marked=said_of_goods, alpha=alpha, promise=promise)
        scale[part] = Scale(alone.zero, alone.unit * limit[part])
    expected = {part: carried(values[part], file[part], scale[part]) for part in scale}
    set_calibration_tensors(
        graph, {f"{end}_{part}": getattr(scale[part], end) for part in scale for end in ("zero", "unit")}
    )
    golden = metadata.golden
    if paths:
        typical = paths[int(np.argsort(expected["score"][: len(paths)])[len(paths) // 2])]
        photograph = read_image(typical, white=metadata.white, max_pixels=max_pixels)
        golden = dataclasses.replace(golden, png=golden_png(photograph))
    said = score_bytes(graph.SerializeToString(), golden_batch(golden, fixed=metadata.fixed), tiling=metadata.tiling)
    before = metadata.calibration
    sha256 = [mark.sha256 for mark in marked.marks[: marked.num_good]] + kept.sha256
    told = f" + {len(sha256)} marked good ({marked.source})" if marked.marks else ""
    metadata = dataclasses.replace(
        metadata,
        alpha=alpha,
        promise=promise,
        calibration=CalibrationRecord(
            num_images=num_images,
            num_groups=num_groups if paths else before.num_groups,
            scores=(held_out.values["score"] / limit["score"]).tolist(),
            date=now(),
            source=(source if paths else before.source.partition(" + ")[0]) + told,
            excluded=excluded if paths else before.excluded,
        ),
        image_stats=summarise(statistics) if paths else metadata.image_stats,
        versions=versions(),
        sha256=graph_sha256(graph),
        golden=dataclasses.replace(golden, score=float(said.score[0]), map_maximum=float(said.anomaly_map[0].max())),
        marked=MarkedRecord(
            sha256=sha256,
            scores=carried(np.array(goods["score"]), file["score"], scale["score"]).tolist(),
            peaks=carried(np.array(goods["map"]), file["map"], scale["map"]).tolist(),
            map_limit=1 / limit["map"],
        )
        if sha256
        else None,
    )
    candidate = out.with_name(out.name + ".candidate")  # the old file stays until the new one is certified
    write_model(candidate, graph, metadata)
    try:
        rewritten = OnnxScorer(candidate, device=device, num_threads=0)
        again, _ = _say(rewritten, paths, marked, max_pixels=max_pixels)
        certificate: dict[str, Any] = {
            "kind": "calibration",
            "model": rewritten.sha256,
            "previous_model": scorer.sha256,
            "provider": rewritten.provider,
            "num_images": num_images,
            "score": _difference(expected["score"], again["score"]),
            "map_maximum": _difference(expected["map"], again["map"]),
            "refused_above": REFUSE,
            "alpha": alpha,
            "promise": promise,
            "expected_rate": promised.expected_rate,
            "rate_bound": promised.rate_bound,
            "source": metadata.calibration.source,
            "moved": _moved(file, scale),
            "marks": mark_report(
                marked,
                num_earlier=len(kept.sha256),
                before=values["score"][len(paths) :],
                after=again["score"][len(paths) :],
            ),
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


def _say(
    scorer: OnnxScorer, paths: Sequence[str], marked: Marked, *, max_pixels: int
) -> tuple[Values, list[dict[str, float]]]:
    """Values of the good photographs, then of the marked images; and what the photographs look like."""
    good, statistics = say(list(map(Item, paths)), scorer, what="good", sha256=[], max_pixels=max_pixels)
    sha256 = [mark.sha256 for mark in marked.marks]
    of_marked, _ = say(marked.items, scorer, what="marked", sha256=sha256, max_pixels=max_pixels)
    return {part: np.concatenate([good[part], of_marked[part]]) for part in good}, statistics


def _scales(tensors: dict[str, float]) -> dict[str, Scale]:
    return {part: Scale(tensors[f"zero_{part}"], tensors[f"unit_{part}"]) for part in ("score", "map")}


def _moved(before: Scales, after: Scales) -> dict[str, Any]:
    """Zero, unit and limit of score and map before and after, in raw values."""
    return {
        part: {
            "zero": [before[part].zero, after[part].zero],
            "unit": [before[part].unit, after[part].unit],
            "limit": [scale.zero + scale.unit for scale in (before[part], after[part])],
        }
        for part in after
    }


def _difference(expected: NDArray[np.float64], found: NDArray[np.float64]) -> dict[str, float]:
    difference = relative_difference(expected, found)
    return {"max": float(difference.max()), "mean": float(difference.mean())}
