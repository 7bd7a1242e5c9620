"""The verb `evaluate`: figures of a model on labelled images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2

from anomaly.data.folders import find_category
from anomaly.evaluation.evaluate import evaluate as evaluate_samples
from anomaly.evaluation.evaluate import summary
from anomaly.inference.scorer import OnnxScorer, Scorer
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
) -> dict[str, Any]:
    """Test a model on the labelled images of a category and write the figures as JSON.

    Args:
        model: an exported .onnx file, or a run folder with the trained model.
        data: a category in MVTec layout.
        out: the JSON file to write.
        device: auto, cpu, cuda or tensorrt, for an .onnx file.
        batch_size: images per inference; a model of windows takes one image at a time.
        max_pixels: largest width × height that is decoded.
        seed: of the resampling behind the intervals.

    Returns:
        The figures.

    Raises:
        DataError: no labelled images.
        ModelError: a model that cannot be loaded.
    """
    card = RunCard("evaluate", config=dict(locals()))
    scorer: Scorer
    if model.is_dir():
        from anomaly.training.torch_scorer import TorchScorer  # torch only where a run folder is tested

        scorer = torch_scorer = TorchScorer(model)
        resize, white, category = torch_scorer.resize, torch_scorer.white, torch_scorer.category
        tiling = torch_scorer.description.tiling
    else:
        scorer = onnx_scorer = OnnxScorer(model, device=device, num_threads=0)
        metadata = onnx_scorer.metadata
        resize, white, category, tiling = metadata.resize, metadata.white, metadata.category, metadata.tiling
    cv2.setNumThreads(0)
    samples = find_category(data).test
    with card.timed("evaluate"):
        evaluation = evaluate_samples(
            samples, scorer=scorer, resize=resize, white=white, threshold=1.0, max_pixels=max_pixels,
            batch_size=1 if tiling else batch_size, seed=seed,
        )  # fmt: skip
    figures = {"model": str(model), "category": category, **evaluation.to_dict()}
    card.facts["result"] = figures
    card.write(out)
    print(summary(evaluation))
    return figures
