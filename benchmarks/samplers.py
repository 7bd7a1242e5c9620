"""Quality and speed of the samplers on one category: distances, likelihood, memorisation, seconds, memory.

    python -m benchmarks.samplers CATEGORY --configs configs/samplers/*.yaml --pictures DIR

CATEGORY is a folder, or synthetic:KIND for synthetic parts.

Every sampler is trained by its shipped configuration, exported and certified. ONNX Runtime draws the images. The figures are
written to OUT/CATEGORY/SAMPLER.json, and contact sheets to DIR/CATEGORY/SAMPLER_*.png. Real images are the training and the
calibration images; no test image is read. `benchmarks.samplers_table` writes the table.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
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
from anomaly.export.parity import compare_files
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
from anomaly.training.fit import fit_model
from benchmarks.command_line import peak_mib

FEATURES = "ResNet-18 (ImageNet), layer 3, averaged over the image enlarged to 128 px, 256 numbers"
FEATURE_SIDE = 128
SYNTHETIC, NUM_SYNTHETIC, SYNTHETIC_SIDE = "synthetic:", 200, 256
NUM_SHOWN = 16
NUM_TIMED = 3
MAX_PIXELS = 100_000_000


def features(x: NDArray[np.float32], network: Backbone) -> NDArray[np.float64]:
    """Compute features (n, 256) of images (n, 3, h, w) in [0, 1]: the means of the backbone's last map."""
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (network.mean, network.std))
    found = []
    with torch.no_grad():
        for batch in torch.split(torch.from_numpy(x), 32):
            large = functional.interpolate(batch, (FEATURE_SIDE, FEATURE_SIDE), mode="bilinear", antialias=True)
            found.append(network((large - mean) / std)[-1].mean(dim=(2, 3)))
    return np.asarray(torch.cat(found).double().numpy())


def measure(category: Path, config: Path, *, num: int, batch_size: int, seed: int, pictures: Path) -> dict[str, Any]:
    """Train, export and measure one sampler.

    Args:
        category: folder of the category.
        config: YAML file of the sampler.
        num: number of drawn images.
        batch_size: drawn images per batch.
        seed: random seed of training and drawing.
        pictures: folder for the contact sheets.
    """
    options = yaml.safe_load(config.read_text(encoding="utf-8"))
    card = RunCard(
        "samplers", config={"config": config.name, "num": num, "batch_size": batch_size, "seed": seed} | options
    )
    with tempfile.TemporaryDirectory() as folder:
        fitted = fit_model(
            category, out=Path(folder), detector=options["detector"], options=options["model"], seed=seed
        )
        sampler, description = fitted.model, fitted.description
        assert isinstance(sampler, Sampler)
        export_model(fitted)
        drawing, *scoring = compare_files(fitted)
        exported = OnnxSampler(drawing.path, device="cpu", num_threads=torch.get_num_threads())
        loop, trained = exported.sampling_loop(), sampler.sampling_loop()
        real = {
            name: np.concatenate(
                [exported.prepare(read_image(p, white=description.white, max_pixels=MAX_PIXELS)[None]) for p in paths]
            )
            for name, paths in (("train", description.train), ("calibration_images", description.calibration_images))
        }
        rng = np.random.default_rng(seed)
        batches = [loop.sample(batch_size, rng=rng, options=Options()) for _ in range(-(-num // batch_size))]
        drawn = np.concatenate(batches)[:num]
        result = _quality(drawn, real) | _likelihood(sampler, real["calibration_images"])
        result |= _speed(loop, trained, num=batch_size, seed=seed)
        result["parity"] = drawing.values["functions"]
        result["certificate of the detector"] = scoring[-1].values.get("score") if scoring else None
        result["peak MiB of drawing"] = peak_mib(
            "sample", drawing.path, "--out", Path(folder) / "drawn", "--num", str(batch_size),
            "--batch-size", str(batch_size), "--device", "cpu",
        )  # fmt: skip
        sheets = {"samples": drawn[:NUM_SHOWN]} | _other_sheets(loop, real["calibration_images"], seed=seed)
    place = pictures / category.name
    for name, images in sheets.items():
        columns = None if name == "samples" else 8
        write_png(place / f"{config.stem}_{name}.png", contact_sheet(to_bytes(images), num_columns=columns))
    card.facts["seconds"] |= {"fit": fitted.seconds["fit"]}
    card.facts["result"] = result | {
        "size": list(sampler.preprocess.size),
        "density": sampler.density,
        "features": FEATURES,
        "num_drawn": num,
        "num_train": len(real["train"]),
        "num_calibration": len(real["calibration_images"]),
        "num_threads": torch.get_num_threads(),
    }
    if isinstance(sampler, VqVae):
        card.facts["result"]["codebook perplexity"] = float(sampler.perplexity)
    return card.facts


def _quality(drawn: NDArray[np.float32], real: dict[str, NDArray[np.float32]]) -> dict[str, Any]:
    network = Backbone("resnet18", layers=[1, 2, 3], size=(FEATURE_SIDE, FEATURE_SIDE), weights="pretrained")
    a = features(np.concatenate((real["train"], real["calibration_images"])), network)
    b = features(drawn, network)
    calibration_images, train = features(real["calibration_images"], network), features(real["train"], network)
    precision, recall = precision_recall(a, b)

    def nearest(x: NDArray[np.float32]) -> float:
        """Median distance to the nearest training image: root mean square over pixels, in grey levels."""
        flat, known = x.reshape(len(x), -1), real["train"].reshape(len(real["train"]), -1)
        return float(np.median(distances(flat, known).min(axis=1)) / np.sqrt(flat.shape[1]) * 255)

    return {
        "frechet": frechet_distance(a, b),
        "frechet of calibration to train": frechet_distance(train, calibration_images),
        "kernel": kernel_distance(a, b),
        "precision": precision,
        "recall": recall,
        "nearest training image": nearest(drawn),
        "nearest training image of calibration": nearest(real["calibration_images"]),
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
    """Measure seconds of the same draw through ONNX Runtime and through torch, in turn, medians."""
    seconds: dict[str, list[float]] = {"onnx": [], "torch": []}
    for _ in range(NUM_TIMED):
        for name, loop in (("onnx", exported), ("torch", trained)):
            begin = time.perf_counter()
            loop.sample(num, rng=np.random.default_rng(seed), options=Options())
            seconds[name].append(time.perf_counter() - begin)
    onnx, by_torch = (statistics.median(seconds[name]) for name in ("onnx", "torch"))
    result = {"seconds per image": onnx / num, "onnx over torch": onnx / by_torch}
    if "steps" in exported.known_options:
        result["seconds per step and image"] = onnx / num / Options().steps
    return result


def _other_sheets(loop: SamplingLoop, x: NDArray[np.float32], *, seed: int) -> dict[str, NDArray[np.float32]]:
    """Make reconstructions, an interpolation and an inpainting, as far as the sampler supports them."""
    rng = np.random.default_rng(seed)
    options, first = Options(), x[:8]
    mask = np.zeros((len(first), *x.shape[2:]), dtype=bool)
    height, width = x.shape[2:]
    mask[:, height // 3 : height * 2 // 3, width // 3 : width * 2 // 3] = True
    sheets = {}
    for name, make in (
        ("reconstructions", lambda: np.concatenate((first, loop.reconstruct(first, rng=rng, options=options)))),
        ("interpolation", lambda: loop.interpolate(x[0], x[1], num=8, options=options)),
        (
            "inpainting",
            lambda: np.concatenate(
                (np.where(mask[:, None], np.float32(0.5), first), loop.inpaint(first, mask, rng=rng, options=options))
            ),
        ),
    ):
        try:
            sheets[name] = make()
        except Unsupported:
            continue
    return sheets


def main() -> None:
    """Measure the requested samplers, one after the other, and write their figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("category", help="folder, or synthetic:KIND for synthetic parts")
    parser.add_argument("--configs", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/samplers"))
    parser.add_argument("--pictures", type=Path, required=True)
    parser.add_argument("--num", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        kind = arguments.category.removeprefix(SYNTHETIC)
        category = Path(folder) / kind if arguments.category.startswith(SYNTHETIC) else Path(arguments.category)
        if not category.exists():
            counts: dict[str, Any] = {"num_train": NUM_SYNTHETIC, "num_test_good": 0, "num_test_defect": 0}
            make_dataset(Path(folder), parts=[kind], size=SYNTHETIC_SIDE, seed=arguments.seed, **counts)
        for config in arguments.configs:
            info = measure(
                category,
                config,
                num=arguments.num,
                batch_size=arguments.batch_size,
                seed=arguments.seed,
                pictures=arguments.pictures,
            )
            write_json(arguments.out / category.name / f"{config.stem}.json", info)
            print(config.stem, json.dumps(info["result"], indent=1), flush=True)


if __name__ == "__main__":
    main()
