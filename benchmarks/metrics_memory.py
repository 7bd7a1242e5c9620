"""Measure time and peak memory of the exact pixel metrics on a set too large to keep.

Maps are drawn on the fly from seeds: 12 of 17 images have four square defects that cover 5 % of their pixels. Every
pixel is standard normal noise, one unit higher in a defect.

    python -m benchmarks.metrics_memory --images 1700 --size 1024 --out benchmarks/results/metrics_memory.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

import anomaly
from anomaly.metrics import Estimate, PixelMetrics, pixel_metrics

SEED = 0


def draw_images(num_images: int, *, size: int) -> Iterator[tuple[NDArray[np.float32], NDArray[np.bool_]]]:
    """Draw anomaly maps and masks of (size, size) pixels, the same at every call."""
    half = size // 2
    side = round(size * np.sqrt(0.05) / 2)
    for index in range(num_images):
        rng = np.random.default_rng([SEED, index])
        anomaly_map = rng.standard_normal((size, size), dtype=np.float32)
        mask = np.zeros((size, size), np.bool_)
        if index % 17 < 12:
            for corner_y, corner_x in ((0, 0), (0, half), (half, 0), (half, half)):
                y, x = rng.integers((corner_y, corner_x), (corner_y + half - side, corner_x + half - side))
                mask[y : y + side, x : x + side] = True
        anomaly_map[mask] += 1
        yield anomaly_map, mask


def record(metrics: PixelMetrics, *, size: int, seconds: float) -> dict[str, object]:
    """Put the measurement, its values and what it ran on into one JSON-ready dictionary."""

    def plain(estimate: Estimate) -> dict[str, object]:
        return {"value": estimate.value, "interval": list(estimate.interval)}

    to_bytes = 1 if sys.platform == "darwin" else 1024
    return {
        "seconds": round(seconds, 1),
        "peak_rss_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * to_bytes / 2**30, 3),
        "size": size,
        "num_images": metrics.num_images,
        "num_normal": metrics.num_normal,
        "num_defect": metrics.num_defect,
        "num_regions": metrics.num_regions,
        "values": {
            "auroc": plain(metrics.auroc),
            "average_precision": plain(metrics.average_precision),
            "f1_max": plain(metrics.f1_max),
            **{f"aupro_{threshold:.2f}": plain(estimate) for threshold, estimate in metrics.aupro.items()},
        },
        "curve_points": metrics.curve.fpr.size,
        "seed": SEED,
        "machine": {"system": platform.system(), "machine": platform.machine(), "num_cpus": os.cpu_count()},
        "versions": {
            "anomaly": anomaly.__version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "opencv": cv2.__version__,
        },
    }


def main() -> None:
    """Run the measurement and write its record."""
    parser = argparse.ArgumentParser(description="Time and peak memory of the exact pixel metrics.")
    parser.add_argument("--images", type=int, default=1700)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/metrics_memory.json"))
    options = parser.parse_args()

    start = time.perf_counter()
    metrics = pixel_metrics(lambda: draw_images(options.images, size=options.size), seed=SEED)
    result = record(metrics, size=options.size, seconds=time.perf_counter() - start)

    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"{result['seconds']} s, {result['peak_rss_gib']} GiB: {options.out}")


if __name__ == "__main__":
    main()
