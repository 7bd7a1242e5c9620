"""The race of detectors beside test labels: its choice, and the test AUROC of every candidate after a full fit.

    ANOMALY_DATA=DATA python -m benchmarks.race --out benchmarks/results/race.json

For each set, the race chooses on good images alone. Then every candidate is fitted on all good images and scores the test
images, once. The labels choose nothing; they show how far the choice lies from the best candidate. Candidates with a shared
bank share the full fit too. Sets that the output file holds already are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

from anomaly.data.folders import Sample, find_category
from anomaly.data.splits import find_part_groups
from anomaly.detectors.memory_bank import MemoryBank
from anomaly.system.progress import show_progress
from anomaly.system.run_card import RunCard
from anomaly.training.candidates import Candidate, Entrants
from anomaly.training.race import find_race_entrants, measure_detector, run_race
from anomaly.training.race_bank import measure_banks
from anomaly.training.race_ranking import Measured, auroc
from anomaly.training.training_job import ImageReader, TrainingJob, options_for_images

SETS = (
    "mvtec_ad/bottle", "mvtec_ad/screw", "mvtec_ad/capsule", "kolektorsdd/commutator", "piped_paper/PA_BDP01_TL",
    "piped_paper/PA_BFT01_TL", "piped_paper/PA_BRG01_RL", "piped_paper/PA_BTN01_RL", "piped_paper/PA_FLR01_TL",
    "piped_paper/PA_FVN01_TL", "aws_cookie/cookie",
)  # fmt: skip
PART_GROUPS = {"kolektorsdd/commutator": r"kos\d+"}
"""Set -> expression that names the part of an image"""


def full_fits(
    entrants: Entrants, samples: Sequence[Sample], test: Sequence[Sample], *, job: TrainingJob, without: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Fit every candidate on all good images; give its test AUROC and seconds."""
    good = [job.images.read(s) for s in test if not s.label]
    defects = [job.images.read(s) for s in test if s.label]
    found: dict[str, dict[str, float]] = {}
    banks = {c.brightness: [d for d in entrants.candidates if d.bank and d.brightness == c.brightness]
             for c in entrants.candidates if c.bank}  # fmt: skip
    for shared in banks.values():
        largest = max(shared, key=lambda c: c.bank.num_backbones if c.bank else 0)
        model, seconds = fit(largest, {"position_scale": True}, samples, job=job)
        choices = {c.name: c.bank for c in shared if c.bank}
        measured = measure_banks(cast("MemoryBank", model), choices, good=good, drawn=defects, fit_seconds=seconds)
        found |= {name: row(m, seconds=seconds) for name, m in measured.items()}
    for candidate in entrants.candidates:
        if candidate.bank or any(word in candidate.name for word in without):
            continue
        model, seconds = fit(candidate, {}, samples, job=job)
        found[candidate.name] = row(measure_detector(model, good, defects, fit_seconds=seconds), seconds=seconds)
    return found


def fit(
    candidate: Candidate, more: dict[str, Any], samples: Sequence[Sample], *, job: TrainingJob
) -> tuple[Any, float]:
    """Fit a candidate in full; give the detector and the seconds."""
    options = options_for_images(
        candidate.detector, {**candidate.options, **more}, samples=samples, images=job.images, crops=False
    )
    begin = time.perf_counter()
    model = replace(job, name=candidate.detector, options=options, brightness=candidate.brightness).fit(samples)
    return model, time.perf_counter() - begin


def row(measured: Measured, *, seconds: float) -> dict[str, float]:
    """Test AUROC, seconds of the fit, and milliseconds per image of one candidate."""
    return {
        "test_auroc": auroc(measured.good, measured.drawn),
        "fit_seconds": round(seconds, 1),
        "milliseconds": round(measured.milliseconds, 1),
    }


def compare(root: Path, *, part_group: str | None, seed: int, without: Sequence[str]) -> dict[str, Any]:
    """Race on one set, then fit all of its candidates and score its test images."""
    category = find_category(root)
    samples = [*category.train, *category.calibration_images]
    images = ImageReader(white=255, max_pixels=10**8, cache_gib=1.0)
    job = TrainingJob(name="auto", options={}, images=images, seed=seed)
    groups = find_part_groups(samples, root=category.root, part_group=part_group)
    entrants = find_race_entrants(samples, groups, job=job)
    kept = tuple(c for c in entrants.candidates if not any(word in c.name for word in without))
    entrants = Entrants(kept, entrants.left_out)
    choice = run_race(samples, groups, job=job, entrants=entrants)
    found = full_fits(entrants, samples, category.test, job=job, without=without)
    if choice.race.winner not in found:  # a fusion
        winner = Candidate(choice.race.winner, choice.detector, choice.options, choice.brightness, "fusion")
        found |= full_fits(Entrants((winner,), ()), samples, category.test, job=job, without=())
    best = max(found, key=lambda name: found[name]["test_auroc"])
    seconds = sum({r["fit_seconds"]: r["fit_seconds"] for r in found.values()}.values())
    return {
        "race": asdict(choice.race),
        "candidates": found,
        "best_by_labels": best,
        "points_below_best": 100 * (found[best]["test_auroc"] - found[choice.race.winner]["test_auroc"]),
        "race_seconds": choice.race.seconds,
        "full_fits_seconds": round(seconds, 1),
    }


def main() -> None:
    """Compare the race with the labels on every set, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=os.environ.get("ANOMALY_DATA"))
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--without", nargs="*", default=[], help="words in the names of candidates that do not race")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.data is None:
        parser.error("set ANOMALY_DATA, or give --data")
    card = RunCard("benchmarks/race.py", config={k: v for k, v in vars(arguments).items() if k != "data"})
    earlier = json.loads(arguments.out.read_text(encoding="utf-8"))["result"] if arguments.out.exists() else {}
    card.facts["result"] = earlier
    with show_progress():
        for name in arguments.sets:
            if name in earlier:
                continue
            result = compare(
                arguments.data / name, part_group=PART_GROUPS.get(name), seed=arguments.seed, without=arguments.without
            )
            card.facts["result"][name] = result
            card.write(arguments.out)
            print(
                f"{name}: {result['race']['winner']}, {result['points_below_best']:.1f} points below"
                f" {result['best_by_labels']}; {result['race_seconds']:.0f} s beside {result['full_fits_seconds']:.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
