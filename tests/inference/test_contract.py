from __future__ import annotations

from pathlib import Path

import numpy as np

from anomaly.inference.scorer import OnnxScorer


def test_exported_model_scores_defects_above_good(category: Path, model: Path) -> None:
    from anomaly.evaluation.evaluate import test as evaluate

    figures = evaluate(model, category, out=model.with_suffix(".json"))
    assert figures["image"]["auroc"]["value"] == 1.0
    assert np.isfinite(OnnxScorer(model, device="cpu", num_threads=0).metadata.golden.score)
