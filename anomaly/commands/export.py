"""The verb `export`: a fitted model as one .onnx file, with its certificate and run card beside it."""

from __future__ import annotations

from pathlib import Path

from anomaly.export.acceptance import summary
from anomaly.export.model_file import Export, export_files
from anomaly.inference.artifact import Precision, load_graph, read_metadata
from anomaly.system.files import write_json
from anomaly.system.run_card import RunCard


def export(
    fitted: Path,
    *,
    out: Path | None = None,
    precision: Precision = "fp32",
    fixed: str | None = None,
    max_auroc_loss: float = 0.003,
    max_flips: float = 0.02,
    no_references: bool = False,
) -> Export:
    """Export a fitted model as one .onnx file, and check that the file loads and scores its golden image.

    A sampler becomes `sampler.onnx`, which draws images. A sampler with a detector form also becomes a model file, which
    scores images; the options concern the model file.

    Args:
        fitted: folder that `anomaly fit` wrote.
        out: model file; by default `model.onnx` in the folder of the fitted model. `sampler.onnx` is written beside it.
        precision: precision of the learned convolutions: fp32, fp16 for GPUs, or int8 for CPUs. fp16 and int8 are calibrated
            through their own graph. They are compared with fp32 on calibration images with and without drawn defects.
        fixed: shape N,H,W of the only accepted input, for TensorRT and CUDA graphs; by default any number and size.
        max_auroc_loss: largest loss of AUROC on drawn defects for fp16 and int8; 0.003 is 0.3 points.
        max_flips: largest share of verdicts that may change in fp16 and int8.
        no_references: write no archive of reduced training images beside the file of a memory bank. The archive shows the
            nearest good patch beside a rejected region.

    Raises:
        ModelError: a damaged or missing fitted model, or a graph that breaks the contract.
        ParityError: fp16 or int8 loses more than allowed; an existing file stays.
        UsageError: another fixed size than that of the images, or a precision that the detector does not support.
        OutputError: a file that cannot be written.
    """
    card = RunCard("export", config=dict(locals()))
    exported = export_files(
        fitted,
        out,
        precision=precision,
        fixed=fixed,
        max_auroc_loss=max_auroc_loss,
        max_flips=max_flips,
        references=not no_references,
    )
    if exported.sampler is not None:
        card.facts["sampler"] = exported.sampler
    if exported.certificate is not None:
        write_json(exported.path.with_suffix(".certificate.json"), exported.certificate)
        card.facts["certificate"] = exported.certificate
    if exported.sha256 is not None:
        card.facts["result"] = {"model": exported.sha256, "graph": exported.graph_sha256}
    card.write(exported.path.with_suffix(".export.run.json"))
    return exported


def show(exported: Export) -> None:
    """Print the guarantee, and the comparison of fp16 or int8 with fp32."""
    if exported.certificate is not None:
        print(f"{exported.path}: {summary(exported.certificate)}")
    if (stored := exported.references) is not None:
        missing = f"; {stored.num_missing} training images cannot be read" if stored.num_missing else ""
        print(f"{stored.path}: {stored.num_images} reduced training images, {stored.num_bytes / 1e6:.1f} MB{missing}")
    if exported.sha256 is not None:
        print(read_metadata(load_graph(exported.path), name=str(exported.path)).certified)
