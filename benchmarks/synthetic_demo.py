"""The demo on synthetic parts, by kind of part and defect: image AUROC, false-alarm rate at the threshold, misses.

python -m benchmarks.synthetic_demo --out benchmarks/results/synthetic_demo.json
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from anomaly.data.synthetic import PARTS
from anomaly.system.run_card import RunCard
from benchmarks.command_line import command


def main() -> None:
    """Run the demo for every kind of part, and write its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--detector", default="auto")
    arguments = parser.parse_args()
    card = RunCard("benchmarks/synthetic_demo.py", config=vars(arguments))
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for part in PARTS:
            out = Path(folder) / part
            subprocess.run(command("demo", "--out", out, "--part", part, "--detector", arguments.detector), check=True)
            facts = json.loads((out / "run.json").read_text(encoding="utf-8"))
            figures = facts["result"]
            result[part] = {
                "image_auroc": figures["image"]["auroc"],
                "pixel_auroc": figures["pixel"]["auroc"],
                "false_alarms": figures["false_alarms"],
                "misses": figures["misses"],
                "above_threshold_by_kind": figures["kinds"],
                "seconds": facts["seconds"],
            }
            card.facts["result"] = result
            card.write(arguments.out)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
