"""Quality and speed of the samplers on one category: distances to calibration parts, likelihood, memorising, seconds, memory.

    python -m benchmarks.samplers CATEGORY --configs configs/samplers/*.yaml --pictures DIR

where CATEGORY is a folder or synthetic:machined, parts made by the package's own factory.

Every sampler is trained by its shipped configuration, exported, certified, and drawn from through ONNX Runtime. The figures
go to OUT/CATEGORY/SAMPLER.json, a contact sheet to DIR/CATEGORY/SAMPLER.png. Real images are the good images that were
held out of training and those that were trained on; no test image is read. `benchmarks.samplers_table` prints the table.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch.nn import functional

from anomaly.data.synthetic import make_dataset
from anomaly.errors import Unsupported
from anomaly.export.model_file import export_model
from anomaly.export.parity import verify
from anomaly.export.sampler import SAMPLER_FILE
from anomaly.generation.base import Options, SamplingLoop
from anomaly.generation.contact_sheet import contact_sheet, to_bytes
from anomaly.generation.onnx_sampler import OnnxSampler
from anomaly.imaging.image_file import read_image, write_png
from anomaly.metrics.generation import distances, frechet_distance, kernel_distance, precision_recall
from anomaly.nn.backbones import Backbone
from anomaly.samplers.base import Sampler
from anomaly.samplers.vqvae import VqVae
from anomaly.system.files import write_json
from anomaly.system.run_card import RunCard
from anomaly.training.fit import fit
from anomaly.training.fitted_model import load

FEATURES = "ResNet-18 (ImageNet), layer 3, averaged over the image enlarged to 128 px, 256 numbers"
FEATURE_SIDE = 128
SYNTHETIC, NUM_SYNTHETIC, SYNTHETIC_SIDE = "synthetic:", 200, 256
NUM_SHOWN = 16
NUM_TIMED = 3
MAX_PIXELS = 100_000_000


def features(x: NDArray[np.float32], network: Backbone) -> NDArray[np.float64]:
    """Describe images (n, 3, h, w) in [0, 1] by the mean of the backbone's last map, (n, 256)."""
    mean, std = (torch.tensor(part).view(1, 3, 1, 1) for part in (network.mean, network.std))
    found = []
    with torch.no_grad():
        for batch in torch.split(torch.from_numpy(x), 32):
            large = functional.interpolate(batch, (FEATURE_SIDE, FEATURE_SIDE), mode="bilinear", antialias=True)
            found.append(network((large - mean) / std)[-1].mean(dim=(2, 3)))
    return np.asarray(torch.cat(found).double().numpy())


def measure(category: Path, config: Path, *, num: int, batch_size: int, seed: int, pictures: Path) -> dict[str, Any]:
    """Train, export and measure one sampler."""
    asked = yaml.safe_load(config.read_text(encoding="utf-8"))
    card = RunCard(
        "samplers", config={"config": config.name, "num": num, "batch_size": batch_size, "seed": seed} | asked
    )
    with tempfile.TemporaryDirectory() as folder:
        run = fit(category, out=Path(folder), detector=asked["detector"], model=asked["model"], seed=seed)
        seconds = json.loads((run / "run.json").read_text(encoding="utf-8"))["seconds"]
        export_model(run)
        certificate = verify(run)
        detector, description = load(run)
        assert isinstance(detector, Sampler)
        exported = OnnxSampler(run / SAMPLER_FILE, device="cpu", num_threads=torch.get_num_threads())
        loop, trained = exported.sampling_loop(), detector.sampling_loop()
        parts = {
            name: np.concatenate(
                [exported.prepare(read_image(p, white=description.white, max_pixels=MAX_PIXELS)[None]) for p in paths]
            )
            for name, paths in (("train", description.train), ("calibration_images", description.calibration_images))
        }
        rng = np.random.default_rng(seed)
        batches = [loop.sample(batch_size, rng=rng, options=Options()) for _ in range(-(-num // batch_size))]
        drawn = np.concatenate(batches)[:num]
        result = _quality(drawn, parts) | _likelihood(detector, parts["calibration_images"])
        result |= _speed(loop, trained, num=batch_size, seed=seed)
        result["parity"] = json.loads((run / "sampler.certificate.json").read_text(encoding="utf-8"))["functions"]
        result["certificate of the detector"] = certificate.get("score")
        result["peak MiB of drawing"] = _peak_memory(run / SAMPLER_FILE, Path(folder) / "drawn", num=batch_size)
        sheets = {"samples": drawn[:NUM_SHOWN]} | _other_pictures(loop, parts["calibration_images"], seed=seed)
    place = pictures / category.name
    place.mkdir(parents=True, exist_ok=True)
    for name, images in sheets.items():
        columns = 0 if name == "samples" else 8
        write_png(place / f"{config.stem}_{name}.png", contact_sheet(to_bytes(images), num_columns=columns))
    card.facts["seconds"] |= {"fit": seconds["fit"]}
    card.facts["result"] = result | {
        "size": list(detector.preprocess.size),
        "density": detector.density,
        "features": FEATURES,
        "num_drawn": num,
        "num_train": len(parts["train"]),
        "num_calibration": len(parts["calibration_images"]),
        "num_threads": torch.get_num_threads(),
    }
    if isinstance(detector, VqVae):
        card.facts["result"]["codebook perplexity"] = float(detector.perplexity)
    return card.facts


def _quality(drawn: NDArray[np.float32], parts: dict[str, NDArray[np.float32]]) -> dict[str, Any]:
    network = Backbone("resnet18", layers=[1, 2, 3], size=(FEATURE_SIDE, FEATURE_SIDE), weights="pretrained")
    a = features(np.concatenate((parts["train"], parts["calibration_images"])), network)
    b = features(drawn, network)
    calibration_images, train = features(parts["calibration_images"], network), features(parts["train"], network)
    precision, recall = precision_recall(a, b)

    def nearest(x: NDArray[np.float32]) -> float:
        """Median distance to the nearest training image: root mean square over pixels, in grey levels."""
        flat, known = x.reshape(len(x), -1), parts["train"].reshape(len(parts["train"]), -1)
        return float(np.median(distances(flat, known).min(axis=1)) / np.sqrt(flat.shape[1]) * 255)

    return {
        "frechet": frechet_distance(a, b),
        "frechet of calibration to train": frechet_distance(train, calibration_images),
        "kernel": kernel_distance(a, b),
        "precision": precision,
        "recall": recall,
        "nearest training image": nearest(drawn),
        "nearest training image of calibration": nearest(parts["calibration_images"]),
    }


def _likelihood(sampler: Sampler, calibration_images: NDArray[np.float32]) -> dict[str, Any]:
    if sampler.density == "none":
        return {"bits per dimension": None}
    with torch.no_grad():
        bits = torch.cat(
            [sampler.bits_per_dim(batch) for batch in torch.split(torch.from_numpy(calibration_images), 8)]
        )
    return {"bits per dimension": float(bits.mean())}


def _speed(exported: SamplingLoop, trained: SamplingLoop, *, num: int, seed: int) -> dict[str, Any]:
    """Seconds of the same draw through ONNX Runtime and through torch, in turn, medians."""
    taken: dict[str, list[float]] = {"onnx": [], "torch": []}
    for _ in range(NUM_TIMED):
        for name, loop in (("onnx", exported), ("torch", trained)):
            begin = time.perf_counter()
            loop.sample(num, rng=np.random.default_rng(seed), options=Options())
            taken[name].append(time.perf_counter() - begin)
    onnx, by_torch = (statistics.median(taken[name]) for name in ("onnx", "torch"))
    found = {"seconds per image": onnx / num, "onnx over torch": onnx / by_torch}
    if "steps" in exported.known_options:
        found["seconds per step and image"] = onnx / num / Options().steps
    return found


def _peak_memory(model: Path, out: Path, *, num: int) -> float:
    """Largest resident memory, in MiB, of a process that draws one batch."""
    main = "import sys; from anomaly.commands.main import run; sys.exit(run(sys.argv[1:]))"
    options = ["--num", str(num), "--batch-size", str(num), "--device", "cpu"]
    code = (
        "import resource, subprocess, sys;"
        f" subprocess.run([sys.executable, '-c', {main!r}, 'sample', *sys.argv[1:]], check=True, stderr=subprocess.DEVNULL);"
        " print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    told = subprocess.run(
        [sys.executable, "-c", code, str(model), "--out", str(out), *options],
        capture_output=True,
        text=True,
        check=True,
    )
    per_unit = 1024 if sys.platform != "darwin" else 1024**2
    return int(told.stdout.split()[-1]) / per_unit


def _other_pictures(loop: SamplingLoop, x: NDArray[np.float32], *, seed: int) -> dict[str, NDArray[np.float32]]:
    """Reconstructions, a walk and a filled hole, of what the sampler can."""
    rng = np.random.default_rng(seed)
    options, some = Options(), x[:8]
    mask = np.zeros((len(some), *x.shape[2:]), dtype=bool)
    height, width = x.shape[2:]
    mask[:, height // 3 : height * 2 // 3, width // 3 : width * 2 // 3] = True
    shown = {}
    for name, make in (
        ("reconstructions", lambda: np.concatenate((some, loop.reconstruct(some, rng=rng, options=options)))),
        ("interpolation", lambda: loop.interpolate(x[0], x[1], num=8, options=options)),
        (
            "inpainting",
            lambda: np.concatenate(
                (np.where(mask[:, None], np.float32(0.5), some), loop.inpaint(some, mask, rng=rng, options=options))
            ),
        ),
    ):
        try:
            shown[name] = make()
        except Unsupported:
            continue
    return shown


def main(arguments: Sequence[str]) -> None:
    """Measure the samplers asked for, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("category", help="a folder, or synthetic:KIND for parts made by the package's own factory")
    parser.add_argument("--configs", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/samplers"))
    parser.add_argument("--pictures", type=Path, required=True)
    parser.add_argument("--num", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args(arguments)
    torch.set_num_threads(asked.threads)
    with tempfile.TemporaryDirectory() as folder:
        kind = asked.category.removeprefix(SYNTHETIC)
        category = Path(folder) / kind if asked.category.startswith(SYNTHETIC) else Path(asked.category)
        if not category.exists():
            counts = {"num_train": NUM_SYNTHETIC, "num_test_good": 0, "num_test_defect": 0}
            make_dataset(
                Path(folder), parts=[kind], size=SYNTHETIC_SIDE, seed=asked.seed, progress=lambda *_: None, **counts
            )
        for config in asked.configs:
            info = measure(
                category, config, num=asked.num, batch_size=asked.batch_size, seed=asked.seed, pictures=asked.pictures
            )
            write_json(asked.out / category.name / f"{config.stem}.json", info)
            print(config.stem, json.dumps(info["result"], indent=1), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
