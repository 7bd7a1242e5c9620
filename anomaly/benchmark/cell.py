"""One cell of a benchmark in its own process: fit, export, verify, evaluate the exported file, profile, look for leaks.

python -m anomaly.benchmark.cell CELL.json DATA OUT.json
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from anomaly.benchmark.leaks import find_leaks, num_checks
from anomaly.benchmark.plan import Cell
from anomaly.benchmark.roles import Roles
from anomaly.benchmark.shortcuts import measure_shortcuts
from anomaly.data.folders import Category, find_category
from anomaly.errors import ParityError
from anomaly.evaluation.evaluate import THRESHOLD, evaluate_samples
from anomaly.export.acceptance import Bounds
from anomaly.export.model_file import export_model
from anomaly.export.parity import check_certificate, compare_files
from anomaly.imaging.image_file import read_image
from anomaly.imaging.statistics import image_statistics
from anomaly.inference.scorer import OnnxScorer
from anomaly.system.files import write_json
from anomaly.system.run_card import RunCard
from anomaly.training.fit import fit_model
from anomaly.training.fitted_model import Description, FittedModel

MAX_PIXELS = 100_000_000
TIMING_SECONDS = 2.0
"""Longest timing of one batch size; at least three runs are made"""


def measure(cell: Cell, *, data: Path, folder: Path) -> dict[str, Any]:
    """Measure one cell.

    Args:
        cell: request.
        data: folder of the data sets.
        folder: empty folder for the fitted model.

    Returns:
        JSON values: versions, hardware, seconds, counts, figures with intervals, parity and leaks.
    """
    category = find_category(data / cell.category)
    card = RunCard("benchmark", config={})
    begin = time.perf_counter()
    fitted = fit_model(
        data / cell.category,
        out=folder / "fitted",
        detector=cell.detector,
        options=cell.model,
        seed=cell.seed,
        part_group=cell.part_group,
        precision=cell.precision,
        suspects="none",
        **cell.fit,
    )
    seconds = {key: fitted.seconds[key] for key in ("fit", "calibrate")}
    seconds["fit with everything"] = round(time.perf_counter() - begin, 3)
    with card.timed("export"):
        model = export_model(fitted)
    with card.timed("verify"):
        parity = _parity(fitted)
    description = fitted.description
    scorer = OnnxScorer(model, device="auto", num_threads=cell.threads)
    with card.timed("test"):
        evaluation = evaluate_samples(
            category.test, scorer=scorer, resize=scorer.metadata.resize, white=scorer.metadata.white,
            threshold=THRESHOLD, max_pixels=MAX_PIXELS, batch_size=8, seed=0,
            operating_points=scorer.metadata.operating_points,
        )  # fmt: skip
    evaluation = replace(evaluation, guarantee=scorer.metadata.certified)
    leaks, num_made = _leaks(cell, category, description, data=data)
    shortcuts = _shortcuts(category, description)
    return {
        "status": "ok",
        "message": "",
        "config": description.config | cell.fit,
        "versions": card.facts["versions"],
        "hardware": card.facts["hardware"],
        "commit": card.facts["commit"],
        "date": card.facts["date"],
        "seconds": seconds | card.facts["seconds"],
        "seconds_per_image": _seconds_per_image(scorer, category, threads=cell.threads),
        "counts": {
            "train": len(description.train),
            "calibration_images": len(description.calibration_images),
            "stopping": len(description.stopping),
            "test_good": sum(not s.label for s in category.test),
            "test_defect": sum(s.label for s in category.test),
        },
        "bytes": model.stat().st_size,
        "sha256": scorer.sha256,
        "figures": evaluation.to_dict(),
        "parity": parity,
        "leaks": leaks,
        "num_checks": num_made,
        "shortcuts": shortcuts,
    }


def _parity(fitted: FittedModel) -> dict[str, Any]:
    """Give the certificate's figures, and the reason of a refusal."""
    certificate = compare_files(fitted)[-1]
    refused = ""
    try:
        check_certificate(certificate, bounds=Bounds(auroc_loss=0.0, flips=0.0))
    except ParityError as error:
        refused = str(error).replace(f"{fitted.folder}/", "")
    return {key: certificate.values[key] for key in ("score", "map", "num_flips", "provider")} | {"refused": refused}


def _seconds_per_image(scorer: OnnxScorer, category: Category, *, threads: int) -> dict[str, float | int]:
    """Measure median seconds per image at batch sizes 1 and 16, on raw images of one size."""
    images = [read_image(s.path, white=scorer.metadata.white, max_pixels=MAX_PIXELS) for s in category.test[:16]]
    images = [image for image in images if image.shape == images[0].shape]
    found: dict[str, float | int] = {"threads": threads}
    for batch_size in (1, 16):
        batch = np.stack([images[n % len(images)] for n in range(batch_size)])
        scorer.score(batch)  # warm up
        runs: list[float] = []
        while len(runs) < 3 or (sum(runs) < TIMING_SECONDS and len(runs) < 20):
            begin = time.perf_counter()
            scorer.score(batch)
            runs.append(time.perf_counter() - begin)
        found[f"batch_{batch_size}"] = round(statistics.median(runs) / batch_size, 6)
    return found


def _leaks(cell: Cell, category: Category, description: Description, *, data: Path) -> tuple[list[dict[str, Any]], int]:
    """Find the leaks in the protocol of this cell, and count the checks."""
    left_out = None
    if description.calibration.construction != "split":
        left_out = dict(zip(map(Path, description.train), description.train_part_groups, strict=True))
    selection = [s.path for name in cell.chosen_on for s in find_category(data / name).test]
    roles = Roles(
        train=tuple(Path(p) for p in description.train),
        calibration=tuple(Path(p) for p in description.calibration_images),
        stopping=tuple(Path(p) for p in description.stopping),
        selection=tuple(selection),
        test_good=tuple(s.path for s in category.test if not s.label),
        test_defect=tuple(s.path for s in category.test if s.label),
        masks=tuple((s.path, s.mask_path) for s in category.test if s.mask_path is not None),
        part_group=cell.part_group,
        root=category.root,
        labels_from="folder",
        mask_size="own",
        left_out=left_out,
    )
    found = find_leaks(roles, near_duplicates=True, max_pixels=MAX_PIXELS)
    return [asdict(leak) for leak in found], num_checks(roles, near_duplicates=True)


def _shortcuts(category: Category, description: Description) -> dict[str, dict[str, float]]:
    """Measure the separation of the test set by statistics of whole images."""

    def measured(paths: Iterable[Path]) -> list[dict[str, float]]:
        return [image_statistics(read_image(p, white=description.white, max_pixels=MAX_PIXELS)) for p in paths]

    return measure_shortcuts(
        train=measured(Path(p) for p in description.train),
        good=measured(s.path for s in category.test if not s.label),
        defect=measured(s.path for s in category.test if s.label),
    )


def main() -> None:
    """Measure the cell that the arguments name and write its JSON file."""
    request, data, out = (Path(argument) for argument in sys.argv[1:4])
    values = json.loads(request.read_text(encoding="utf-8"))
    cell = Cell(**{**values, "chosen_on": tuple(values["chosen_on"])})
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        write_json(out, measure(cell, data=data, folder=Path(folder)))


if __name__ == "__main__":
    main()
