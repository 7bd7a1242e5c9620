"""The choice of a detector: by its name, or `auto` by a race on good images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from anomaly.data.folders import Sample
from anomaly.errors import UsageError
from anomaly.training.race import run_race
from anomaly.training.race_record import Race
from anomaly.training.training_job import TrainingJob

AUTO = "auto"
"""Name that stands for the winner of a race"""
BY_NAME = "requested by name"


def check_request(detector: str, options: Mapping[str, Any] | None, *, budget_ms: float | None, tiled: bool) -> None:
    """Check the request for a detector before any image is read.

    Args:
        detector: name of a detector or a sampler, or `auto`.
        options: requested options of its constructor.
        budget_ms: largest permitted time to score an image in milliseconds; None for any.
        tiled: whether large images are scored in tiles or windows.

    Raises:
        UsageError: options, tiles or windows for `auto`, an invalid budget, or a budget for a named detector.
    """
    if budget_ms is not None and not budget_ms > 0:
        raise UsageError(f"budget_ms {budget_ms}: give a number of milliseconds above 0, e.g. 50")
    if detector != AUTO:
        if budget_ms is not None:
            raise UsageError(f"budget_ms chooses among detectors, and {detector!r} is requested: use --detector auto")
        return
    if options:
        raise UsageError(
            f"options {', '.join(sorted(options))} for detector 'auto': the race sets them; name a detector, e.g."
            " --detector memory_bank"
        )
    if tiled:
        raise UsageError(
            "tiles and windows need a detector by name: the race scores whole images; e.g. --detector fastflow"
        )


def choose_job(
    job: TrainingJob, samples: Sequence[Sample], part_groups: Mapping[Path, str], *, budget_ms: float | None
) -> tuple[TrainingJob, Race | None]:
    """Replace `auto` by the winner of a race.

    Args:
        job: requested training; any name other than `auto` stays.
        samples: good images.
        part_groups: group of each image by its path.
        budget_ms: largest permitted time to score an image in milliseconds; None for any.

    Returns:
        The training of the chosen detector, and the race; None without a race.

    Raises:
        UsageError: no candidate keeps the budget.
        DataError: all candidates failed on these images.
    """
    if job.name != AUTO:
        return job, None
    choice = run_race(samples, part_groups, job=job, budget_ms=budget_ms)
    return replace(job, name=choice.detector, options=choice.options, brightness=choice.brightness), choice.race


def reason_for(race: Race | None) -> str:
    """Reason for the choice of a detector, from its race; None without a race."""
    return BY_NAME if race is None else f"{race.winner}: {race.reason}"
