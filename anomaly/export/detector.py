"""From a calibrated detector to the one file that crosses to the factory."""

from __future__ import annotations

import copy
import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import onnx
import torch

from anomaly.detectors.base import Detector
from anomaly.detectors.tiling_support import Seamless
from anomaly.errors import ModelError, UsageError
from anomaly.export.acceptance import Bounds, summary
from anomaly.export.passes.fold import fold
from anomaly.export.passes.static_shape import fix, parse_fixed
from anomaly.export.reduced_precision import check_sizes, read_images, write_converted
from anomaly.export.sampler import SAMPLER_FILE, export_sampler
from anomaly.export.torch_to_onnx import to_onnx
from anomaly.inference.artifact import (
    CONTRACT,
    GOLDEN_TOLERANCE,
    INPUT,
    OUTPUTS,
    Golden,
    Metadata,
    Precision,
    calibration_tensors,
    golden_batch,
    graph_sha256,
    set_calibration_tensors,
    write_model,
)
from anomaly.inference.scorer import OnnxScorer, score_bytes
from anomaly.inference.session import PROVIDERS
from anomaly.samplers.base import Sampler
from anomaly.system.files import write_json
from anomaly.system.progress import progress_bar
from anomaly.system.run_card import RunCard, commit, versions
from anomaly.training.fitted_model import Description, config_to_travel, load

MODEL_FILE = "model.onnx"


def export(
    run: Path,
    *,
    out: str = "",
    precision: Precision = "fp32",
    fixed: str = "",
    max_auroc_loss: float = 0.003,
    max_flips: float = 0.02,
) -> Path:
    """Export what a run folder holds as one `.onnx` file, and check that the file loads and scores its golden image.

    A sampler gives two files: `sampler.onnx`, which draws, and, where it has a form as a detector, the file that scores; the
    options below concern the latter.

    Args:
        run: a run folder of `anomaly fit`.
        out: where to write the file that scores; by default `model.onnx` in the run folder. `sampler.onnx` goes beside it.
        precision: fp32; fp16 for GPUs; int8 for CPUs, as many convolutions as scores bear. The last two are calibrated again
            through their own file and compared with fp32 on calibration images and defects drawn onto them.
        fixed: N,H,W for a form that takes N images of H×W pixels at a time and no others, without antialiased Resize, for
            TensorRT and CUDA graphs; by default any number and size.
        max_auroc_loss: of drawn defects, above which fp16 and int8 are refused; 0.003 are 0.3 points.
        max_flips: share of verdicts that may change in fp16 and int8.

    Returns:
        The file that scores, or that of a sampler that only draws.

    Raises:
        ModelError: a run folder that is damaged, or a graph that does not keep the contract.
        ParityError: fp16 or int8 that loses more than allowed; the file that was there stays.
        UsageError: a fixed size that the images do not have, or a precision that this detector cannot have.
        OutputError: a file that cannot be written.
    """
    card = RunCard("export", config=dict(locals()))
    size = parse_fixed(fixed) if fixed else None
    detector, description = load(run)
    path = Path(out) if out else run / MODEL_FILE
    if isinstance(detector, Sampler):
        drawing = path.with_name(SAMPLER_FILE)
        card.facts["sampler"] = export_sampler(detector, description, drawing)
        if not detector.scores:
            card.write(drawing.with_suffix(".export.run.json"))
            return drawing
    if size is not None and description.tiling:
        raise UsageError("--fixed takes whole images, and this model walks over large ones: leave --fixed out")
    if size is not None:
        check_sizes(read_images(description.calibration_images, description), size)
    with progress_bar("export"):
        dynamic = export_graph(detector)
    model = dynamic if size is None else fix(dynamic, size)
    tolerance = dict.fromkeys(PROVIDERS.values(), GOLDEN_TOLERANCE)
    golden = Golden(png=description.golden, score=0.0, map_maximum=0.0, tolerance=tolerance)
    scores = score_bytes(model.SerializeToString(), golden_batch(golden, fixed=size or ()), tiling=description.tiling)
    golden = dataclasses.replace(golden, score=float(scores.score[0]), map_maximum=float(scores.anomaly_map[0].max()))
    metadata = dataclasses.replace(
        _metadata(detector, description, golden, graph_sha256(model)), fixed=list(size or ())
    )
    if precision == "fp32":
        write_model(path, model, metadata)
    else:
        with tempfile.TemporaryDirectory() as folder:
            reference = Path(folder) / MODEL_FILE
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
        write_json(path.with_suffix(".certificate.json"), certificate)
        card.facts["certificate"] = certificate
        print(f"{path}: {summary(certificate)}")
    scorer = OnnxScorer(path, device="cpu", num_threads=0)
    card.facts["result"] = {"model": scorer.sha256, "graph": scorer.metadata.sha256}
    card.write(path.with_suffix(".export.run.json"))
    return path


def learned_tensors(detector: Detector) -> frozenset[str]:
    """Names of what was learned, here or before: parameters, not the constant windows of a measure."""
    return frozenset(name for name, _ in detector.named_parameters())


def export_graph(detector: Detector) -> onnx.ModelProto:
    """Export `detector.forward` as a graph from raw uint8 images of any number and size, without dead work.

    Raises:
        ModelError: a graph whose inputs, outputs or calibration tensors are not those of the contract.
    """
    return fold(trace_graph(detector))


def trace_graph(detector: Detector) -> onnx.ModelProto:
    """Export `detector.forward` operation by operation, as it was written; errors as `export_graph` has them."""
    detector = copy.deepcopy(detector).eval().cpu()
    calibrated = {key: float(value) for key, value in detector.calibration.state_dict().items()}
    # four different values that are neither 0 nor 1: the exporter merges equal tensors and drops neutral operations
    for number, key in enumerate(calibrated):
        getattr(detector.calibration, key).fill_(0.375 + number)
    example, shapes = _example(detector)
    model = to_onnx(
        detector,
        (example,),
        shapes=(shapes,),
        inputs=[INPUT],
        outputs=list(OUTPUTS),
        reason=detector.export_reason,
    )
    found = ([i.name for i in model.graph.input], tuple(o.name for o in model.graph.output))
    if found != ([INPUT], OUTPUTS):
        raise ModelError(
            f"the exported graph goes from {found[0]} to {found[1]}, the contract is {[INPUT]} to {OUTPUTS}"
        )
    set_calibration_tensors(model, calibrated)
    if calibration_tensors(model) != calibrated:
        raise ModelError(f"the exported graph holds {calibration_tensors(model)} as its calibration, not {calibrated}")
    return model


def _example(detector: Detector) -> tuple[torch.Tensor, dict[int, Any]]:
    """Images to trace the graph with, and which of their axes stay free; windows of a large image are not resized."""
    height, width = detector.preprocess.size
    free = torch.export.Dim.DYNAMIC
    if detector.preprocess.resize != "native":
        # sizes of 0 and 1 would be taken for constants, equal ones for the same symbol
        return torch.zeros(2, height + 3, width + 5, 3, dtype=torch.uint8), {0: free, 1: free, 2: free}
    if not isinstance(detector.tiling, Seamless):
        return torch.zeros(2, height, width, 3, dtype=torch.uint8), {0: free}
    stride = detector.tiling.stride
    rows, columns = (stride * torch.export.Dim(name) for name in ("rows", "columns"))
    return torch.zeros(2, 5 * stride, 7 * stride, 3, dtype=torch.uint8), {0: free, 1: rows, 2: columns}


def _metadata(detector: Detector, description: Description, golden: Golden, sha256: str) -> Metadata:
    return Metadata(
        contract=CONTRACT,
        kind="detector",
        detector=description.detector,
        category=description.category,
        config=config_to_travel(description),
        resize=detector.preprocess.resize,
        white=description.white,
        size=list(detector.preprocess.size),
        roi=_name(description.roi),
        alpha=description.alpha,
        guarantee=description.guarantee,
        calibration=description.calibration,
        image_stats=description.image_stats,
        versions=versions(),
        commit=commit(),
        seed=description.seed,
        sha256=sha256,
        golden=golden,
        tiling=description.tiling,
        brightness=description.brightness,
    )


def _name(value: str) -> str:
    """Name of a file without its folder; anything that is no path stays as it is."""
    return Path(value).name if value else ""
