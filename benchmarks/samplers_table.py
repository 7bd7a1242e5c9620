"""The table of the samplers, from their measured figures.

python -m benchmarks.samplers_table benchmarks/results/samplers benchmarks/SAMPLERS.md
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

HEAD = """# Samplers: quality and speed

`python -m benchmarks.samplers` measures the figures, and `python -m benchmarks.samplers_table` writes this page from
`benchmarks/results/samplers`.

* One seed. The shipped configurations (`configs/samplers/`) train the samplers. ONNX Runtime draws from the
  exported file on a CPU.
* Distances are between drawn images and the good images of the category (training and calibration). They use
  {features}. Compare only rows of one category and size.
* `nearest` is the median distance of a drawn image to the nearest training image in grey levels. The last column is the
  same for the calibration images. A sampler with a far smaller distance memorises.
* Bits per dimension are those of the calibration images at 8 bits per value. PixelCNN has its own number of levels.
"""
COLUMNS = (
    "sampler", "px", "Fréchet", "kernel", "precision", "recall", "nearest", "bits/dim", "fit s", "s/image", "ms/step",
    "ONNX / torch", "peak MiB", "parity",
)  # fmt: skip


def row(name: str, facts: dict[str, Any]) -> tuple[str, ...]:
    """Make one row of the table."""
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
    """Make the whole page."""
    features = ""
    lines = []
    for category in sorted(path for path in results.iterdir() if path.is_dir()):
        found = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(category.glob("*.json"))}
        if not found:
            continue
        first = next(iter(found.values()))
        features = first["result"]["features"]
        machine = first["hardware"]
        lines.append(f"\n## {category.name}\n")
        lines.append(
            f"{machine['processor']}, {first['result']['num_threads']} thread;"
            f" {first['result']['num_train']} training images, {first['result']['num_calibration']} calibration images,"
            f" {first['result']['num_drawn']} drawn. Calibration to training images:"
            f" Fréchet {first['result']['frechet of calibration to train']:.3f} (at the first row's size).\n"
        )
        lines.append("| " + " | ".join(COLUMNS) + " | nearest of calibration |")
        lines.append("| --- " * (len(COLUMNS) + 1) + "|")
        for name, facts in sorted(found.items(), key=lambda item: item[1]["result"]["frechet"]):
            nearest = f"{facts['result']['nearest training image of calibration']:.1f}"
            lines.append("| " + " | ".join((*row(name, facts), nearest)) + " |")
    return HEAD.format(features=features) + "\n".join(lines) + "\n"


if __name__ == "__main__":
    source, out = (Path(argument) for argument in sys.argv[1:3])
    out.write_text(table(source), encoding="utf-8")
