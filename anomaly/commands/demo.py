"""The verb `demo`: from a folder of images, or from synthetic parts, to a certified model, scores and a report."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from anomaly.commands import export as export_verb
from anomaly.commands import fit as fit_verb
from anomaly.commands import inspect as inspect_verb
from anomaly.commands import verify as verify_verb
from anomaly.conformal.guarantee import GuaranteeKind
from anomaly.data.folders import Sample, find_category
from anomaly.data.synthetic import PARTS, make_dataset
from anomaly.errors import OutputError, UsageError
from anomaly.evaluation.detectability import draw_and_score
from anomaly.evaluation.evaluate import THRESHOLD, Evaluation, evaluate_samples, summary
from anomaly.export.model_file import MODEL_FILE
from anomaly.imaging.image_file import read_image
from anomaly.inference.bank import calibration_scorers
from anomaly.inference.scorer import OnnxScorer
from anomaly.report.contents import (
    guarantee_of,
    influential,
    labelled,
    measured_detection,
    operating_results,
    parity_of,
    provenance_of,
    training_of,
)
from anomaly.report.page import write_report
from anomaly.report.suspects import suspect_pictures
from anomaly.report.values import Report, Speed
from anomaly.scoring.settings import DEFAULT_PRODUCT, Settings
from anomaly.scoring.sources import Item, source_of
from anomaly.scoring.tables import score_to_tables
from anomaly.system.processors import num_cpus
from anomaly.system.progress import progress_bar
from anomaly.system.run_card import RunCard, hardware, now
from anomaly.system.suggestions import nearest
from anomaly.training.choice import check_request, reason_for
from anomaly.training.fitted_model import CARD_FILE
from anomaly.training.loop import Precision

NUM_SYNTHETIC = {"num_train": 200, "num_test_good": 40, "num_test_defect": 75, "size": 256}
"""Numbers and size of the synthetic images"""
NUM_DRAWN_ON = 40
"""Largest number of calibration images for drawn defects"""
NUM_DRAWN_EACH = 4
"""Drawings of each kind, size and contrast"""


def demo(
    *,
    data: Path | None = None,
    out: Path = Path("demo-out"),
    detector: str = "auto",
    model: dict[str, Any] | None = None,
    part: str = "assembly",
    alpha: float | None = None,
    guarantee: GuaranteeKind = "expected",
    seed: int = 0,
    part_group: str | None = None,
    exclude: Path | None = None,
    roi: str | None = None,
    precision: Precision = "fastest",
    batch_size: int = 8,
    max_pixels: int = 100_000_000,
    budget_ms: float | None = None,
) -> Path:
    """Inspect, fit, calibrate, export, verify, score and report, in one run.

    Args:
        data: category in a known layout, or plain folder of good images; by default synthetic parts are rendered.
        out: folder for all results.
        detector: registry name, package.module:Class, or `auto`: the winner of a race on the good images.
        model: arguments of the detector's constructor.
        part: kind of synthetic part: textile, machined or assembly.
        alpha: largest share of good parts above the threshold; by default 0.01, or the smallest possible one.
        guarantee: kind of guarantee: `expected` bounds the expected share by alpha, `bound` its 95 % upper bound.
        seed: seed of all random numbers.
        part_group: regular expression on the paths, or CSV of path and group, that joins the images of one part.
        exclude: text file with names of excluded images, one per line.
        roi: region of interest, x,y,w,h in pixels or the path of a mask.
        precision: number format of training.
        batch_size: images per inference.
        max_pixels: largest width × height that is decoded.
        budget_ms: largest time in milliseconds to score an image on one core, for `auto`; by default any.

    Returns:
        The report.
    """
    card = RunCard("demo", config=dict(locals()))
    check_request(detector, model, budget_ms=budget_ms, tiled=False)
    root = data if data is not None else _render_parts(out / "data", part=part, seed=seed)
    with card.timed("inspect"):
        inspection = inspect_verb.inspect(root, part_group=part_group, seed=seed, max_pixels=max_pixels)
        inspect_verb.show(inspection)
    with card.timed("fit and calibrate"):
        fitted = fit_verb.fit(
            root, out=out / "run", detector=detector, model=model, alpha=alpha, guarantee=guarantee, seed=seed,
            part_group=part_group, exclude=exclude, roi=roi, precision=precision, max_pixels=max_pixels, budget_ms=budget_ms,
        )  # fmt: skip
    race = fitted.description.race
    if race is not None:
        print(*race.lines(), sep="\n")
        card.facts["race"] = asdict(race)
    detector, reason = fitted.description.detector, reason_for(race)
    print(f"detector: {detector} ({reason})")
    with card.timed("export"):
        exported = export_verb.export(fitted.folder, out=out / MODEL_FILE)
    with card.timed("verify"):
        certificates = verify_verb.verify(fitted.folder, model=exported.path)
        verify_verb.show(certificates)
    scorer, description = OnnxScorer(exported.path, device="auto", num_threads=0), fitted.description
    samples = find_category(root).test
    calibration = [Sample(Path(p), "good", False, None) for p in description.calibration_images]
    with card.timed("score"):
        speed = _score(samples or calibration, scorer, out=out, batch_size=batch_size, max_pixels=max_pixels)
    evaluation = None
    if len({s.label for s in samples}) == 2:
        with card.timed("test"):
            evaluation = _evaluate(samples, scorer, batch_size=batch_size, max_pixels=max_pixels, seed=seed)
        print(summary(evaluation))
        card.facts["result"] = evaluation.to_dict()
    with card.timed("draw synthetic defects"), progress_bar("draw synthetic defects") as report:
        images = [
            read_image(s.path, white=description.white, max_pixels=max_pixels) for s in calibration[:NUM_DRAWN_ON]
        ]
        own = calibration_scorers(scorer, range(len(images)))
        drawn = draw_and_score(images, scorers=own, num_each=NUM_DRAWN_EACH, seed=seed, report=report)
    page = out / "report.html"
    with card.timed("report"):
        rates, examples = measured_detection(drawn, scorer, short_side=min(images[0].shape[:2]))
        contents = Report(
            category=description.category,
            date=now(),
            training=training_of(description, inspection, detector, reason=reason, seconds=card.facts["seconds"]),
            guarantee=guarantee_of(description),
            calibration_scores=scorer.calibration.scores,
            labelled=labelled(evaluation, scorer, max_pixels=max_pixels),
            influential=influential(calibration, description, scorer),
            detection_rates=rates,
            defect_examples=examples,
            speed=(speed,),
            parity=parity_of(certificates[-1].values),
            provenance=provenance_of(scorer, hardware=card.facts["hardware"]),
            operating=operating_results(scorer.metadata.operating_points, evaluation=evaluation, drawn=drawn),
            outliers=description.outliers,
            suspects=suspect_pictures(fitted.folder),
        )
        write_report(page, contents)
    card.write(out / CARD_FILE)
    rate = contents.guarantee
    print(f"{page}: {rate}")
    return page


def _render_parts(root: Path, *, part: str, seed: int) -> Path:
    """Render a category of synthetic parts, or reuse the category of an earlier run with this seed."""
    if part not in PARTS:
        raise UsageError(f"part {part!r} is unknown; nearest: {nearest(part, PARTS)!r}; all: {', '.join(PARTS)}")
    root = root / f"seed-{seed}"
    if not (root / part).is_dir():
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"folder {root} cannot be made: {error.strerror}; choose another place") from error
        with progress_bar("render synthetic parts") as report, tempfile.TemporaryDirectory(dir=root) as unfinished:
            rendered = Path(unfinished) / "parts"  # an interrupted run leaves no incomplete category
            make_dataset(rendered, parts=(part,), seed=seed, progress=report, **NUM_SYNTHETIC)
            (rendered / part).replace(root / part)
    return root / part


def _score(samples: Sequence[Sample], scorer: OnnxScorer, *, out: Path, batch_size: int, max_pixels: int) -> Speed:
    """Score into tables and overlays of rejected images, like `anomaly score`, and measure the speed."""
    settings = Settings(threshold=THRESHOLD, batch_size=batch_size, max_pixels=max_pixels, num_threads=num_cpus())
    begin = time.perf_counter()
    scored = score_to_tables(
        source_of(Item(str(s.path)) for s in samples),
        scorers={DEFAULT_PRODUCT: scorer},
        settings=settings,
        out=[out / "scores.csv", out / "scores.parquet"],
        overlays=out / "overlays",
    )
    seconds = time.perf_counter() - begin
    return Speed(
        device=f"{hardware()['processor']}, {num_cpus()} cores, {scorer.provider}",
        batch_size=batch_size,
        images_per_second=scored.num_images / seconds,
        includes="Reading, decoding, resizing, the network, the regions, the tables and the overlays of rejected images.",
    )


def _evaluate(
    samples: Sequence[Sample], scorer: OnnxScorer, *, batch_size: int, max_pixels: int, seed: int
) -> Evaluation:
    evaluation = evaluate_samples(
        samples, scorer=scorer, resize=scorer.metadata.resize, white=scorer.metadata.white, threshold=THRESHOLD,
        max_pixels=max_pixels, batch_size=batch_size, seed=seed, operating_points=scorer.metadata.operating_points,
    )  # fmt: skip
    return replace(evaluation, guarantee=scorer.metadata.certified)
