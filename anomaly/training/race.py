"""A race between detectors on good images alone: the choice of a detector without test images.

A bounded number of good images trains each candidate. Held-out good images, and defects drawn onto them, give its scores
(`race_images`). `race_ranking` chooses. A fusion of the best candidates of two families races too, on the same scores.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from anomaly.data.folders import Sample
from anomaly.detectors.base import Detector
from anomaly.detectors.fusion import spread_of
from anomaly.detectors.memory_bank import MemoryBank
from anomaly.errors import DataError, TrainingError, UsageError
from anomaly.inference.artifact import Brightness
from anomaly.system.progress import progress_bar
from anomaly.training.candidates import Candidate, Entrants, find_entrants
from anomaly.training.race_bank import NUM_TIMED, RACE_BANK, measure_banks
from anomaly.training.race_images import DrawnImages, Image, RaceSplit, draw_defects, reduced, split_for_race
from anomaly.training.race_ranking import Measured, auroc, rank
from anomaly.training.race_record import LeftOut, Race
from anomaly.training.training_job import TrainingJob, options_for_images

LEAST_IMAGES = 10
"""Fewest good images for a race"""
NUM_FINALISTS = 3
"""Families whose best candidates are fused, two at a time"""
NUM_FOR_LIGHT = 20
"""Images whose mean grey levels are compared"""


@dataclass(frozen=True)
class Choice:
    """A chosen detector, and the race that chose it."""

    detector: str
    options: dict[str, Any]
    brightness: Brightness
    race: Race


def run_race(
    samples: Sequence[Sample],
    part_groups: Mapping[Path, str],
    *,
    job: TrainingJob,
    budget_ms: float | None = None,
    entrants: Entrants | None = None,
) -> Choice:
    """Choose a detector for good images; test images are never read.

    Args:
        samples: good images.
        part_groups: group of each image by its path; a group is never on both sides of the race.
        job: seed, device, region of interest, brightness and access to the images; its detector is not used.
        budget_ms: largest permitted time in milliseconds to score an image on one core; None for any.
        entrants: candidates; None takes those of `find_entrants`.

    Raises:
        UsageError: no candidate keeps the budget.
        DataError: all candidates failed on these images.
    """
    begin = time.perf_counter()
    parts = split_for_race(samples, part_groups, seed=job.seed)
    entrants = entrants or find_race_entrants(samples, part_groups, job=job)
    if len(samples) < LEAST_IMAGES or not parts.train or len(parts.held_out) < 2:
        num_groups = len({part_groups[s.path] for s in samples})
        few = f"{len(samples)} good images of {num_groups} parts are too few for a race of {LEAST_IMAGES}"
        return _without_race(entrants, few, budget_ms, begin)
    images = [reduced(job.images.read(s)) for s in parts.held_out]
    drawn = draw_defects(images, seed=job.seed)
    if not drawn.images:
        return _without_race(entrants, "no drawn defect is visible on these images", budget_ms, begin)
    measured, failed = _measure_all(entrants.candidates, parts, images, drawn, job=job)
    if not measured:
        raise DataError(
            f"no candidate can be trained on these {len(samples)} images: {failed[0].candidate}: {failed[0].reason}"
        )
    by_name = {c.name: c for c in entrants.candidates if c.name in measured}
    fusions = _fusions(by_name, measured, parts=parts, job=job)
    everyone = by_name | fusions
    winner, reason, rows = rank(
        {name: measured[name] for name in everyone}, bases=drawn.bases, budget_ms=budget_ms, seed=job.seed
    )
    race = Race(
        winner=winner,
        reason=reason,
        rows=rows,
        left_out=(*entrants.left_out, *failed),
        num_train=len(parts.train),
        num_held_out=len(images),
        num_drawn=len(drawn.images),
        budget_ms=budget_ms,
        seconds=round(time.perf_counter() - begin, 1),
    )
    chosen = everyone[winner]
    return Choice(chosen.detector, dict(chosen.options), chosen.brightness, race)


def find_race_entrants(samples: Sequence[Sample], part_groups: Mapping[Path, str], *, job: TrainingJob) -> Entrants:
    """Find the candidates for good images; arguments as in `run_race`."""
    parts = split_for_race(samples, part_groups, seed=job.seed)
    light = _spread_of_light([job.images.read(s) for s in parts.held_out[:NUM_FOR_LIGHT]])
    bank = options_for_images("memory_bank", {}, samples=samples, images=job.images, crops=False)
    return find_entrants(
        brightness=job.brightness, spread_of_light=light, num_train=len(parts.train), size=tuple(bank["size"])
    )


def _without_race(entrants: Entrants, cause: str, budget_ms: float | None, begin: float) -> Choice:
    """Take the simplest candidate where the images allow no race."""
    first = entrants.candidates[0]
    race = Race(
        winner=first.name,
        reason=f"{cause}; this is the default" + ("" if budget_ms is None else ", and its time was not measured"),
        rows=(),
        left_out=(*entrants.left_out, *(LeftOut(c.name, "no race") for c in entrants.candidates[1:])),
        num_train=0,
        num_held_out=0,
        num_drawn=0,
        budget_ms=budget_ms,
        seconds=round(time.perf_counter() - begin, 1),
    )
    return Choice(first.detector, dict(first.options), first.brightness, race)


def _measure_all(
    candidates: Sequence[Candidate], parts: RaceSplit, images: Sequence[Image], drawn: DrawnImages, *, job: TrainingJob
) -> tuple[dict[str, Measured], list[LeftOut]]:
    """Train and score the candidates, those with a shared bank together; failed ones are left out."""
    together: dict[tuple[str, str], list[Candidate]] = defaultdict(list)
    for candidate in candidates:
        together["bank" if candidate.bank else candidate.name, candidate.brightness].append(candidate)
    measured: dict[str, Measured] = {}
    failed: list[LeftOut] = []
    with progress_bar("race of detectors") as report:
        for number, shared in enumerate(together.values()):
            try:
                measured |= _measure(shared, parts, images, drawn, job=job)
            except (DataError, TrainingError, UsageError) as error:
                failed += [LeftOut(candidate.name, f"it failed: {error}") for candidate in shared]
            report(number + 1, len(together))
    return measured, failed


def _measure(
    shared: Sequence[Candidate], parts: RaceSplit, images: Sequence[Image], drawn: DrawnImages, *, job: TrainingJob
) -> dict[str, Measured]:
    largest = max(shared, key=lambda c: c.bank.num_backbones if c.bank else 0)
    options = {**largest.options, **largest.race_options}
    if largest.bank:
        options |= {**RACE_BANK, **largest.race_options, "position_scale": True}
    own = replace(
        job,
        name=largest.detector,
        options=options_for_images(largest.detector, options, samples=parts.train, images=job.images, crops=False),
        brightness=largest.brightness,
    )
    begin = time.perf_counter()
    model = own.fit(parts.train)
    seconds = time.perf_counter() - begin
    if largest.bank:
        choices = {c.name: c.bank for c in shared if c.bank}
        return measure_banks(cast("MemoryBank", model), choices, good=images, drawn=drawn.images, fit_seconds=seconds)
    return {largest.name: measure_detector(model, images, drawn.images, fit_seconds=seconds)}


@torch.no_grad()
def measure_detector(model: Detector, good: Sequence[Image], drawn: Sequence[Image], *, fit_seconds: float) -> Measured:
    """Score images by a trained detector, and time it on one core.

    Args:
        model: trained detector.
        good: held-out good images (H, W, 3) uint8 RGB.
        drawn: images with drawn defects.
        fit_seconds: duration of the training.
    """
    model.eval()
    begin = time.perf_counter()
    scores = []
    for image in (*good, *drawn):
        raw = model.anomaly(model.preprocess(torch.from_numpy(image)[None]))
        scores.append((float(raw.score[0]), float(raw.anomaly_map.max())))
    seconds = fit_seconds + time.perf_counter() - begin
    times, num_threads = [], torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for image in good[:NUM_TIMED]:
            begin = time.perf_counter()
            model.anomaly(model.preprocess(torch.from_numpy(image)[None]))
            times.append(1000 * (time.perf_counter() - begin))
    finally:
        torch.set_num_threads(num_threads)
    values = np.array(scores)
    return Measured(
        good=values[: len(good), 0],
        good_peak=values[: len(good), 1],
        drawn=values[len(good) :, 0],
        milliseconds=float(np.median(times)),
        seconds=seconds,
    )


def _fusions(
    candidates: Mapping[str, Candidate], measured: dict[str, Measured], *, parts: RaceSplit, job: TrainingJob
) -> dict[str, Candidate]:
    """Fuse the best candidates of different families, two at a time; their outputs are added to `measured`."""
    best: dict[str, str] = {}
    value = {name: auroc(measured[name].good, measured[name].drawn) for name in candidates}
    for name, candidate in candidates.items():
        if candidate.detector == "fusion":  # has no further fusion as a member
            continue
        if candidate.family not in best or value[name] > value[best[candidate.family]]:
            best[candidate.family] = name
    finalists = sorted(best.values(), key=lambda name: -value[name])[:NUM_FINALISTS]
    found = {}
    for pair in combinations(finalists, 2):
        name = f"fusion of {pair[0]} and {pair[1]}"
        members = [
            {
                "detector": candidates[one].detector,
                "options": options_for_images(
                    candidates[one].detector,
                    candidates[one].options,
                    samples=parts.train,
                    images=job.images,
                    crops=False,
                ),
                "brightness": candidates[one].brightness,
            }
            for one in pair
        ]
        scales = [[*spread_of(measured[one].good), *spread_of(measured[one].good_peak)] for one in pair]
        measured[name] = fuse([measured[one] for one in pair])
        found[name] = Candidate(
            name,
            "fusion",
            {"members": members, "scales": scales},
            job.brightness,
            "fusion",
        )
    return found


def fuse(members: Sequence[Measured]) -> Measured:
    """Compute the outputs of a fusion from those of its members."""

    def total(attribute: str) -> NDArray[np.float64]:
        parts = []
        for member in members:
            reference = member.good_peak if attribute == "good_peak" else member.good
            offset, scale = spread_of(reference)
            parts.append((getattr(member, attribute) - offset) / scale)
        return np.asarray(sum(parts))

    return Measured(
        good=total("good"),
        good_peak=total("good_peak"),
        drawn=total("drawn"),
        milliseconds=sum(member.milliseconds for member in members),
        seconds=0.0,
    )


def _spread_of_light(images: Sequence[Image]) -> float:
    """Relative deviation of the mean grey levels of images."""
    levels = np.array([float(image.mean()) for image in images])
    return float(levels.std() / max(float(levels.mean()), 1.0)) if len(levels) else 0.0
