"""The table of the samplers from their measured figures.

python -m benchmarks.samplers_table benchmarks/results/samplers benchmarks/SAMPLERS.md
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

HEAD = """# Samplers: quality and speed

Made by `python -m benchmarks.samplers_table` from `benchmarks/results/samplers`; `python -m benchmarks.samplers` measured it.
One seed; trained by the shipped configurations (`configs/samplers/`), drawn from the exported file through ONNX Runtime on the
CPU. Distances are between drawn images and the good images of the category (trained on and held out), on
{features}; they compare rows of one category and size only. `nearest` is the median distance of a drawn image to the
nearest training image in grey levels, against that of calibration images: far below it, a sampler memorises. Bits per
dimension are of calibration images at 8 bits a value (PixelCNN: at its own number of levels).
"""
COLUMNS = (
    "sampler", "px", "Fréchet", "kernel", "precision", "recall", "nearest", "bits/dim", "fit s", "s/image", "ms/step",
    "ONNX / torch", "peak MiB", "parity",
)  # fmt: skip


def row(name: str, facts: dict[str, Any]) -> tuple[str, ...]:
    """One line of the table."""
    r = facts["result"]
    bits, step = r["bits per dimension"], r.get("seconds per step and image")
    return (
        name,
        str(r["size"][0]),
        f"{r['frechet']:.3f}",
        f"{1000 * r['kernel']:.2f}e-3",
        f"{r['precision']:.2f}",
        f"{r['recall']:.2f}",
        f"{r['nearest training image']:.1f}",
        "" if bits is None else f"{'≤ ' if r['density'] == 'bound' else ''}{bits:.2f}",
        f"{facts['seconds']['fit']:.0f}",
        f"{r['seconds per image']:.3g}",
        "" if step is None else f"{1000 * step:.1f}",
        f"{r['onnx over torch']:.2f}",
        f"{r['peak MiB of drawing']:.0f}",
        f"{max(r['parity'].values()):.0e}",
    )


def table(results: Path) -> str:
    """The whole document."""
    features = ""
    parts = []
    for category in sorted(path for path in results.iterdir() if path.is_dir()):
        found = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(category.glob("*.json"))}
        if not found:
            continue
        some = next(iter(found.values()))
        features = some["result"]["features"]
        machine = some["hardware"]
        parts.append(f"\n## {category.name}\n")
        parts.append(
            f"{machine['processor']}, {some['result']['num_threads']} thread;"
            f" {some['result']['num_train']} images to train, {some['result']['num_calibration']} held out,"
            f" {some['result']['num_drawn']} drawn. Held out to train:"
            f" Fréchet {some['result']['frechet of calibration to train']:.3f} (at the first row's size).\n"
        )
        parts.append("| " + " | ".join(COLUMNS) + " | nearest of calibration |")
        parts.append("| --- " * (len(COLUMNS) + 1) + "|")
        for name, facts in sorted(found.items(), key=lambda item: item[1]["result"]["frechet"]):
            calibration_images = f"{facts['result']['nearest training image of calibration']:.1f}"
            parts.append("| " + " | ".join((*row(name, facts), calibration_images)) + " |")
    return HEAD.format(features=features) + "\n".join(parts) + "\n"


if __name__ == "__main__":
    source, out = (Path(argument) for argument in sys.argv[1:3])
    out.write_text(table(source), encoding="utf-8")
