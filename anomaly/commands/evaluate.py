"""The verb `evaluate`: figures of a model on labelled images, printed and written as JSON."""

from __future__ import annotations

from pathlib import Path

import cv2

from anomaly.evaluation.evaluate import Evaluation, summary
from anomaly.evaluation.evaluate import evaluate as evaluate_model
from anomaly.inference.session import Device
from anomaly.system.run_card import RunCard


def evaluate(
    model: Path,
    data: Path,
    *,
    out: Path,
    device: Device = "auto",
    batch_size: int = 8,
    max_pixels: int = 100_000_000,
    seed: int = 0,
) -> Evaluation:
    """Evaluate a model on the labelled test images of a category, and write the figures as JSON.

    Args:
        model: exported .onnx file, or folder of a fitted model.
        data: category in a known layout.
        out: JSON file to write.
        device: device of an .onnx file: auto, cpu, cuda or tensorrt.
        batch_size: images per inference; a tiled model takes one image at a time.
        max_pixels: largest width × height that is decoded.
        seed: seed of the resampling for the intervals.

    Raises:
        DataError: labelled images are missing or cannot be used.
        ModelError: a model that cannot be loaded.
    """
    card = RunCard("evaluate", config=dict(locals()))
    cv2.setNumThreads(0)
    with card.timed("evaluate"):
        evaluation = evaluate_model(model, data, device=device, batch_size=batch_size, max_pixels=max_pixels, seed=seed)
    card.facts["result"] = {"model": str(model), "category": evaluation.category, **evaluation.to_dict()}
    card.write(out)
    return evaluation


def show(evaluation: Evaluation) -> None:
    """Print the figures."""
    print(summary(evaluation))
