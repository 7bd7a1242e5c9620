"""Extension of a memory bank beside a fit on all images: image AUROC, false alarms, misses, calibrated scores, seconds.

    ANOMALY_DATA=DATA python -m benchmarks.extend --out benchmarks/results/extend.json

Every second training image of a set gives a model, which is exported. `extend` adds the other images in ONNX Runtime:
once without the first images, and once with them (`good`). Both are compared with a fit on all images, on the test set.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly.data.folders import Sample, find_category
from anomaly.evaluation.evaluate import score_samples
from anomaly.export.model_file import export_files
from anomaly.inference.scorer import OnnxScorer
from anomaly.metrics import auroc
from anomaly.recalibration.extend import extend
from anomaly.system.progress import progress_bar, show_progress
from anomaly.system.run_card import RunCard
from anomaly.training.fit import fit_model

SETS = ("mvtec_ad/bottle", "mvtec_ad/capsule", "aws_cookie/cookie")
MAX_PIXELS = 10**8
Scores = NDArray[np.float32]


def halves(samples: tuple[Sample, ...], folder: Path) -> tuple[Path, Path]:
    """Copy every second image into one of two folders."""
    both = folder / "first", folder / "second"
    for at, half in enumerate(both):
        half.mkdir()
        for sample in samples[at::2]:
            shutil.copy(sample.path, half / sample.path.name)
    return both


def figures(path: Path, test: tuple[Sample, ...], labels: NDArray[np.bool_]) -> tuple[Scores, dict[str, Any]]:
    """Score the test images by a file, and compute its figures."""
    scorer = OnnxScorer(path, device="cpu", num_threads=0)
    scores, _, _ = score_samples(test, scorer=scorer, white=scorer.metadata.white, max_pixels=MAX_PIXELS, batch_size=4)
    bank = scorer.metadata.bank
    assert bank is not None
    return scores, {
        "image_auroc": round(100 * auroc(scores, labels), 2),
        "num_false_alarms": int((scores[~labels] > 1).sum()),
        "num_misses": int((scores[labels] <= 1).sum()),
        "alpha": scorer.metadata.alpha,
        "num_calibration": scorer.metadata.calibration.num_images,
        "rows": [len(part.image) for part in bank.backbones],
        "bytes": path.stat().st_size,
    }


def compare(root: Path, *, seed: int) -> dict[str, Any]:
    """Compare an extension with a fit on all images of one category."""
    category = find_category(root)
    labels = np.array([s.label for s in category.test])
    seconds: dict[str, float] = {}

    def timed(name: str, begin: float) -> None:
        seconds[name] = round(time.perf_counter() - begin, 1)

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        first, second = halves(category.train, folder)
        begin = time.perf_counter()
        fitted = fit_model(root, out=folder / "all", detector="memory_bank", seed=seed)
        timed("fit_all", begin)
        files = {"fit on all": export_files(fitted).path}
        begin = time.perf_counter()
        half = export_files(fit_model(first, out=folder / "half", detector="memory_bank", seed=seed)).path
        timed("fit_half", begin)
        files["fit on half"] = half
        begin = time.perf_counter()
        files["extended"] = extend(half, second, out=folder / "extended.onnx").path
        timed("extend", begin)
        begin = time.perf_counter()
        again = extend(half, second, out=folder / "again.onnx", good=first)
        files["extended, earlier images scored again"] = again.path
        timed("extend_and_score_again", begin)
        found = {name: figures(path, category.test, labels) for name, path in files.items()}
    reference = found["fit on all"][0]
    results = {}
    for name, (scores, values) in found.items():
        change = np.abs(scores - reference)
        results[name] = values | {
            "correlation_with_fit_on_all": round(float(np.corrcoef(scores, reference)[0, 1]), 4),
            "largest_change_of_score": round(float(change.max()), 3),
            "mean_change_of_score": round(float(change.mean()), 3),
            "num_changed_verdicts": int(((scores > 1) != (reference > 1)).sum()),
        }
    return {"num_train": len(category.train), "num_test": len(labels), "seconds": seconds, "models": results}


def main() -> None:
    """Run the comparison and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--sets", nargs="+", default=list(SETS), help="categories below ANOMALY_DATA")
    parser.add_argument("--seed", type=int, default=0, help="seed of the fits")
    options = parser.parse_args()
    card = RunCard("extend", config={"sets": options.sets, "seed": options.seed})
    card.facts["result"] = {}
    with show_progress(), progress_bar("sets") as report:
        for number, name in enumerate(options.sets):
            card.facts["result"][name] = compare(Path(os.environ["ANOMALY_DATA"]) / name, seed=options.seed)
            report(number + 1, len(options.sets))
            card.write(options.out)


if __name__ == "__main__":
    main()
