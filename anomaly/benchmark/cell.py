"""One cell of a benchmark in a process of its own: fit, export, verify, test through the exported file, time, look for leaks.

python -m anomaly.benchmark.cell CELL.json DATA OUT.json
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from anomaly.benchmark.leaks import Roles, find_leaks, num_checks
from anomaly.benchmark.plan import Cell
from anomaly.benchmark.shortcuts import measure_shortcuts
from anomaly.data.folders import Category, find_category
from anomaly.errors import ParityError
from anomaly.evaluation.evaluate import evaluate
from anomaly.export.detector import export
from anomaly.export.parity import verify
from anomaly.imaging.image_file import read_image
from anomaly.imaging.statistics import image_statistics
from anomaly.inference.scorer import OnnxScorer
from anomaly.system.files import write_json
from anomaly.system.run_card import RunCard
from anomaly.training.fit import fit
from anomaly.training.fitted_model import Description, load

MAX_PIXELS = 100_000_000
TIMING_SECONDS = 2.0
"""Most time for one batch size's timing; at least three runs are made"""


def measure(cell: Cell, *, data: Path, folder: Path) -> dict[str, Any]:
    """Measure one cell.

    Args:
        cell: what to measure.
        data: folder of the data sets.
        folder: an empty folder for the run.

    Returns:
        The cell's JSON: what was asked, versions, hardware, seconds, counts, figures with intervals, parity and leaks.
    """
    category = find_category(data / cell.category)
    card = RunCard("benchmark", config={})
    begin = time.perf_counter()
    run = fit(
        data / cell.category,
        out=folder / "run",
        detector=cell.detector,
        model=cell.model,
        seed=cell.seed,
        part_group=cell.group or None,
        precision=cell.precision,
        **cell.fit,
    )
    fitted = json.loads((run / "run.json").read_text(encoding="utf-8"))
    seconds = {key: fitted["seconds"][key] for key in ("fit", "calibrate")}
    seconds["fit with everything"] = round(time.perf_counter() - begin, 3)
    with card.timed("export"):
        model = export(run)
    with card.timed("verify"):
        parity = _parity(run)
    _, description = load(run)
    scorer = OnnxScorer(model, device="auto", num_threads=cell.threads)
    with card.timed("test"):
        evaluation = evaluate(
            category.test, scorer=scorer, resize=scorer.metadata.resize, white=scorer.metadata.white, threshold=1.0,
            max_pixels=MAX_PIXELS, batch_size=8, seed=0,
        )  # fmt: skip
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
        "seconds_per_image": _timed(scorer, category, threads=cell.threads),
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


def _parity(run: Path) -> dict[str, Any]:
    """The certificate's figures; one that refuses is a figure too."""
    refused = ""
    try:
        certificate = verify(run)
    except ParityError as error:
        refused = str(error).replace(f"{run}/", "")
        certificate = json.loads((run / "model.certificate.json").read_text(encoding="utf-8"))
    return {key: certificate[key] for key in ("score", "map", "num_flips", "provider")} | {"refused": refused}


def _timed(scorer: OnnxScorer, category: Category, *, threads: int) -> dict[str, float | int]:
    """Median seconds per image of the exported file at batch 1 and 16, from raw images of the first one's size."""
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
    """What the linter finds in the protocol of this cell, and how many checks it made."""
    looked_at = [s.path for name in cell.chosen_on for s in find_category(data / name).test]
    roles = Roles(
        train=tuple(Path(p) for p in description.train),
        threshold_from=tuple(Path(p) for p in description.calibration_images),
        stopping=tuple(Path(p) for p in description.stopping),
        chosen_by=tuple(looked_at),
        test_good=tuple(s.path for s in category.test if not s.label),
        test_defect=tuple(s.path for s in category.test if s.label),
        masks=tuple((s.path, s.mask_path) for s in category.test if s.mask_path is not None),
        group=cell.group,
        root=category.root,
        labels_from="folder",
        mask_size="own",
    )
    found = find_leaks(roles, near_duplicates=True, max_pixels=MAX_PIXELS)
    return [asdict(leak) for leak in found], num_checks(roles, near_duplicates=True)


def _shortcuts(category: Category, description: Description) -> dict[str, dict[str, float]]:
    """What the test set of this cell tells without a detector."""

    def measured(paths: Iterable[Path]) -> list[dict[str, float]]:
        return [image_statistics(read_image(p, white=description.white, max_pixels=MAX_PIXELS)) for p in paths]

    return measure_shortcuts(
        train=measured(Path(p) for p in description.train),
        good=measured(s.path for s in category.test if not s.label),
        defect=measured(s.path for s in category.test if s.label),
    )


def main() -> None:
    """Measure the cell that the arguments name and write its JSON."""
    asked, data, out = (Path(argument) for argument in sys.argv[1:4])
    values = json.loads(asked.read_text(encoding="utf-8"))
    cell = Cell(**{**values, "chosen_on": tuple(values["chosen_on"])})
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        write_json(out, measure(cell, data=data, folder=Path(folder)))


if __name__ == "__main__":
    main()
