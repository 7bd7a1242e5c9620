"""Crash recovery: runs killed at random moments and resumed, compared byte by byte with an undisturbed run.

    python -m benchmarks.crash_recovery MODEL.onnx IMAGES... --out benchmarks/results/crash_recovery.json [--runs 50]

Each run scores the same few hundred files with a real model in a separate process. It is killed (SIGKILL) at a random moment
between its start and its usual end, and resumed, until it ends. Its files are then compared with those of the undisturbed
run. The ledger and the manifest hold dates and are left out.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from anomaly.runs.run_files import LEDGER, LOCK, MANIFEST, check_manifest, hash_files, read_ledger
from anomaly.system.run_card import RunCard
from benchmarks.command_line import command
from benchmarks.throughput import link_images

FORMATS = ("csv", "jsonl", "parquet")


def start(arguments: argparse.Namespace, images: Path, run: Path, format: str) -> subprocess.Popen[bytes]:
    """Start a run, or resume it."""
    score = command("score", arguments.model, images, "--run", run, "--format", format, "--device", "cpu")
    score += ["--overlays-of", "all", "--maps"] if format == "csv" else []
    score += ["--resume"] if run.exists() and read_ledger(run) else []
    return subprocess.Popen(score, stderr=subprocess.DEVNULL)


def contents(run: Path) -> dict[str, str]:
    """Hashes of the files that must not depend on interruptions."""
    return {name: value for name, value in hash_files(run).items() if name not in (LEDGER, MANIFEST, LOCK)}


def main() -> None:
    """Kill and resume runs, compare them, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("images", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--num", type=int, default=1000, help="number of images per run")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    card = RunCard(
        "benchmarks/crash_recovery.py", config={"runs": arguments.runs, "num": arguments.num, "seed": arguments.seed}
    )
    draw = random.Random(arguments.seed)
    kills: list[int] = []
    progress: list[float] = []
    different: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "images"
        link_images(list(arguments.images), place, num=arguments.num)
        whole, usual = {}, {}
        for format in FORMATS:
            begin = time.perf_counter()
            if start(arguments, place, Path(folder) / format, format).wait():
                raise SystemExit(f"the undisturbed run failed; try `anomaly score {arguments.model}` on the images")
            usual[format] = time.perf_counter() - begin
            whole[format] = contents(Path(folder) / format)
        for number in range(arguments.runs):
            format, run = FORMATS[number % len(FORMATS)], Path(folder) / f"run{number}"
            kills.append(0)
            while not (run / MANIFEST).exists():
                process = start(arguments, place, run, format)
                try:
                    process.wait(draw.uniform(0.0, usual[format] * (0.9 + 0.1 * kills[-1])))
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
                    kills[-1] += 1
                    done = [entry["done"] for entry in read_ledger(run) if "done" in entry] if run.exists() else []
                    progress.append((done[-1] if done else 0) / arguments.num)
            check_manifest(run)
            found = contents(run)
            if found != whole[format]:
                names = sorted(n for n in {*found, *whole[format]} if found.get(n) != whole[format].get(n))
                different.append({"run": number, "format": format, "files": names})
            print(
                f"run {number + 1} of {arguments.runs}: killed {kills[-1]} times, {len(different)} differ", flush=True
            )
    card.facts["result"] = {
        "num_runs": arguments.runs,
        "num_killed_runs": sum(1 for count in kills if count),
        "num_kills": sum(kills),
        "share_done_at_kills": {
            "nothing yet": sum(1 for share in progress if share == 0),
            "under way": sum(1 for share in progress if 0 < share < 1),
            "all rows, no manifest": sum(1 for share in progress if share == 1),
        },
        "num_different": len(different),
        "different": different,
    }
    card.write(arguments.out)
    print(card.facts["result"])


if __name__ == "__main__":
    main()
