"""Runs that are killed at random moments and resumed: how many give other bytes than a run that was left alone.

    python -m benchmarks.crash_recovery MODEL.onnx IMAGES... --out benchmarks/results/crash_recovery.json [--runs 50]

Each run scores the same few hundred files with a real model in a process of its own, is killed (SIGKILL) at a random moment
between its start and the usual end, again and again until it ends, and is compared file by file with the run that was left
alone; the ledger and the manifest, which hold dates, apart.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from anomaly.runs.run_files import LEDGER, LOCK, MANIFEST, check_manifest, hash_files, read_ledger
from anomaly.system.run_card import RunCard
from benchmarks.throughput import MAIN, link_images

FORMATS = ("csv", "jsonl", "parquet")


def begin(asked: argparse.Namespace, images: Path, run: Path, kind: str) -> subprocess.Popen[bytes]:
    """Start a run, or go on with it."""
    command = ["score", str(asked.model), str(images), "--run", str(run), "--format", kind, "--device", "cpu"]
    command += ["--overlays-of", "all", "--maps"] if kind == "csv" else []
    command += ["--resume"] if run.exists() and read_ledger(run) else []
    return subprocess.Popen([sys.executable, "-c", MAIN, *command], stderr=subprocess.DEVNULL)


def contents(run: Path) -> dict[str, str]:
    """Hashes of what must not depend on interruptions."""
    return {name: value for name, value in hash_files(run).items() if name not in (LEDGER, MANIFEST, LOCK)}


def main() -> None:
    """Kill, resume, compare, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("images", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--num", type=int, default=1000, help="images of a run")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    card = RunCard("benchmarks/crash_recovery.py", config={"runs": asked.runs, "num": asked.num, "seed": asked.seed})
    draw = random.Random(asked.seed)
    kills: list[int] = []
    progress: list[float] = []
    different: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "images"
        link_images(list(asked.images), place, num=asked.num)
        whole, usual = {}, {}
        for kind in FORMATS:
            start = time.perf_counter()
            if begin(asked, place, Path(folder) / kind, kind).wait():
                raise SystemExit(f"the run that was left alone ended with an error: score {asked.model} by hand")
            usual[kind] = time.perf_counter() - start
            whole[kind] = contents(Path(folder) / kind)
        for number in range(asked.runs):
            kind, run = FORMATS[number % len(FORMATS)], Path(folder) / f"run{number}"
            kills.append(0)
            while not (run / MANIFEST).exists():
                process = begin(asked, place, run, kind)
                try:
                    process.wait(draw.uniform(0.0, usual[kind] * (0.9 + 0.1 * kills[-1])))
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
                    kills[-1] += 1
                    done = [entry["done"] for entry in read_ledger(run) if "done" in entry] if run.exists() else []
                    progress.append((done[-1] if done else 0) / asked.num)
            check_manifest(run)
            found = contents(run)
            if found != whole[kind]:
                names = sorted(n for n in {*found, *whole[kind]} if found.get(n) != whole[kind].get(n))
                different.append({"run": number, "format": kind, "files": names})
            print(f"run {number + 1} of {asked.runs}: killed {kills[-1]} times, {len(different)} differ", flush=True)
    card.facts["result"] = {
        "num_runs": asked.runs,
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
    card.write(asked.out)
    print(card.facts["result"])


if __name__ == "__main__":
    main()
