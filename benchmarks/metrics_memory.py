"""Time and peak memory of the exact pixel metrics on a set too large for memory.

    python -m benchmarks.metrics_memory --images 1700 --size 1024 --out benchmarks/results/metrics_memory.json

Maps are drawn from seeds when they are needed. 12 of 17 images have four square defects on 5 % of their pixels. Every pixel is
standard normal noise, one unit higher in a defect.
"""

from __future__ import annotations

import argparse
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
from anomaly.system.files import write_json

SEED = 0


def draw_images(num_images: int, *, size: int) -> Iterator[tuple[NDArray[np.float32], NDArray[np.bool_]]]:
    """Draw anomaly maps and masks of (size, size) pixels, equal at every call."""
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
    """Collect the measurement, its values, the machine and the versions as JSON values."""

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
            **{f"aupro_{limit:.2f}": plain(estimate) for limit, estimate in metrics.aupro.items()},
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
    """Run the measurement, and write its record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1700)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/metrics_memory.json"))
    arguments = parser.parse_args()

    start = time.perf_counter()
    metrics = pixel_metrics(lambda: draw_images(arguments.images, size=arguments.size), seed=SEED)
    result = record(metrics, size=arguments.size, seconds=time.perf_counter() - start)

    write_json(arguments.out, result)
    print(f"{result['seconds']} s, {result['peak_rss_gib']} GiB: {arguments.out}")


if __name__ == "__main__":
    main()
