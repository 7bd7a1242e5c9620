"""The verb `demo`: from a folder of images, or synthetic parts, to a certified model, scores and a report."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from anomaly.commands.inspect import inspect
from anomaly.conformal.calibration import GuaranteeKind, guarantee_for
from anomaly.data.findings import findings
from anomaly.data.folders import Sample, find_category
from anomaly.data.synthetic import PARTS, make_dataset
from anomaly.errors import OutputError, UsageError
from anomaly.evaluation.detectability import draw_and_score
from anomaly.evaluation.evaluate import evaluate, summary
from anomaly.export.detector import MODEL_FILE, export
from anomaly.export.parity import verify
from anomaly.imaging.image_file import read_image
from anomaly.inference.scorer import OnnxScorer
from anomaly.nn.backbones import weights_at_hand
from anomaly.report.contents import detectability, influential, labelled
from anomaly.report.page import Parity, Report, Speed, Training, write_report
from anomaly.scoring.pipeline import ONLY, Settings
from anomaly.scoring.sources import Item, source_of
from anomaly.scoring.tables import score_to_tables
from anomaly.system.processors import num_cpus
from anomaly.system.progress import progress_bar
from anomaly.system.run_card import RunCard, hardware, now
from anomaly.system.suggestions import nearest
from anomaly.training.fit import fit
from anomaly.training.fitted_model import CARD_FILE, load
from anomaly.training.loop import Precision

NUM_SYNTHETIC = {"num_train": 200, "num_test_good": 40, "num_test_defect": 75, "size": 256}
NUM_DRAWN_ON = 40
"""Calibration images that synthetic defects are drawn onto"""
NUM_DRAWN_EACH = 4
"""Drawings per kind, size and contrast"""


def demo(
    *,
    data: str = "",
    out: Path = Path("demo-out"),
    detector: str = "best",
    model: dict[str, Any] | None = None,
    part: str = "assembly",
    alpha: float | Literal["default"] = "default",
    guarantee: GuaranteeKind = "expected",
    seed: int = 0,
    part_group: str | None = None,
    exclude: str | None = None,
    roi: str = "",
    precision: Precision = "fastest",
    batch_size: int = 8,
    max_pixels: int = 100_000_000,
) -> Path:
    """Inspect, fit, calibrate, export, verify, score and report, in one go.

    Args:
        data: a category in MVTec layout or a plain folder of good images; by default synthetic parts are made.
        out: folder of everything that is written.
        detector: `best` for FastFlow where its backbone is at hand, else the autoencoder; or a name, or package.module:Class.
        model: options of the detector's constructor.
        part: kind of synthetic part: textile, machined or assembly.
        alpha: share of good parts that may be rejected; by default 0.01, or the tightest that the images support.
        guarantee: whether alpha bounds the expected rate or its 95 % upper bound.
        seed: of everything random.
        part_group: regular expression on the paths, or CSV of path and group, that joins the images of one part.
        exclude: text file with the names of images to leave out, one a line.
        roi: region of interest, x,y,w,h in pixels or the path of a mask.
        precision: of training.
        batch_size: images per inference.
        max_pixels: largest width × height that is decoded.

    Returns:
        The report.
    """
    card = RunCard("demo", config=dict(locals()))
    root = Path(data) if data else _synthetic(out / "data", part=part, seed=seed)
    with card.timed("inspect"):
        inspection = inspect(root, part_group=part_group, seed=seed, max_pixels=max_pixels)
    detector, reason = choose_detector(detector)
    print(f"detector: {detector} ({reason})")
    run = out / "run"
    with card.timed("fit and calibrate"):
        fit(
            root, out=run, detector=detector, model=model, alpha=alpha, guarantee=guarantee, seed=seed,
            part_group=part_group, exclude=exclude, roi=roi, precision=precision, max_pixels=max_pixels,
        )  # fmt: skip
    with card.timed("export"):
        file = export(run, out=str(out / MODEL_FILE))
    with card.timed("verify"):
        certificate = verify(run, model=str(file))
    scorer = OnnxScorer(file, device="auto", num_threads=0)
    description = load(run)[1]
    samples = find_category(root).test
    calibration_images = [Sample(Path(p), "good", False, None) for p in description.calibration_images]
    with card.timed("score"):
        speed = _score(samples or calibration_images, scorer, out=out, batch_size=batch_size, max_pixels=max_pixels)
    labels = [s.label for s in samples]
    evaluation = None
    if any(labels) and not all(labels):
        with card.timed("test"):
            evaluation = evaluate(
                samples, scorer=scorer, resize=scorer.metadata.resize, white=description.white, threshold=1.0,
                max_pixels=max_pixels, batch_size=batch_size, seed=seed,
            )  # fmt: skip
        print(summary(evaluation))
        card.facts["result"] = evaluation.to_dict()
    with card.timed("draw synthetic defects"), progress_bar("draw synthetic defects") as report:
        images = [
            read_image(s.path, white=description.white, max_pixels=max_pixels)
            for s in calibration_images[:NUM_DRAWN_ON]
        ]
        trials = draw_and_score(images, scorer=scorer, num_each=NUM_DRAWN_EACH, seed=seed, report=report)
    page = out / "report.html"
    with card.timed("report"):
        guaranteed = guarantee_for(
            description.calibration.num_images, alpha=description.alpha, guarantee=description.guarantee
        )
        short_side = min(images[0].shape[:2])
        catches, drawn = detectability(trials, scorer, short_side=short_side)
        write_report(
            page,
            Report(
                category=description.category,
                date=now(),
                training=Training(
                    detector=detector,
                    reason=reason,
                    num_train=len(description.train),
                    num_stopping=len(description.stopping),
                    num_part_groups=inspection.split.num_part_groups,
                    excluded=tuple(description.calibration.excluded),
                    findings=tuple(f.text for f in findings(inspection)),
                    config=description.config,
                    seconds=dict(card.facts["seconds"]),
                ),
                guarantee=guaranteed,
                calibration_images=np.asarray(description.calibration.scores),
                labelled=labelled(evaluation, scorer, max_pixels=max_pixels),
                influential=influential(calibration_images, description, scorer, batch_size=batch_size),
                catches=catches,
                drawn=drawn,
                speed=(speed,),
                parity=Parity(
                    num_images=certificate["num_images"],
                    score_difference=certificate["score"]["max"],
                    map_difference=certificate["map"]["max"],
                    tolerance=certificate["refused_above"],
                    num_flips=certificate["num_flips"],
                ),
                provenance=_provenance(scorer, card),
            ),
        )
    card.write(out / CARD_FILE)
    print(
        f"{page}: false alarms expected {guaranteed.expected_rate:.2%}, at most {guaranteed.rate_bound:.2%} with 95 % confidence"
    )
    return page


def choose_detector(name: str) -> tuple[str, str]:
    """Choose the detector, and say why in a sentence."""
    if name != "best":
        return name, "asked for by name"
    weights = weights_at_hand("resnet18")
    if weights:
        return "fastflow", f"its pretrained backbone is at hand: {Path(weights).name}"
    return "autoencoder", (
        "FastFlow's backbone resnet18 is not at hand (ANOMALY_WEIGHTS, timm's cache), and this one needs no download"
    )


def _synthetic(root: Path, *, part: str, seed: int) -> Path:
    """Make a category of synthetic parts, or take the one that an earlier run of the same seed made."""
    if part not in PARTS:
        raise UsageError(f"no synthetic part {part!r}; nearest: {nearest(part, PARTS)!r}; all: {', '.join(PARTS)}")
    root = root / f"seed-{seed}"
    if not (root / part).is_dir():
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{root} cannot be made: {error.strerror}; choose another place") from error
        with progress_bar("make synthetic parts") as report, tempfile.TemporaryDirectory(dir=root) as unfinished:
            made = Path(unfinished) / "parts"  # an interrupted set is not taken for a whole one by the next run
            make_dataset(made, parts=(part,), seed=seed, progress=report, **NUM_SYNTHETIC)
            (made / part).replace(root / part)
    return root / part


def _score(samples: Sequence[Sample], scorer: OnnxScorer, *, out: Path, batch_size: int, max_pixels: int) -> Speed:
    """Score into the tables as `anomaly score` does, overlays of the rejects included, and measure the speed."""
    settings = Settings(threshold=1.0, batch_size=batch_size, max_pixels=max_pixels, num_threads=num_cpus())
    begin = time.perf_counter()
    summed = score_to_tables(
        source_of(Item(str(s.path)) for s in samples),
        scorers={ONLY: scorer},
        by_product=False,
        settings=settings,
        out=[out / "scores.csv", out / "scores.parquet"],
        overlays=str(out / "overlays"),
        overlays_of="defect",
    )
    seconds = time.perf_counter() - begin
    return Speed(
        device=f"{hardware()['processor']}, {num_cpus()} cores, {scorer.provider}",
        batch_size=batch_size,
        images_per_second=summed.num_images / seconds,
        includes="Reading, decoding, resizing, the network, the regions, the tables and the overlays of rejects.",
    )


def _provenance(scorer: OnnxScorer, card: RunCard) -> dict[str, str]:
    metadata, facts = scorer.metadata, card.facts
    weights = {k: str(v) for k, v in metadata.config.items() if k in ("backbone_weights", "backbone_sha256")}
    return {
        "Model file, SHA-256": scorer.sha256,
        "Graph, SHA-256": metadata.sha256,
        "Contract": str(metadata.contract),
        "Seed": str(metadata.seed),
        "Commit": metadata.commit or "outside a checkout",
        "Provider": scorer.provider,
        "Hardware": ", ".join(str(v) for v in facts["hardware"].values()),
        **{f"Version of {name}": version for name, version in metadata.versions.items()},
        **weights,
    }
