"""Coverage of the false-alarm guarantee, by resampling: how often a calibrated threshold keeps its bound.

    python -m benchmarks.guarantee_coverage --out benchmarks/results/guarantee_coverage.json

One detector is fitted on synthetic good parts. Its exported file scores other good parts. These are split at random many
times, into images for calibration and images for counting false alarms.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly.conformal.guarantee import GuaranteeKind, guarantee_for, tightest_alpha
from anomaly.conformal.scale import fit_scale
from anomaly.data.folders import find_category
from anomaly.data.synthetic import make_dataset
from anomaly.evaluation.evaluate import score_samples
from anomaly.export.model_file import export_model
from anomaly.inference.scorer import OnnxScorer
from anomaly.system.run_card import RunCard
from anomaly.training.fit import fit_model

NUM_SPLITS = 500


def coverage(
    scores: NDArray[np.float64], *, num_calibrate: int, alpha: float, guarantee: GuaranteeKind
) -> dict[str, Any]:
    """Mean rate and share of violated bounds over random splits of the scores (n,)."""
    rng = np.random.default_rng(0)
    guaranteed = guarantee_for(num_calibrate, alpha=alpha, guarantee=guarantee)
    bound = guaranteed.rate_bound
    assert bound is not None, "a split calibration has a bound"
    rates = []
    for _ in range(NUM_SPLITS):
        order = rng.permutation(len(scores))
        scale = fit_scale(scores[order[:num_calibrate]], alpha=alpha, guarantee=guarantee)
        rates.append(float((scores[order[num_calibrate:]] > scale.offset + scale.scale).mean()))
    violated = float(np.mean(np.array(rates) > bound))
    # only the true rate is bounded; the rate of finitely many images scatters about it, so draw both
    true_rates = rng.beta(num_calibrate + 1 - guaranteed.rank, guaranteed.rank, 100_000)
    num_counted = len(scores) - num_calibrate
    expected = float(np.mean(rng.binomial(num_counted, true_rates) / num_counted > bound))
    return {
        "num_calibrate": num_calibrate,
        "alpha": alpha,
        "guarantee": guarantee,
        "expected_rate": guaranteed.expected_rate,
        "mean_rate": float(np.mean(rates)),
        "mean_rate_at_most": alpha + 3 * float(np.std(rates)) / math.sqrt(NUM_SPLITS),
        "rate_bound": bound,
        "bound_violated": violated,
        "bound_violated_foreseen": expected,
        "bound_violated_at_most": expected + 3 * math.sqrt(expected * (1 - expected) / NUM_SPLITS),
    }


def main() -> None:
    """Fit once, score once, split many times, and write the rates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--part", default="textile")
    parser.add_argument("--detector", default="autoencoder")
    parser.add_argument("--num-good", type=int, default=1000)
    arguments = parser.parse_args()
    card = RunCard("benchmarks/guarantee_coverage.py", config=vars(arguments))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_dataset(
            root / "data", parts=(arguments.part,), num_train=120, num_test_good=arguments.num_good, num_test_defect=0,
            size=256, seed=0,
        )  # fmt: skip
        fitted = fit_model(
            root / "data" / arguments.part, out=root / "run", detector=arguments.detector, precision="fastest"
        )
        scorer = OnnxScorer(export_model(fitted), device="cpu", num_threads=0)
        good = [s for s in find_category(root / "data" / arguments.part).test if not s.label]
        scores = score_samples(good, scorer=scorer, white=255, max_pixels=10**8, batch_size=8)[0].astype(np.float64)
    card.facts["result"] = [
        coverage(scores, num_calibrate=n, alpha=max(alpha, tightest_alpha(n, guarantee=guarantee)), guarantee=guarantee)
        for n in (20, 50, 99, 200, 299)
        for alpha in (0.05, 0.01)
        for guarantee in ("expected", "bound")
    ]
    card.write(arguments.out)
    for row in card.facts["result"]:
        print(row)


if __name__ == "__main__":
    main()
