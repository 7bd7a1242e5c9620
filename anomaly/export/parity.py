"""Proof that an exported file gives the outputs of the trained model, as a certificate."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr

from anomaly.errors import ParityError
from anomaly.export.acceptance import FLIP_MARGIN, Bounds, check_bounds, compare_verdicts
from anomaly.export.model_file import MODEL_FILE
from anomaly.export.reduced_precision import read_images
from anomaly.export.sampler import SAMPLER_FILE, check_sampler_certificate, compare_sampler
from anomaly.imaging.image_file import read_image
from anomaly.inference.bank import calibration_scorers
from anomaly.inference.batching import batches_by_size
from anomaly.inference.difference import relative_difference
from anomaly.inference.scorer import OnnxScorer, Scorer
from anomaly.inference.session import Device
from anomaly.inference.tiles import seam
from anomaly.samplers.base import Sampler
from anomaly.system.files import as_path
from anomaly.system.progress import progress_bar
from anomaly.system.run_card import hardware, now, versions
from anomaly.training.fitted_model import Description, FittedModel, config_to_travel, load_fitted_model
from anomaly.training.torch_scorer import TorchScorer

TARGET, REFUSE = 1e-4, 1e-3
"""Difference of score and map in calibrated units: target of fp32, and bound above which the file is refused"""
MAX_CALIBRATION_IMAGES, MAX_PIXELS = 64, 100_000_000
"""Largest number of compared images, and number of pixels after which no further image is read"""


@dataclass(frozen=True)
class Certificate:
    """The comparison of one exported file with the trained model."""

    path: Path
    """the exported file"""
    values: dict[str, Any]
    """the comparison as JSON values"""

    @property
    def file(self) -> Path:
        """Place of the certificate beside the exported file."""
        return self.path.with_suffix(".certificate.json")


def verify(
    fitted: FittedModel | str | Path,
    *,
    model: str | Path | None = None,
    device: Device = "cpu",
    batch_size: int = 4,
    seed: int = 0,
    max_auroc_loss: float = 0.003,
    max_flips: float = 0.02,
) -> dict[str, Any]:
    """Compare the trained model with the exported file, and refuse a difference above the tolerance.

    Args:
        fitted: fitted model, or its folder.
        model: exported file; None for `model.onnx` in that folder.
        device: device of the exported file; TF32 is off on both sides.
        batch_size: images per inference.
        seed: seed of the random inputs and drawn defects.
        max_auroc_loss: largest loss of AUROC on drawn defects for fp16 and int8, in [0, 1].
        max_flips: largest share of verdicts that may change in fp16 and int8, in [0, 1].

    Returns:
        The certificate of the file that scores, or of a sampler that only draws.

    Raises:
        ParityError: a difference above the tolerance.
        ModelError: a missing or damaged file.
    """
    certificates = compare_files(fitted, model=model, device=device, batch_size=batch_size, seed=seed)
    for certificate in certificates:
        check_certificate(certificate, bounds=Bounds(max_auroc_loss, max_flips))
    return certificates[-1].values


def compare_files(
    fitted: FittedModel | str | Path,
    *,
    model: str | Path | None = None,
    device: Device = "cpu",
    batch_size: int = 4,
    seed: int = 0,
) -> list[Certificate]:
    """Compare the trained model with its exported files; arguments are those of `verify`.

    An fp32 file is compared in scores and maps on calibration images, random and adversarial inputs. An fp16 or int8 file is
    also compared in verdicts, on calibration images and on defects drawn onto them.

    Returns:
        One certificate per file: first the file that draws, for a sampler; last the file that scores.

    Raises:
        ModelError: a missing or damaged file.
    """
    if not isinstance(fitted, FittedModel):
        fitted = load_fitted_model(as_path(fitted, name="fitted"))
    path = as_path(model, name="model") if model is not None else fitted.folder / MODEL_FILE
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    description = fitted.description
    images = _calibration_images(description)
    certificates = []
    if isinstance(fitted.model, Sampler):
        drawing = path.with_name(SAMPLER_FILE)
        values = compare_sampler(fitted.model, drawing, images=images, device=device, seed=seed)
        certificates.append(Certificate(drawing, values))
        if fitted.detector is None:
            return certificates
    trained = TorchScorer(fitted)
    exported = OnnxScorer(path, device=device, num_threads=0)
    origins = [
        json.dumps(origin, sort_keys=True)
        for origin in (
            [exported.metadata.detector, exported.metadata.config],
            [description.detector, config_to_travel(description)],
        )
    ]
    if origins[0] != origins[1]:
        raise ParityError(f"{path} was exported from another fit than {fitted.folder}: export it again")
    precision, fixed = exported.metadata.precision, exported.metadata.fixed
    inputs = [
        ("calibration", np.stack([images[n] for n in batch]))
        for batch in batches_by_size([i.shape for i in images], batch_size=batch_size)
    ]
    inputs += list(adversarial_inputs(seed=seed, fixed=fixed))
    values = compare(trained, exported, inputs)
    if precision != "fp32":
        good = read_images(description.calibration_images, description)
        with progress_bar("compare verdicts") as report:
            values |= compare_verdicts(
                trained.calibration_scorers(range(len(good))),
                calibration_scorers(exported, range(len(good))),
                good=good,
                seed=seed,
                report=report,
            )
    if description.tiling and description.tiling.mode == "seamless":
        values["seam"] = seam(exported.score_windows, images[0], tiling=description.tiling)
    values |= {
        "model": exported.sha256,
        "detector": description.detector,
        "precision": precision,
        "fixed": fixed,
        "provider": exported.provider,
        "golden_tolerance": exported.metadata.golden.tolerance,
        "guarantee_text": str(exported.metadata.certified),
        "rates": [asdict(point) for point in exported.metadata.operating_points],
        "versions": versions() | {"onnxruntime_used": onnxruntime.__version__},
        "hardware": hardware(),
        "date": now(),
    }
    return [*certificates, Certificate(path, values)]


def check_certificate(certificate: Certificate, *, bounds: Bounds) -> None:
    """Refuse a file whose certificate shows a difference above the tolerance.

    Args:
        certificate: comparison of one file.
        bounds: largest loss of an fp16 or int8 file.

    Raises:
        ParityError: the difference, the tolerance, and the worst input.
    """
    path, values = certificate.path, certificate.values
    if values["kind"] != "parity":
        check_sampler_certificate(values, path=path)
        return
    if values["precision"] != "fp32":
        check_bounds(values, bounds=bounds, name=f"{values['precision']} of {path}")
        return
    worst = max(values["score"]["max"], values["map"]["max"])
    if not worst <= REFUSE or values["num_flips"]:
        raise ParityError(
            f"{path} differs from the trained model by {worst:.3g} in calibrated units, above {REFUSE:g}"
            f" ({values['num_flips']} verdicts flip), worst on {values['worst_input']!r}: do not ship it;"
            " export it again, and see the certificate beside it"
        )
    if not values.get("seam", 0.0) <= REFUSE:
        raise ParityError(
            f"{path} gives a stitched map that differs from the map without tiles by {values['seam']:.3g}, above {REFUSE:g}:"
            " its windows are too small on this device; score on another device, or fit it again"
        )


def _calibration_images(description: Description) -> list[NDArray[np.uint8]]:
    """Read the first calibration images, (H, W, 3) uint8 RGB."""
    images: list[NDArray[np.uint8]] = []
    for path in description.calibration_images[:MAX_CALIBRATION_IMAGES]:
        images.append(read_image(path, white=description.white, max_pixels=description.max_pixels))
        if sum(image[..., 0].size for image in images) > MAX_PIXELS:
            break
    return images


def adversarial_inputs(*, seed: int, fixed: Sequence[int]) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Give inputs that reveal differences hidden on images: noise, extremes, the finest pattern, odd sizes, one pixel.

    Args:
        seed: seed of the noise.
        fixed: images per run, height and width of a fixed model; empty for any size.

    Yields:
        Name and images (n, H, W, 3) uint8 of each input.
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
    """Score inputs with both models and summarise the differences in calibrated units, `|a − b| / max(1, |a|)`.

    Args:
        trained: reference model, a.
        exported: exported model, b.
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
                difference = np.nan_to_num(relative_difference(x, y), nan=np.inf)  # NaN is never equal
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
