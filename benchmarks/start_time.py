"""Start of the package: seconds of the import and of `--help`, and the packages that the import loads.

    python -m benchmarks.start_time --out benchmarks/results/start_time.json

Figures are medians of nine processes each, in turn. `bare python` is the start of Python itself. `packages` are the top-level
modules that `import anomaly` loads beyond those of a bare Python, from `-X importtime`.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

from anomaly.system.run_card import RunCard
from benchmarks.command_line import command

NUM_RUNS = 9
IMPORT = "import anomaly"
COMMANDS = {
    "bare python": [sys.executable, "-c", ""],
    "import anomaly": [sys.executable, "-c", IMPORT],
    "anomaly --help": command("--help"),
}


def seconds_of(process: list[str]) -> float:
    """Measure the seconds of a process."""
    begin = time.perf_counter()
    subprocess.run(process, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def loaded(code: str) -> set[str]:
    """List the top-level modules that a line of Python loads."""
    process = [sys.executable, "-X", "importtime", "-c", code]
    lines = subprocess.run(process, check=True, capture_output=True, text=True).stderr.splitlines()
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in lines[1:]}


def main() -> None:
    """Measure the start, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    card = RunCard("benchmarks/start_time.py", config={"runs": NUM_RUNS})
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(NUM_RUNS):
        for name, process in COMMANDS.items():
            seconds[name].append(seconds_of(process))
    card.facts["result"] = {
        "seconds": {name: round(statistics.median(runs), 4) for name, runs in seconds.items()},
        "packages": sorted(loaded(IMPORT) - loaded("")),
    }
    card.write(arguments.out)
    print(card.facts["result"])


if __name__ == "__main__":
    main()
