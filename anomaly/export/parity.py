"""The verb `verify`: proof that the exported file gives what the trained model gives, written beside it as a certificate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr

from anomaly.errors import ParityError
from anomaly.export.acceptance import FLIP_MARGIN, Bounds, compare_verdicts, refuse_beyond, summary
from anomaly.export.detector import MODEL_FILE
from anomaly.export.reduced_precision import read_images
from anomaly.export.sampler import SAMPLER_FILE, verify_sampler
from anomaly.imaging.image_file import read_image
from anomaly.inference.batching import batches_by_size
from anomaly.inference.scorer import OnnxScorer, Scorer, relative_difference
from anomaly.inference.session import Device
from anomaly.inference.tiles import seam
from anomaly.samplers.base import Sampler
from anomaly.system.files import write_json
from anomaly.system.progress import progress_bar
from anomaly.system.run_card import RunCard, hardware, now, versions
from anomaly.training.tiling import TARGET as SEAM_TARGET
from anomaly.training.torch_scorer import TorchScorer

TARGET, REFUSE = 1e-4, 1e-3
"""Difference of score and map in calibrated units: what fp32 reaches, and above which the file is refused"""
MAX_CALIBRATION_IMAGES, MAX_PIXELS = 64, 100_000_000
"""Images that are compared at most, and pixels of all of them after which no further one is"""


def verify(
    run: Path,
    *,
    model: str = "",
    device: Device = "cpu",
    batch_size: int = 4,
    seed: int = 0,
    max_auroc_loss: float = 0.003,
    max_flips: float = 0.02,
) -> dict[str, Any]:
    """Compare the trained model and the exported file on calibration images, random and adversarial inputs.

    An fp32 file is held to the tolerance of its scores and maps; an fp16 or int8 one to its verdicts, on calibration images
    and defects drawn onto them.

    Args:
        run: the run folder.
        model: the exported file; by default `model.onnx` in the run folder.
        device: that the file runs on; TF32 is off on both sides.
        batch_size: images per inference.
        seed: of the random inputs.
        max_auroc_loss: of drawn defects, above which fp16 and int8 are refused.
        max_flips: share of verdicts that may change in fp16 and int8.

    Returns:
        The certificate, also written as `<model>.certificate.json`; a sampler's file has its own beside it.

    Raises:
        ParityError: a difference above the tolerance; the certificate says where, and is written all the same.
    """
    card = RunCard("verify", config=dict(locals()))
    path = Path(model) if model else run / MODEL_FILE
    trained = TorchScorer(run)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    description = trained.description
    images: list[NDArray[np.uint8]] = []
    for path_of in description.calibration_images[:MAX_CALIBRATION_IMAGES]:
        images.append(read_image(path_of, white=description.white, max_pixels=description.max_pixels))
        if sum(image[..., 0].size for image in images) > MAX_PIXELS:
            break
    if isinstance(trained.detector, Sampler):
        drawing = verify_sampler(
            trained.detector, path.with_name(SAMPLER_FILE), images=images, device=device, seed=seed
        )
        if not trained.detector.scores:
            return drawing
    exported = OnnxScorer(path, device=device, num_threads=0)
    precision, fixed = exported.metadata.precision, exported.metadata.fixed
    inputs = [
        ("calibration", np.stack([images[n] for n in batch]))
        for batch in batches_by_size([i.shape for i in images], batch_size=batch_size)
    ]
    inputs += list(adversarial_inputs(seed=seed, fixed=fixed))
    certificate = compare(trained, exported, inputs)
    if precision != "fp32":
        good = read_images(description.calibration_images, description)
        with progress_bar("compare verdicts") as report:
            certificate |= compare_verdicts(trained, exported, good=good, seed=seed, report=report)
    if description.tiling and description.tiling.mode == "seamless":
        certificate["seam"] = seam(exported.score_windows, images[0], tiling=description.tiling)
    certificate |= {
        "model": exported.sha256,
        "detector": description.detector,
        "precision": precision,
        "fixed": fixed,
        "provider": exported.provider,
        "golden_tolerance": exported.metadata.golden.tolerance,
        "versions": versions() | {"onnxruntime_used": onnxruntime.__version__},
        "hardware": hardware(),
        "date": now(),
    }
    write_json(path.with_suffix(".certificate.json"), certificate)
    card.facts["result"] = {key: certificate[key] for key in ("model", "score", "map", "num_flips")}
    card.write(path.with_suffix(".verify.run.json"))
    if precision != "fp32":
        refuse_beyond(certificate, bounds=Bounds(max_auroc_loss, max_flips), name=f"{precision} of {path}")
        print(f"{path}: {precision}, {summary(certificate)}")
        return certificate
    worst = max(certificate["score"]["max"], certificate["map"]["max"])
    if not worst <= REFUSE or certificate["num_flips"]:
        raise ParityError(
            f"{path} differs from the trained model by {worst:.3g} in calibrated units, above {REFUSE:g}"
            f" ({certificate['num_flips']} verdicts flip), worst on {certificate['worst_input']!r}: do not ship it;"
            " export it again, and see the certificate beside it"
        )
    if not certificate.get("seam", 0.0) <= REFUSE:
        raise ParityError(
            f"{path} gives a stitched map that differs by {certificate['seam']:.3g} from the one without tiles, above"
            f" {REFUSE:g}: its windows are not what the network needs on this device; score on another, or fit it again"
        )
    print(f"{path}: parity {worst:.2g} (target {TARGET:g}, refused above {REFUSE:g}), no verdict flips")
    if "seam" in certificate:
        print(f"stitched map within {certificate['seam']:.2g} of the one without tiles (target {SEAM_TARGET:g})")
    return certificate


def adversarial_inputs(*, seed: int, fixed: Sequence[int]) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Inputs that show what images hide: noise, extremes, the finest pattern, odd sizes, one pixel.

    Args:
        seed: of the noise.
        fixed: what a fixed model takes, images at a time, height and width; its own size is the only one then.
    """
    rng = np.random.default_rng(seed)
    _, height, width = fixed or (0, 256, 256)
    rows, columns = np.mgrid[:height, :width]
    checkerboard = np.repeat((((rows + columns) % 2) * 255).astype(np.uint8)[None, :, :, None], 3, axis=3)
    yield "random", rng.integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    if not fixed:
        yield "random, odd size", rng.integers(0, 256, (3, 313, 217, 3), dtype=np.uint8)
        yield "random, long and narrow", rng.integers(0, 256, (1, 33, 701, 3), dtype=np.uint8)
    yield "all black", np.zeros((1, height, width, 3), dtype=np.uint8)
    yield "all white", np.full((1, height, width, 3), 255, dtype=np.uint8)
    yield "checkerboard of one pixel", checkerboard
    if not fixed:
        yield "one pixel", np.full((1, 1, 1, 3), 128, dtype=np.uint8)


def compare(trained: Scorer, exported: Scorer, inputs: list[tuple[str, NDArray[np.uint8]]]) -> dict[str, Any]:
    """Score the same inputs with both and summarise the differences in calibrated units, `|a − b| / max(1, |a|)`.

    Args:
        trained: the reference, a.
        exported: the file, b.
        inputs: name and images (n, H, W, 3) uint8 RGB of one size each.
    """
    by_input: dict[str, dict[str, float]] = {}
    scores: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = []
    sums = {"score": 0.0, "map": 0.0}
    counts = {"score": 0, "map": 0}
    with progress_bar("verify") as report:
        for done, (name, image) in enumerate(inputs):
            a, b = trained.score(image), exported.score(image)
            scores.append((a.score, b.score))
            worst = by_input.setdefault(name, {"score": 0.0, "map": 0.0})
            for part, x, y in (("score", a.score, b.score), ("map", a.anomaly_map, b.anomaly_map)):
                difference = np.nan_to_num(relative_difference(x, y), nan=np.inf)  # no number is no agreement
                worst[part] = max(worst[part], float(difference.max()))
                sums[part] += float(difference.sum())
                counts[part] += difference.size
            report(done + 1, len(inputs))
    a_scores, b_scores = (np.concatenate(part) for part in zip(*scores, strict=True))
    flips = ((a_scores > 1) != (b_scores > 1)) & (np.abs(a_scores - 1) > FLIP_MARGIN)
    return {
        "kind": "parity",
        "score": {"max": max(w["score"] for w in by_input.values()), "mean": sums["score"] / counts["score"]},
        "map": {"max": max(w["map"] for w in by_input.values()), "mean": sums["map"] / counts["map"]},
        "rank_correlation": float(spearmanr(a_scores, b_scores).statistic),
        "num_flips": int(flips.sum()),
        "num_images": len(a_scores),
        "by_input": by_input,
        "worst_input": max(by_input, key=lambda name: max(by_input[name].values())),
        "target": TARGET,
        "refused_above": REFUSE,
    }
