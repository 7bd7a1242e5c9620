r"""Images a second from files: `anomaly score` against two ways of anomalib, the same network on the same files.

    python -m benchmarks.batch_against_anomalib MODEL.onnx [INT8.onnx] --images FOLDER \
        --out benchmarks/results/batch_against_anomalib.json

The two ways are Engine.predict, as shipped and without its pictures, and the loop over its OpenVINO inferencer. MODEL is an
exported FastFlow of the package (ResNet-18, 256²); anomalib's has the same sizes and untrained flows, on which the arithmetic
does not depend. All take turns in one process, round by round; figures are medians over rounds, ratios medians of the rounds'
ratios. Needs the extra [bench] and openvino.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from anomaly.commands.main import run
from anomaly.data.folders import list_images
from anomaly.system.processors import num_cpus
from anomaly.system.run_card import RunCard


def quietly(work: Callable[[], Any]) -> Any:
    """Call something without what it prints."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return work()


def scoring(model: Path, images: Path, folder: Path) -> Callable[[], None]:
    """A run of ours into a new run directory each time, rows, hashes, drift watch and manifest included."""
    number = iter(range(1_000_000))

    def work() -> None:
        place = folder / f"{model.stem}{next(number)}"
        code = run(["score", str(model), str(images), "--run", str(place), "--overlays-of", "none", "--device", "cpu"])
        if code:
            raise SystemExit(f"anomaly score ended with {code}")

    return work


def predicting(images: Path, folder: Path, *, visualizer: bool) -> Callable[[], None]:
    """Engine.predict of anomalib, with its pictures as it is shipped or without."""
    from anomalib.engine import Engine
    from anomalib.models import Fastflow

    model = Fastflow(pre_trained=False, evaluator=False, visualizer=visualizer)
    engine = Engine(default_root_dir=folder / f"anomalib{visualizer}", accelerator="cpu", devices=1, logger=False)
    return lambda: engine.predict(model=model, data_path=images, return_predictions=False)


def openvino_loop(paths: list[str], folder: Path) -> Callable[[], None]:
    """The loop over OpenVINOInferencer.predict that anomalib's documentation gives for deployment."""
    from anomalib.deploy import ExportType, OpenVINOInferencer
    from anomalib.engine import Engine
    from anomalib.models import Fastflow

    model = Fastflow(pre_trained=False, evaluator=False, visualizer=False)
    engine = Engine(default_root_dir=folder, accelerator="cpu", devices=1, logger=False)
    exported = engine.export(model, ExportType.OPENVINO, export_root=folder)
    if exported is None:
        raise SystemExit("anomalib gave no OpenVINO file")
    here = Path.cwd()
    os.chdir(folder)  # it leaves its compiled networks in the current folder
    try:
        inferencer = OpenVINOInferencer(path=exported, device="CPU")
    finally:
        os.chdir(here)

    def work() -> None:
        for path in paths:
            inferencer.predict(path)

    return work


def main() -> None:
    """Time all in turn and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    card = RunCard(
        "benchmarks/batch_against_anomalib.py",
        config={"models": [path.name for path in asked.models], "rounds": asked.rounds, "num_threads": num_cpus()},
    )
    paths = list_images(str(asked.images))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        ways = {f"ours, {path.name}": scoring(path, asked.images, folder) for path in asked.models}
        ways |= {
            "anomalib predict, as shipped": predicting(asked.images, folder, visualizer=True),
            "anomalib predict, without pictures": predicting(asked.images, folder, visualizer=False),
            "anomalib OpenVINO loop": quietly(lambda: openvino_loop(paths, folder / "openvino")),
        }
        rounds: list[dict[str, float]] = []
        for number in range(asked.rounds + 1):
            seconds = {}
            for name, work in ways.items():
                begin = time.perf_counter()
                quietly(work)
                seconds[name] = time.perf_counter() - begin
            if number:  # the first one warms up
                rounds.append({name: len(paths) / taken for name, taken in seconds.items()})
    names = list(ways)
    card.facts["result"] = {
        "num_images": len(paths),
        "images_per_second": {name: round(statistics.median(one[name] for one in rounds), 2) for name in names},
        "ratios": {
            f"{ours} / {other}": round(statistics.median(one[ours] / one[other] for one in rounds), 2)
            for ours in names[: len(asked.models)]
            for other in names[len(asked.models) :]
        },
    }
    card.write(asked.out)
    print(card.facts["result"])


if __name__ == "__main__":
    main()
