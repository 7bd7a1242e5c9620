"""The run card of the review page: the run's settings, the guarantees of its models, and commands that use the labels."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from anomaly.runs.models import RunModels
from anomaly.runs.review_session import ReviewSession
from anomaly.runs.run_files import SUMMARY
from anomaly.runs.training_review import EXCLUDE_FILE, THRESHOLD, TrainingReview


def run_card(session: ReviewSession, *, models: RunModels) -> dict[str, Any]:
    """Describe a run as JSON values.

    Args:
        session: run with its labels.
        models: models of the run.
    """
    settings = models.options
    summary = json.loads((session.run / SUMMARY).read_text(encoding="utf-8"))
    return {
        "kind": "run",
        "name": session.run.resolve().name,
        "date": models.date,
        "source": settings["source"],
        "threshold": settings["threshold"],
        "review_threshold": settings["review_threshold"],
        "counts": session.counts(),
        "models": [
            {
                "sha256": model.sha256,
                "detector": model.metadata.detector,
                "category": model.metadata.category,
                "precision": model.metadata.precision,
                "alpha": model.metadata.alpha,
                "guarantee": model.metadata.guarantee,
                "threshold": settings["threshold"],
                "expected_rate": model.metadata.certified.expected_rate,
                "basis": model.metadata.certified.basis,
                "num_calibration": model.metadata.calibration.num_images,
                "num_part_groups": model.metadata.certified.num_groups,
                "calibration_date": model.metadata.calibration.date,
            }
            for model in models.all
        ],
        "drift": [
            {"product": "" if product == "all" else product, "alarmed": drift["alarmed"], "cause": drift["cause"],
             "first_alarm": drift["first_alarm"], "num_images": drift["num_scored"]}
            for product, drift in summary.get("drift", {}).items()
        ],
        "labels_file": str(_relative_labels_file(session)),
        "by": session.by,
        "commands": _commands(session, models),
    }  # fmt: skip


def training_card(session: TrainingReview) -> dict[str, Any]:
    """Describe the training images of a fitted model as JSON values, with the keys of `run_card`.

    Args:
        session: review of the training images.
    """
    ranking, folder = session.ranking, str(session.folder)
    again, listed = f"{folder.rstrip('/')}-again", session.folder / EXCLUDE_FILE
    return {
        "kind": "training",
        "name": session.folder.resolve().name,
        "date": "",
        "source": ranking["data"],
        "threshold": THRESHOLD,
        "review_threshold": None,
        "counts": session.counts(),
        "models": [],
        "drift": [],
        "labels_file": str(listed),
        "by": session.by,
        "reason": ranking["reason"],
        "threshold_without": ranking["threshold_without"],
        "commands": [
            f"anomaly fit {shlex.quote(ranking['data'])} --detector {shlex.quote(ranking['detector'])}"
            f" --exclude {shlex.quote(str(listed))} --out {shlex.quote(again)}"
        ],
    }


def _relative_labels_file(session: ReviewSession) -> Path:
    """The file of labels, relative if the path of the run is relative."""
    beside = session.run.with_name(session.file.name) if session.run.name else session.file
    return beside if beside.resolve() == session.file else session.file


def _commands(session: ReviewSession, models: RunModels) -> list[str]:
    """Commands that use the labels: calibrate the run's model into a new file, score again, and compare both runs."""
    run = str(session.run)
    again = f"{run.rstrip('/')}-again"
    labelled = f"--labels {shlex.quote(str(_relative_labels_file(session)))}"
    if len(models.all) != 1 or len(models.options["models"]) != 1 or models.options["by_product"]:
        return [f"anomaly calibrate MODEL.onnx {labelled} --out NEW-MODEL.onnx"]
    new = f"{run.rstrip('/')}-recalibrated.onnx"
    return [
        f"anomaly calibrate {shlex.quote(str(models.all[0].path))} {labelled} --out {shlex.quote(new)}",
        f"anomaly score {shlex.quote(new)} {shlex.quote(models.options['source'])} --run {shlex.quote(again)}",
        f"anomaly diff {shlex.quote(run)} {shlex.quote(again)}",
    ]
