"""The verb `verify`: compare a fitted model with its exported file, and write the certificate beside the file."""

from __future__ import annotations

from pathlib import Path

from anomaly.export.acceptance import Bounds, summary
from anomaly.export.parity import REFUSE, TARGET, Certificate, check_certificate, compare_files
from anomaly.export.sampler import worst_function
from anomaly.inference.session import Device
from anomaly.system.files import write_json
from anomaly.system.run_card import RunCard
from anomaly.training.tiling import TARGET as SEAM_TARGET


def verify(
    fitted: Path,
    *,
    model: Path | None = None,
    device: Device = "cpu",
    batch_size: int = 4,
    seed: int = 0,
    max_auroc_loss: float = 0.003,
    max_flips: float = 0.02,
) -> list[Certificate]:
    """Compare the fitted model with the exported file on calibration images, random and adversarial inputs.

    The certificate is written as `MODEL.certificate.json`, also for a refused file. An fp32 file must keep scores and
    maps; an fp16 or int8 file must keep verdicts, on calibration images and on defects drawn onto them.

    Args:
        fitted: folder that `anomaly fit` wrote.
        model: exported file; by default `model.onnx` in the folder of the fitted model.
        device: device of the exported file; TF32 is off on both sides.
        batch_size: images per inference.
        seed: seed of the random inputs and drawn defects.
        max_auroc_loss: largest loss of AUROC on drawn defects for fp16 and int8; 0.003 is 0.3 points.
        max_flips: largest share of verdicts that may change in fp16 and int8.

    Raises:
        ParityError: a difference above the tolerance.
        ModelError: a missing or damaged file.
    """
    card = RunCard("verify", config=dict(locals()))
    certificates = compare_files(fitted, model=model, device=device, batch_size=batch_size, seed=seed)
    for certificate in certificates:
        path, values = certificate.path, certificate.values
        write_json(certificate.file, values)
        if values["kind"] == "parity":
            card.facts["result"] = {key: values[key] for key in ("model", "score", "map", "num_flips")}
            card.write(path.with_suffix(".verify.run.json"))
        check_certificate(certificate, bounds=Bounds(max_auroc_loss, max_flips))
    return certificates


def show(certificates: list[Certificate]) -> None:
    """Print one line per file."""
    for certificate in certificates:
        path, values = certificate.path, certificate.values
        if values["kind"] != "parity":
            _, worst, tolerance = worst_function(values)
            print(f"{path}: parity {worst:.2g} (target {values['target']:g}, refused above {tolerance:g})")
        elif values["precision"] != "fp32":
            print(f"{path}: {values['precision']}, {summary(values)}")
        else:
            worst = max(values["score"]["max"], values["map"]["max"])
            print(f"{path}: parity {worst:.2g} (target {TARGET:g}, refused above {REFUSE:g}), no verdict flips")
        if "guarantee_text" in values:
            print(values["guarantee_text"])
        if "seam" in values:
            print(f"stitched map within {values['seam']:.2g} of the map without tiles (target {SEAM_TARGET:g})")
