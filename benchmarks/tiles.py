"""Large images: difference between stitched and whole anomaly maps, and memory by image size.

    python -m benchmarks.tiles --out benchmarks/results/tiles.json

Detectors are fitted on drawn images of a woven web and exported. The exported file scores a web of 2000 × 1500 pixels with a
defect. The difference is in calibrated and in raw units, and once with half of the halo as a control. Memory is the peak of a
separate process that scores one image with `anomaly score`, and of the same process without an image.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from anomaly.export.model_file import export_model
from anomaly.imaging.image_file import write_png
from anomaly.inference.artifact import calibration_tensors, load_graph
from anomaly.inference.scorer import OnnxScorer
from anomaly.inference.tiles import score_tiled
from anomaly.system.run_card import RunCard
from anomaly.training.fit import fit_model

NUM_IMAGES, HEIGHT, WIDTH = 24, 640, 800
TILE = 512
DETECTORS: dict[str, dict[str, Any]] = {
    "autoencoder": {"size": 128, "width": 16, "standardise": False, "epochs": 3},
    "frozen_features": {"size": 256, "num_patches": 1024, "pooling": "maximum"},
}
SCORED = ((2000, 2000), (2000, 8000))
CHILD = """
import pathlib, re, runpy, sys
from anomaly.inference.scorer import OnnxScorer
model, image, out = sys.argv[1:]
if image:
    sys.argv = ["anomaly", "score", model, image, "--out", out, "--device", "cpu"]
    try:
        runpy.run_module("anomaly", run_name="__main__")
    except SystemExit as end:
        assert not end.code
else:
    OnnxScorer(pathlib.Path(model), device="cpu", num_threads=1)
status = pathlib.Path("/proc/self/status").read_text()
print(int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) / 1024)
"""
"""Reads the peak from /proc, because the peak of `getrusage` includes the memory of the parent process"""


def draw_web(*, height: int, width: int, seed: int) -> NDArray[np.uint8]:
    """Draw a woven web under uneven light, (height, width, 3) uint8 RGB."""
    rng = np.random.default_rng(seed)
    warp = np.sin(np.arange(width) / 3 + rng.uniform(0, 6))
    weft = np.sin(np.arange(height) / 4 + rng.uniform(0, 6))
    web = 120 + 22 * warp[None] + 22 * weft[:, None] + 10 * warp[None] * weft[:, None]
    web += cv2.resize(rng.uniform(-12, 12, (4, 5)), (width, height), interpolation=cv2.INTER_CUBIC)
    web += rng.normal(0, 3, (height, width))
    return np.repeat(np.clip(np.rint(web), 0, 255).astype(np.uint8)[..., None], 3, axis=2)


def with_defect(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Draw a dark knot and a bright line onto a web, in place."""
    height, width = image.shape[:2]
    cv2.circle(image, (width * 2 // 3, height // 3), 14, (60, 50, 50), -1)
    cv2.line(image, (width // 5, height // 2), (width // 5 + 160, height // 2), (210, 210, 210), 3)
    return image


def difference(model: Path) -> dict[str, float]:
    """Measure the difference between scoring a large image in tiles and in one piece, through an exported file."""
    scorer = OnnxScorer(model, device="cpu", num_threads=1)
    tiling = scorer.metadata.tiling
    assert tiling is not None
    image = with_defect(draw_web(height=1500, width=2000, seed=10_000))[None]
    whole = tiling.with_tile(height=1500 + -1500 % tiling.stride, width=2000 + -2000 % tiling.stride)
    half = tiling.halo[0] // 2 // tiling.stride * tiling.stride
    narrow = replace(tiling, window=[TILE + 2 * half, TILE + 2 * half])
    stitched, whole_map, narrow_map = (
        score_tiled(scorer.score_windows, image, tiling=plan)[1].astype(np.float64) for plan in (tiling, whole, narrow)
    )
    scale = calibration_tensors(load_graph(model))["scale_map"]
    return {
        "stride": tiling.stride,
        "halo": tiling.halo[0],
        "score": float(whole_map.max()),
        "largest_difference": float((np.abs(stitched - whole_map) / np.maximum(1.0, np.abs(whole_map))).max()),
        "largest_difference_raw": float(np.abs(stitched - whole_map).max()) * scale,
        "largest_difference_with_half_the_halo": float(
            (np.abs(narrow_map - whole_map) / np.maximum(1.0, np.abs(whole_map))).max()
        ),
    }


def peak_mib(model: Path, image: Path | None) -> float:
    """Measure the peak memory in MiB of a process that loads a model and scores at most one image."""
    out = model.with_name("rows.csv")
    child = [sys.executable, "-c", CHILD, str(model), str(image or ""), str(out)]
    output = subprocess.run(child, capture_output=True, text=True, check=True)
    return round(float(output.stdout.splitlines()[-1]), 1)


def main() -> None:
    """Fit and export the detectors, measure them, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    card = RunCard("benchmarks/tiles.py", config=vars(arguments) | {"tile": TILE, "detectors": DETECTORS})
    result: dict[str, Any] = {"difference": {}, "memory": {}}
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder, "web")
        images.mkdir()
        for n in range(NUM_IMAGES):
            write_png(images / f"{n:02d}.png", draw_web(height=HEIGHT, width=WIDTH, seed=n))
        models = {}
        for name, options in DETECTORS.items():
            fitted = fit_model(
                images, out=Path(folder, name), detector=name, options=options, tile=f"{TILE},{TILE}", device="cpu"
            )
            models[name] = export_model(fitted)
            result["difference"][name] = difference(models[name])
            print(name, result["difference"][name])
        model = models["autoencoder"]
        empty = peak_mib(model, None)
        for height, width in SCORED:
            image = Path(folder, f"{width}.png")
            write_png(image, with_defect(draw_web(height=height, width=width, seed=20_000)))
            peak = peak_mib(model, image)
            pixels = height * width / 2**20
            result["memory"][f"{width}x{height}"] = {
                "peak_mib": peak,
                "beyond_loading_mib": round(peak - empty, 1),
                "image_and_map_mib": round(7 * pixels, 1),  # three bytes and a float32 per pixel
            }
            print(width, height, result["memory"][f"{width}x{height}"])
    card.facts["result"] = result
    card.write(arguments.out)


if __name__ == "__main__":
    main()
