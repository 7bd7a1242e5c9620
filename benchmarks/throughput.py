"""Batch scoring end to end from files on disk, against the bound that decoding and inference set together; and its memory.

    python -m benchmarks.throughput MODEL.onnx IMAGES... --out benchmarks/results/throughput.json [--device cuda]
    python -m benchmarks.throughput MODEL.onnx IMAGES... --memory 1000,100000 --out benchmarks/results/batch_memory.json

IMAGES are a few images; they are scored many times under other names (hard links). Decoding alone, inference alone and
the whole run take turns, and a run over one image, from the start of its process to its verdict. On a CPU both share the
cores, so the bound is cores / (decode + inference core-seconds an image); on a GPU it is the slower of the two. Memory is the
largest resident set of a process of its own.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from anomaly.imaging.image_file import read_image
from anomaly.inference.scorer import OnnxScorer
from anomaly.runs.run_files import SUMMARY
from anomaly.system.processors import num_cpus
from anomaly.system.run_card import RunCard

MAIN = "import sys; from anomaly.commands.main import run; sys.exit(run(sys.argv[1:]))"
MAX_PIXELS = 100_000_000


def link_images(images: list[Path], folder: Path, *, num: int) -> None:
    """Fill a folder with `num` names for a few images: the first copies, all others hard links to these."""
    folder.mkdir()
    copies = []
    for index in range(num):
        source = images[index % len(images)]
        name = folder / f"{index:07d}{source.suffix}"
        if index < len(images):
            name.write_bytes(source.read_bytes())
            copies.append(name)
        else:
            os.link(copies[index % len(images)], name)


def core_seconds(work: Any, *, num: int) -> float:
    """Processor seconds of this process that one image takes."""
    before = time.process_time()
    work()
    return (time.process_time() - before) / num


def seconds_of(asked: argparse.Namespace, images: Path, options: list[str]) -> float:
    """Seconds of a whole `anomaly score`, from the start of its process to its end."""
    command = ["score", str(asked.model), str(images), "--batch-size", str(asked.batch_size), "--device", asked.device]
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", MAIN, *command, *options], check=True, stderr=subprocess.DEVNULL)
    return time.perf_counter() - begin


def speed(asked: argparse.Namespace) -> dict[str, Any]:
    """Core-seconds of decoding and of inference, and images a second end to end, in turn."""
    scorer = OnnxScorer(asked.model, device=asked.device, num_threads=0)
    names = ("decode", "infer", "end_to_end", "infer_wall", "decode_wall", "first_verdict")
    found: dict[str, list[float]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "images"
        link_images(list(asked.images), place, num=asked.num)
        paths = sorted(place.iterdir())
        ready = np.repeat(read_image(paths[0], white=255, max_pixels=MAX_PIXELS)[None], asked.batch_size, axis=0)
        cv2.setNumThreads(0)

        def decode() -> None:
            with ThreadPoolExecutor(num_cpus()) as pool:
                list(pool.map(lambda p: read_image(p, white=255, max_pixels=MAX_PIXELS).shape, paths))

        def infer() -> None:
            for _ in range(max(1, asked.num // asked.batch_size)):
                scorer.score(ready)

        scorer.score(ready)
        for number in range(asked.rounds):
            for name, work in (("decode", decode), ("infer", infer)):
                begin = time.perf_counter()
                found[name].append(core_seconds(work, num=asked.num))
                found[f"{name}_wall"].append((time.perf_counter() - begin) / asked.num)
            run = Path(folder) / f"run{number}"
            taken = seconds_of(asked, place, ["--run", str(run), "--overlays-of", "none"])
            found["end_to_end"].append(asked.num / taken)
            assert (run / SUMMARY).exists()
            found["first_verdict"].append(seconds_of(asked, paths[0], ["--out", str(Path(folder) / "one.csv")]))
    middle = {name: statistics.median(values) for name, values in found.items()}
    if asked.device == "cpu":
        bound = num_cpus() / (middle["decode"] + middle["infer"])
    else:
        bound = 1 / max(middle["decode_wall"], middle["infer_wall"])
    return {
        "core_ms_decode": round(1e3 * middle["decode"], 2),
        "core_ms_infer": round(1e3 * middle["infer"], 2),
        "images_per_second": round(middle["end_to_end"], 2),
        "bound": round(bound, 2),
        "of_bound": round(middle["end_to_end"] / bound, 3),
        "of_bound_after_the_first_verdict": round(
            (asked.num - 1) / (asked.num / middle["end_to_end"] - middle["first_verdict"]) / bound, 3
        ),
        "seconds_to_first_verdict": round(middle["first_verdict"], 2),
        "note": "end to end counts the start of the process, the drift watch and every commit to the disk",
    }


def memory(asked: argparse.Namespace) -> dict[str, Any]:
    """Largest resident set of a run over so many images, each in a process of its own, and whether a row was lost."""
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for num in (int(part) for part in asked.memory.split(",")):
            place, run = Path(folder) / f"images{num}", Path(folder) / f"run{num}"
            link_images(list(asked.images), place, num=num)
            code = (
                "import resource, subprocess, sys;"
                f" subprocess.run([sys.executable, '-c', {MAIN!r}, *sys.argv[1:]], stderr=subprocess.DEVNULL);"
                " print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
            )
            command = [
                "score",
                str(asked.model),
                str(place),
                "--run",
                str(run),
                "--overlays-of",
                "none",
                "--device",
                "cpu",
            ]
            begin = time.perf_counter()
            told = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, check=True)
            rows = sum(1 for _ in (run / "rows.csv").open(encoding="utf-8")) - 1
            result[str(num)] = {
                "peak_mib": round(int(told.stdout.split()[-1]) / 1024, 1),
                "rows": rows,
                "images_per_second": round(num / (time.perf_counter() - begin), 1),
            }
    peaks = [line["peak_mib"] for line in result.values()]
    result["last_over_first"] = round(peaks[-1] / peaks[0], 4)
    return result


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("images", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--num", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--memory", default="", help="numbers of images, e.g. 1000,100000, in place of the speed")
    asked = parser.parse_args()
    card = RunCard("benchmarks/throughput.py", config={**vars(asked), "images": [path.name for path in asked.images]})
    card.facts["config"]["model"] = asked.model.name
    card.facts["result"] = memory(asked) if asked.memory else speed(asked)
    card.write(asked.out)
    print(card.facts["result"])


if __name__ == "__main__":
    main()
