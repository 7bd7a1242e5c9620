"""Throughput and memory of batch scoring from files on disk, against the bound of decoding and inference.

    python -m benchmarks.throughput MODEL.onnx IMAGES... --out benchmarks/results/throughput.json [--device cuda]
    python -m benchmarks.throughput MODEL.onnx IMAGES... --memory 1000,100000 --out benchmarks/results/batch_memory.json

IMAGES are a few images, scored many times under other names (hard links). Four measurements take turns: decoding alone,
inference alone, the whole run, and a run over one image with its start. On a CPU decoding and
inference share the cores, so the bound is cores / (decode + inference core-seconds per image). On a GPU it is the slower of
the two. Memory is the largest resident set of a separate process.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
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
from benchmarks.command_line import command, peak_mib

MAX_PIXELS = 100_000_000


def link_images(images: list[Path], folder: Path, *, num: int) -> None:
    """Fill a folder with `num` names for a few images: first copies, then hard links to these."""
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
    """Processor seconds of this process per image."""
    before = time.process_time()
    work()
    return (time.process_time() - before) / num


def seconds_of(arguments: argparse.Namespace, images: Path, options: list[str]) -> float:
    """Seconds of a whole `anomaly score`, from the start of its process to its end."""
    score = command(
        "score", arguments.model, images, "--batch-size", str(arguments.batch_size), "--device", arguments.device
    )
    begin = time.perf_counter()
    subprocess.run([*score, *options], check=True, stderr=subprocess.DEVNULL)
    return time.perf_counter() - begin


def speed(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure core-seconds of decoding and of inference, and images per second end to end, in turn."""
    scorer = OnnxScorer(arguments.model, device=arguments.device, num_threads=0)
    names = ("decode", "infer", "end_to_end", "infer_wall", "decode_wall", "first_verdict")
    found: dict[str, list[float]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "images"
        link_images(list(arguments.images), place, num=arguments.num)
        paths = sorted(place.iterdir())
        ready = np.repeat(read_image(paths[0], white=255, max_pixels=MAX_PIXELS)[None], arguments.batch_size, axis=0)
        cv2.setNumThreads(0)

        def decode() -> None:
            with ThreadPoolExecutor(num_cpus()) as pool:
                list(pool.map(lambda path: read_image(path, white=255, max_pixels=MAX_PIXELS).shape, paths))

        def infer() -> None:
            for _ in range(max(1, arguments.num // arguments.batch_size)):
                scorer.score(ready)

        scorer.score(ready)
        for number in range(arguments.rounds):
            for name, work in (("decode", decode), ("infer", infer)):
                begin = time.perf_counter()
                found[name].append(core_seconds(work, num=arguments.num))
                found[f"{name}_wall"].append((time.perf_counter() - begin) / arguments.num)
            run = Path(folder) / f"run{number}"
            taken = seconds_of(arguments, place, ["--run", str(run), "--overlays-of", "none"])
            found["end_to_end"].append(arguments.num / taken)
            assert (run / SUMMARY).exists()
            found["first_verdict"].append(seconds_of(arguments, paths[0], ["--out", str(Path(folder) / "one.csv")]))
    median = {name: statistics.median(values) for name, values in found.items()}
    if arguments.device == "cpu":
        bound = num_cpus() / (median["decode"] + median["infer"])
    else:
        bound = 1 / max(median["decode_wall"], median["infer_wall"])
    return {
        "core_ms_decode": round(1e3 * median["decode"], 2),
        "core_ms_infer": round(1e3 * median["infer"], 2),
        "images_per_second": round(median["end_to_end"], 2),
        "bound": round(bound, 2),
        "of_bound": round(median["end_to_end"] / bound, 3),
        "of_bound_after_the_first_verdict": round(
            (arguments.num - 1) / (arguments.num / median["end_to_end"] - median["first_verdict"]) / bound, 3
        ),
        "seconds_to_first_verdict": round(median["first_verdict"], 2),
        "note": "end to end counts the start of the process, the drift monitor and every commit to the disk",
    }


def memory(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure the largest resident set and the rows of runs over each number of images."""
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for num in (int(text) for text in arguments.memory.split(",")):
            place, run = Path(folder) / f"images{num}", Path(folder) / f"run{num}"
            link_images(list(arguments.images), place, num=num)
            begin = time.perf_counter()
            peak = peak_mib(
                "score", arguments.model, place, "--run", run, "--overlays-of", "none", "--device", "cpu", check=False
            )
            rows = sum(1 for _ in (run / "rows.csv").open(encoding="utf-8")) - 1
            result[str(num)] = {
                "peak_mib": round(peak, 1),
                "rows": rows,
                "images_per_second": round(num / (time.perf_counter() - begin), 1),
            }
    peaks = [line["peak_mib"] for line in result.values()]
    result["last_over_first"] = round(peaks[-1] / peaks[0], 4)
    return result


def main() -> None:
    """Measure throughput or memory, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("images", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--num", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--memory", help="numbers of images, e.g. 1000,100000; measures memory instead of throughput")
    arguments = parser.parse_args()
    card = RunCard(
        "benchmarks/throughput.py", config={**vars(arguments), "images": [path.name for path in arguments.images]}
    )
    card.facts["config"]["model"] = arguments.model.name
    card.facts["result"] = memory(arguments) if arguments.memory else speed(arguments)
    card.write(arguments.out)
    print(card.facts["result"])


if __name__ == "__main__":
    main()
