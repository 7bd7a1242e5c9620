r"""Images per second from files: a run of ours against two methods of anomalib, the same network on the same files.

    python -m benchmarks.batch_against_anomalib MODEL.onnx [INT8.onnx] --images FOLDER \
        --out benchmarks/results/batch_against_anomalib.json

The methods of anomalib are Engine.predict, as shipped and without pictures, and the loop over its OpenVINO inferencer. MODEL
is an exported FastFlow (ResNet-18, 256²). The FastFlow of anomalib has the same sizes and untrained flows: the arithmetic does
not depend on the weights. All take turns in one process, round by round. Figures are medians over rounds. Ratios are medians
of the rounds' ratios. Requires the extra [bench] and openvino.
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

from anomaly.data.folders import list_images
from anomaly.runs.score_run import RunOptions, score_run
from anomaly.scoring.pipeline import score_images
from anomaly.scoring.product_models import open_models
from anomaly.scoring.run_threshold import choose_threshold
from anomaly.scoring.settings import DEFAULT_PRODUCT, Settings
from anomaly.scoring.sources import open_source
from anomaly.system.processors import num_cpus
from anomaly.system.run_card import RunCard

MAX_PIXELS = 100_000_000


def silently(work: Callable[[], Any]) -> Any:
    """Call a function without its output."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return work()


def scoring(model: Path, images: Path, folder: Path) -> Callable[[], None]:
    """Prepare a run of ours into a new folder at each call, with rows, hashes, drift monitor and manifest."""
    number = iter(range(1_000_000))

    def work() -> None:
        scorers = open_models({DEFAULT_PRODUCT: model}, device="cpu")
        threshold = choose_threshold(scorers[DEFAULT_PRODUCT])
        settings = Settings(
            threshold=threshold, batch_size=8, max_pixels=MAX_PIXELS, num_threads=num_cpus(), measure=True
        )
        score_run(
            open_source(str(images)),
            name=str(images),
            models={DEFAULT_PRODUCT: model},
            scorers=scorers,
            settings=settings,
            folder=folder / f"{model.stem}{next(number)}",
            options=RunOptions(overlays_of="none"),
            resume=False,
            engine=score_images,
        )

    return work


def predicting(images: Path, folder: Path, *, visualizer: bool) -> Callable[[], None]:
    """Prepare Engine.predict of anomalib, with its pictures or without."""
    from anomalib.engine import Engine
    from anomalib.models import Fastflow

    model = Fastflow(pre_trained=False, evaluator=False, visualizer=visualizer)
    engine = Engine(default_root_dir=folder / f"anomalib{visualizer}", accelerator="cpu", devices=1, logger=False)
    return lambda: engine.predict(model=model, data_path=images, return_predictions=False)


def openvino_loop(paths: list[str], folder: Path) -> Callable[[], None]:
    """Prepare the loop over OpenVINOInferencer.predict of anomalib's documentation."""
    from anomalib.deploy import ExportType, OpenVINOInferencer
    from anomalib.engine import Engine
    from anomalib.models import Fastflow

    model = Fastflow(pre_trained=False, evaluator=False, visualizer=False)
    engine = Engine(default_root_dir=folder, accelerator="cpu", devices=1, logger=False)
    exported = engine.export(model, ExportType.OPENVINO, export_root=folder)
    if exported is None:
        raise SystemExit("anomalib wrote no OpenVINO file; check that openvino is installed")
    here = Path.cwd()
    os.chdir(folder)  # anomalib writes its compiled networks into the working directory
    try:
        inferencer = OpenVINOInferencer(path=exported, device="CPU")
    finally:
        os.chdir(here)

    def work() -> None:
        for path in paths:
            inferencer.predict(path)

    return work


def main() -> None:
    """Measure all in turn, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    card = RunCard(
        "benchmarks/batch_against_anomalib.py",
        config={
            "models": [path.name for path in arguments.models],
            "rounds": arguments.rounds,
            "num_threads": num_cpus(),
        },
    )
    paths = list_images(str(arguments.images))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        methods = {f"ours, {path.name}": scoring(path, arguments.images, folder) for path in arguments.models}
        methods |= {
            "anomalib predict, as shipped": predicting(arguments.images, folder, visualizer=True),
            "anomalib predict, without pictures": predicting(arguments.images, folder, visualizer=False),
            "anomalib OpenVINO loop": silently(lambda: openvino_loop(paths, folder / "openvino")),
        }
        rounds: list[dict[str, float]] = []
        for number in range(arguments.rounds + 1):
            seconds = {}
            for name, work in methods.items():
                begin = time.perf_counter()
                silently(work)
                seconds[name] = time.perf_counter() - begin
            if number:  # the first round warms up
                rounds.append({name: len(paths) / duration for name, duration in seconds.items()})
    names = list(methods)
    card.facts["result"] = {
        "num_images": len(paths),
        "images_per_second": {name: round(statistics.median(rates[name] for rates in rounds), 2) for name in names},
        "ratios": {
            f"{ours} / {other}": round(statistics.median(rates[ours] / rates[other] for rates in rounds), 2)
            for ours in names[: len(arguments.models)]
            for other in names[len(arguments.models) :]
        },
    }
    card.write(arguments.out)
    print(card.facts["result"])


if __name__ == "__main__":
    main()
