"""The verb `calibrate`: a new guarantee for an exported model from new good images, or from what a person labelled."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from anomaly.conformal.calibration import GuaranteeKind, Scale, guarantee_for, raised_threshold, resolve_alpha
from anomaly.data.folders import list_images
from anomaly.errors import ParityError, UsageError
from anomaly.imaging.image_file import read_image
from anomaly.imaging.statistics import summarise
from anomaly.inference.artifact import (
    CalibrationRecord,
    LabelledRecord,
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
from anomaly.recalibration.calibration_set import Scales, Values, carried, earlier, from_file, from_images, say
from anomaly.recalibration.label_report import label_report, tell
from anomaly.recalibration.labelled_images import NOTHING_MARKED, Labelled, find_labelled
from anomaly.scoring.sources import Item
from anomaly.system.files import write_json
from anomaly.system.run_card import RunCard, now, versions

REFUSE = 1e-3
"""Difference in calibrated units above which the rewritten file is refused"""


def calibrate(
    model: Path,
    good: str = "",
    *,
    labels: str = "",
    images: str = "",
    out: str = "",
    alpha: float | Literal["default"] = "default",
    guarantee: GuaranteeKind | Literal["default"] = "default",
    device: Device = "cpu",
    max_pixels: int = 100_000_000,
) -> Path:
    """Calibrate an exported model again: rewrites zero, unit, calibration scores, golden image and certificate.

    With good images, these are the calibration images from then on. With labels alone, the calibration images stay those whose
    scores the file keeps. Either way it is the calibration images that the guarantee is made on: images labelled `good` can raise
    the threshold and never lower it (`anomaly.conformal.calibration.raised_threshold` says why), and zero stays the median of the calibration
    good images. Labelled good images of an earlier calibration still count, unless new images are given, or the file of labels now
    says `defect` of them.

    Args:
        model: the .onnx file.
        good: good images that the model was not trained on: a folder, a glob, a .txt list, or - for standard
            input. With --labels they can be left out.
        labels: file of labels beside a run, RUN.labels.csv.
        images: where labelled images that were moved are found again, by their SHA-256: a folder, glob or list.
        out: the file to write; by default the model itself is replaced.
        alpha: share of good parts that may be rejected; by default 0.01, or the tightest that the images support,
            with labels alone that of the file.
        guarantee: whether alpha bounds the expected rate or its 95 % upper bound; by default the expected rate, with labels
            alone what the file guarantees.
        device: to score on.
        max_pixels: largest width × height that is decoded.

    Returns:
        The file written; its certificate lies beside it.

    Raises:
        UsageError: neither images nor labels, or another guarantee than the file's with labels alone.
        DataError: a image that cannot be used, or labels that contradict each other.
        CalibrationError: too few images for alpha, or images that score alike.
        ParityError: the rewritten file does not score as the arithmetic says.
    """
    card = RunCard("calibrate", config=dict(locals()))
    if not good and not labels:
        raise UsageError("nothing to calibrate on: give GOOD images, or --labels RUN.labels.csv, or both")
    path = Path(out) if out else model
    paths = list_images(good) if good else []
    if good:
        guarantee = "expected" if guarantee == "default" else guarantee
        alpha = resolve_alpha(alpha, num_images=len(paths), guarantee=guarantee)
    else:
        stored = read_metadata(load_graph(model), name=str(model))
        if alpha not in ("default", stored.alpha) or guarantee not in ("default", stored.guarantee):
            raise UsageError(
                f"{model} guarantees alpha {stored.alpha:.4g} ({stored.guarantee}) and keeps no maps of its calibration images:"
                " for another guarantee give GOOD images beside the labels"
            )
        alpha, guarantee = stored.alpha, cast(GuaranteeKind, stored.guarantee)
    labelled = (
        find_labelled(Path(labels), images=images, good=paths, max_pixels=max_pixels) if labels else NOTHING_MARKED
    )
    certificate = recalibrate(
        model,
        paths,
        labelled=labelled,
        out=path,
        source=Path(good).name or good,  # the file travels: no path of this machine in it
        num_part_groups=len(paths),
        excluded=[],
        alpha=alpha,
        guarantee=guarantee,
        device=device,
        max_pixels=max_pixels,
    )
    write_json(path.with_suffix(".certificate.json"), certificate)
    card.facts["result"] = certificate
    card.write(path.with_suffix(".calibrate.run.json"))
    print(
        f"{path}: {certificate['num_images']} good images, alpha {alpha:.4g} ({guarantee}); expected false-alarm rate"
        f" {certificate['expected_rate']:.2%}, at most {certificate['rate_bound']:.2%} with 95 % confidence"
    )
    if labelled.labels:
        tell(certificate["labels"], certificate["moved"])
    return path


def recalibrate(
    model: Path,
    paths: Sequence[str],
    *,
    labelled: Labelled,
    out: Path,
    source: str,
    num_part_groups: int,
    excluded: list[str],
    alpha: float,
    guarantee: GuaranteeKind,
    device: Device,
    max_pixels: int,
) -> dict[str, Any]:
    """Fit offset and scale on good images scored through the very file, and write it with all that follows from them.

    Args:
        model: the .onnx file.
        paths: good images that the model was not trained on; none takes what the file keeps of its calibration images.
        labelled: images that a person labelled, or `NOTHING_MARKED`.
        out: the file to write; until it is certified what was there stays.
        source: name of the images' origin, for the metadata; without images this and the next two stay.
        num_part_groups: parts or lots among them.
        excluded: names of images that were left out.
        alpha: share of good parts that may be rejected; that of the file where there are no images.
        guarantee: what alpha bounds; likewise.
        device: to score on.
        max_pixels: largest width × height that is decoded.

    Returns:
        The certificate: what the guarantee is, and how far the file is from the arithmetic.

    Raises:
        DataError, CalibrationError, ParityError: as `calibrate`.
    """
    scorer = OnnxScorer(model, device=device, num_threads=0)
    metadata = scorer.metadata
    num_images = len(paths) or metadata.calibration.num_images
    guaranteed = guarantee_for(num_images, alpha=alpha, guarantee=guarantee)  # refuse before scoring, not after
    values, statistics = _say(scorer, paths, labelled, max_pixels=max_pixels)
    graph = load_graph(model)
    file = _scales(calibration_tensors(graph))
    calibration_images = (
        from_images({part: values[part][: len(paths)] for part in values}, file, alpha=alpha, guarantee=guarantee)
        if paths
        else from_file(metadata, file)
    )
    kept = earlier(metadata, labelled) if not paths else LabelledRecord([], [], [], 1.0)
    counted = slice(len(paths), len(paths) + labelled.num_good)  # labelled defects follow, and move nothing
    labelled_good = {"score": [*values["score"][counted], *kept.scores], "map": [*values["map"][counted], *kept.peaks]}
    scale, threshold = {}, {}
    for part, alone in calibration_images.scale.items():
        carried_good = carried(np.array(labelled_good[part]), file[part], alone)
        threshold[part] = raised_threshold(
            calibration_images.values[part], labelled=carried_good, alpha=alpha, guarantee=guarantee
        )
        scale[part] = Scale(alone.offset, alone.scale * threshold[part])
    expected = {part: carried(values[part], file[part], scale[part]) for part in scale}
    set_calibration_tensors(
        graph, {f"{end}_{part}": getattr(scale[part], end) for part in scale for end in ("offset", "scale")}
    )
    golden = metadata.golden
    if paths:
        typical = paths[int(np.argsort(expected["score"][: len(paths)])[len(paths) // 2])]
        image = read_image(typical, white=metadata.white, max_pixels=max_pixels)
        golden = dataclasses.replace(golden, png=golden_png(image))
    said = score_bytes(graph.SerializeToString(), golden_batch(golden, fixed=metadata.fixed), tiling=metadata.tiling)
    before = metadata.calibration
    sha256 = [label.sha256 for label in labelled.labels[: labelled.num_good]] + kept.sha256
    told = f" + {len(sha256)} labelled good ({labelled.source})" if labelled.labels else ""
    metadata = dataclasses.replace(
        metadata,
        alpha=alpha,
        guarantee=guarantee,
        calibration=CalibrationRecord(
            num_images=num_images,
            num_part_groups=num_part_groups if paths else before.num_part_groups,
            scores=(calibration_images.values["score"] / threshold["score"]).tolist(),
            date=now(),
            source=(source if paths else before.source.partition(" + ")[0]) + told,
            excluded=excluded if paths else before.excluded,
        ),
        image_stats=summarise(statistics) if paths else metadata.image_stats,
        versions=versions(),
        sha256=graph_sha256(graph),
        golden=dataclasses.replace(golden, score=float(said.score[0]), map_maximum=float(said.anomaly_map[0].max())),
        labelled=LabelledRecord(
            sha256=sha256,
            scores=carried(np.array(labelled_good["score"]), file["score"], scale["score"]).tolist(),
            peaks=carried(np.array(labelled_good["map"]), file["map"], scale["map"]).tolist(),
            map_threshold=1 / threshold["map"],
        )
        if sha256
        else None,
    )
    candidate = out.with_name(out.name + ".candidate")  # the old file stays until the new one is certified
    write_model(candidate, graph, metadata)
    try:
        rewritten = OnnxScorer(candidate, device=device, num_threads=0)
        again, _ = _say(rewritten, paths, labelled, max_pixels=max_pixels)
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
            "guarantee": guarantee,
            "expected_rate": guaranteed.expected_rate,
            "rate_bound": guaranteed.rate_bound,
            "source": metadata.calibration.source,
            "moved": _moved(file, scale),
            "labels": label_report(
                labelled,
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
    scorer: OnnxScorer, paths: Sequence[str], labelled: Labelled, *, max_pixels: int
) -> tuple[Values, list[dict[str, float]]]:
    """Values of the good images, then of the labelled images; and what the images look like."""
    good, statistics = say(list(map(Item, paths)), scorer, what="good", sha256=[], max_pixels=max_pixels)
    sha256 = [label.sha256 for label in labelled.labels]
    of_labelled, _ = say(labelled.items, scorer, what="labelled", sha256=sha256, max_pixels=max_pixels)
    return {part: np.concatenate([good[part], of_labelled[part]]) for part in good}, statistics


def _scales(tensors: dict[str, float]) -> dict[str, Scale]:
    return {part: Scale(tensors[f"offset_{part}"], tensors[f"scale_{part}"]) for part in ("score", "map")}


def _moved(before: Scales, after: Scales) -> dict[str, Any]:
    """Zero, unit and threshold of score and map before and after, in raw values."""
    return {
        part: {
            "offset": [before[part].offset, after[part].offset],
            "scale": [before[part].scale, after[part].scale],
            "threshold": [scale.offset + scale.scale for scale in (before[part], after[part])],
        }
        for part in after
    }


def _difference(expected: NDArray[np.float64], found: NDArray[np.float64]) -> dict[str, float]:
    difference = relative_difference(expected, found)
    return {"max": float(difference.max()), "mean": float(difference.mean())}
