"""Export of a fitted model to the .onnx file for the factory."""

from __future__ import annotations

import dataclasses
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

import onnx

from anomaly.detectors.base import Detector
from anomaly.errors import UsageError
from anomaly.export.acceptance import Bounds
from anomaly.export.bank import bank_initializers
from anomaly.export.detector import build_metadata, export_graph, learned_tensors
from anomaly.export.passes.static_shape import Fixed, fix, parse_fixed
from anomaly.export.reduced_precision import check_sizes, read_images, write_converted
from anomaly.export.reference_images import ReferenceImages, export_references, remove_references
from anomaly.export.sampler import SAMPLER_FILE, export_sampler
from anomaly.inference.artifact import Metadata, Precision, write_model
from anomaly.inference.golden import GOLDEN_TOLERANCE, Golden, golden_batch
from anomaly.inference.scorer import OnnxScorer, score_bytes
from anomaly.inference.session import PROVIDERS
from anomaly.samplers.base import Sampler
from anomaly.system.argument_types import check_types
from anomaly.system.files import as_path
from anomaly.system.progress import progress_bar
from anomaly.training.fitted_model import Description, FittedModel, load_fitted_model

MODEL_FILE = "model.onnx"


@dataclass(frozen=True)
class Export:
    """The files of one export, with their facts."""

    path: Path
    """file that scores, or the file of a sampler that only draws"""
    sha256: str | None = None
    """hash of the file that scores; None for a sampler that only draws"""
    graph_sha256: str | None = None
    """hash of the graph without metadata"""
    sampler: dict[str, Any] | None = None
    """facts about the file that draws; None for a detector"""
    certificate: dict[str, Any] | None = None
    """comparison of fp16 or int8 with fp32; None for fp32"""
    references: ReferenceImages | None = None
    """archive of reduced training images; None for a model without a bank, or where none was requested"""


def export_model(
    fitted: FittedModel | str | Path,
    out: str | Path | None = None,
    *,
    precision: Precision = "fp32",
    fixed: str | None = None,
    max_auroc_loss: float = 0.003,
    max_flips: float = 0.02,
    references: bool = True,
) -> Path:
    """Export a fitted model as one .onnx file; arguments and errors are those of `export_files`.

    Returns:
        The file that scores, or the file of a sampler that only draws.
    """
    return export_files(
        fitted,
        out,
        precision=precision,
        fixed=fixed,
        max_auroc_loss=max_auroc_loss,
        max_flips=max_flips,
        references=references,
    ).path


def export_files(
    fitted: FittedModel | str | Path,
    out: str | Path | None = None,
    *,
    precision: Precision = "fp32",
    fixed: str | None = None,
    max_auroc_loss: float = 0.003,
    max_flips: float = 0.02,
    references: bool = True,
) -> Export:
    """Export a fitted model, then load the file and score its golden image.

    A sampler gives `sampler.onnx`, which draws. A sampler with a detector form also gives the file that scores; the options
    concern that file.

    Args:
        fitted: fitted model, or its folder.
        out: file that scores; None for `model.onnx` in that folder. `sampler.onnx` is written beside it.
        precision: precision of the learned convolutions. fp16 and int8 are calibrated through their own graph and
            compared with fp32.
        fixed: shape N,H,W of the only accepted input; None accepts any number and size of images.
        max_auroc_loss: largest loss of AUROC on drawn defects for fp16 and int8, in [0, 1].
        max_flips: largest share of verdicts that may change in fp16 and int8, in [0, 1].
        references: whether reduced training images of a memory bank are stored beside the file, as evidence for verdicts.

    Raises:
        ModelError: a damaged or missing fitted model, or a graph that breaks the contract.
        ParityError: fp16 or int8 loses more than allowed; an existing file stays.
        UsageError: a fixed size that the images do not have, or a precision that the detector does not support.
        OutputError: a file that cannot be written.
    """
    check_types(locals(), get_type_hints(export_files))
    size = parse_fixed(fixed) if fixed is not None else None
    if not isinstance(fitted, FittedModel):
        fitted = load_fitted_model(as_path(fitted, name="fitted"))
    detector, description = fitted.detector, fitted.description
    path = as_path(out, name="out") if out is not None else fitted.folder / MODEL_FILE
    drawing, sampler = path.with_name(SAMPLER_FILE), None
    if isinstance(fitted.model, Sampler):
        sampler = export_sampler(fitted.model, description, drawing)
    if detector is None:
        return Export(drawing, sampler=sampler)
    if size is not None:
        _check_fixed(size, description)
    with progress_bar("export"):
        dynamic = export_graph(detector)
    model = dynamic if size is None else fix(dynamic, size, banks=bank_initializers(detector))
    metadata = _metadata(detector, description, model, fixed=list(size or ()))
    certificate = None
    if precision == "fp32":
        write_model(path, model, metadata)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            reference = Path(scratch) / MODEL_FILE
            write_model(reference, model, metadata)
            certificate = write_converted(
                reference,
                dynamic,
                description=description,
                precision=precision,
                learned=learned_tensors(detector),
                bounds=Bounds(auroc_loss=max_auroc_loss, flips=max_flips),
                out=path,
            )
    scorer = OnnxScorer(path, device="cpu", num_threads=0)
    remove_references(path)
    stored = export_references(path, scorer.metadata, description) if references else None
    return Export(
        path,
        sha256=scorer.sha256,
        graph_sha256=scorer.metadata.sha256,
        sampler=sampler,
        certificate=certificate,
        references=stored,
    )


def _metadata(detector: Detector, description: Description, model: onnx.ModelProto, *, fixed: list[int]) -> Metadata:
    """Score the golden image and collect the metadata."""
    tolerance = dict.fromkeys(PROVIDERS.values(), GOLDEN_TOLERANCE)
    golden = Golden(png=description.golden, score=0.0, map_maximum=0.0, tolerance=tolerance)
    scores = score_bytes(model.SerializeToString(), golden_batch(golden, fixed=fixed), tiling=description.tiling)
    golden = dataclasses.replace(golden, score=float(scores.score[0]), map_maximum=float(scores.anomaly_map[0].max()))
    return build_metadata(detector, description, model, golden=golden, fixed=fixed)


def _check_fixed(size: Fixed, description: Description) -> None:
    """Refuse fixed shapes for a tiled model and for images of another size.

    Raises:
        UsageError: a tiled model, or images of another size.
    """
    if description.tiling:
        raise UsageError("--fixed takes whole images, and this model scores large images in tiles: omit --fixed")
    check_sizes(read_images(description.calibration_images, description), size)
