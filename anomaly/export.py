"""From a calibrated detector to the one file that crosses to the factory."""

from __future__ import annotations

import copy
import dataclasses
import io
import logging
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import onnx
import torch

from anomaly.detectors.base import Detector
from anomaly.errors import ModelError
from anomaly.progress import progress_bar
from anomaly.run_card import RunCard, commit, versions
from anomaly.run_folder import Description, load
from anomaly.scoring.artifact import (
    CONTRACT,
    INPUT,
    IR_VERSION,
    OPSET,
    OUTPUTS,
    Golden,
    Metadata,
    calibration_tensors,
    golden_image,
    graph_sha256,
    set_calibration_tensors,
    write_model,
)
from anomaly.scoring.scorer import OnnxScorer, score_bytes

MODEL_FILE = "model.onnx"


def export(run: Path, *, out: str = "") -> Path:
    """Export the detector of a run folder as one `.onnx` file and check that the file loads and scores its golden image.

    Args:
        run: a run folder of `anomaly fit`.
        out: where to write; by default `model.onnx` in the run folder.

    Returns:
        The file.

    Raises:
        ModelError: a run folder that is damaged, or a graph that does not keep the contract.
        OutputError: a file that cannot be written.
    """
    card = RunCard("export", config=dict(locals()))
    detector, description = load(run)
    path = Path(out) if out else run / MODEL_FILE
    with progress_bar("export"):
        model = export_graph(detector)
    golden = Golden(png=description.golden, score=0.0, map_maximum=0.0)
    scores = score_bytes(model.SerializeToString(), golden_image(golden)[None])
    golden = dataclasses.replace(golden, score=float(scores.score[0]), map_maximum=float(scores.anomaly_map.max()))
    write_model(path, model, _metadata(detector, description, golden, graph_sha256(model)))
    scorer = OnnxScorer(path, device="cpu", num_threads=0)
    card.facts["result"] = {"model": scorer.sha256, "graph": scorer.metadata.sha256}
    card.write(path.with_suffix(".export.run.json"))
    return path


def export_graph(detector: Detector) -> onnx.ModelProto:
    """Export `detector.forward` as a graph from raw uint8 images of any number and size.

    Raises:
        ModelError: a graph whose inputs, outputs or calibration tensors are not those of the contract.
    """
    detector = copy.deepcopy(detector).eval().cpu()
    calibrated = {key: float(value) for key, value in detector.calibration.state_dict().items()}
    # four different values that are neither 0 nor 1: the exporter merges equal tensors and drops neutral operations
    for number, key in enumerate(calibrated):
        getattr(detector.calibration, key).fill_(0.375 + number)
    height, width = detector.preprocess.size
    # sizes of 0 and 1 would be taken for constants, equal ones for the same symbol
    example = torch.zeros(2, height + 3, width + 5, 3, dtype=torch.uint8)
    dynamic = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC}
    chatter = io.StringIO()
    with warnings.catch_warnings(), redirect_stdout(chatter), redirect_stderr(chatter), torch.no_grad():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            program = torch.onnx.export(
                detector,
                (example,),
                dynamo=True,
                opset_version=OPSET,
                external_data=False,
                input_names=[INPUT],
                output_names=list(OUTPUTS),
                dynamic_shapes=(dynamic,),
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise ModelError(
                f"{type(detector).__name__} cannot be exported: {detector.export_obstacle or first};"
                " it can be tested and compared as a run folder"
            ) from error
        finally:
            logging.disable(logging.NOTSET)
    if program is None:
        raise ModelError(f"{type(detector).__name__} could not be exported:\n{chatter.getvalue()}")
    model = _bare(program.model_proto)
    found = ([i.name for i in model.graph.input], tuple(o.name for o in model.graph.output))
    if found != ([INPUT], OUTPUTS):
        raise ModelError(
            f"the exported graph goes from {found[0]} to {found[1]}, the contract is {[INPUT]} to {OUTPUTS}"
        )
    set_calibration_tensors(model, calibrated)
    if calibration_tensors(model) != calibrated:
        raise ModelError(f"the exported graph holds {calibration_tensors(model)} as its calibration, not {calibrated}")
    return model


def _bare(model: onnx.ModelProto) -> onnx.ModelProto:
    """Take out what the exporter adds for debugging (source lines, paths) and what the contract's IR does not know."""
    model.ir_version = IR_VERSION
    del model.metadata_props[:]
    model.doc_string = ""
    model.graph.doc_string = ""
    model.producer_name, model.producer_version = "anomaly", ""
    for holder in (model.graph, *model.functions):
        for node in holder.node:
            node.doc_string = ""
            del node.metadata_props[:]
        del holder.value_info[:]
        del holder.metadata_props[:]
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        value.doc_string = ""
        del value.metadata_props[:]
    return model


def _metadata(detector: Detector, description: Description, golden: Golden, sha256: str) -> Metadata:
    return Metadata(
        contract=CONTRACT,
        kind="detector",
        detector=description.detector,
        category=description.category,
        config={
            # the names of files travel, not where they lay
            **{key: _without_folders(value) for key, value in description.config.items()},
            **{f"backbone_{key}": value for key, value in description.provenance.items()},
        },
        resize=detector.preprocess.resize,
        white=description.white,
        size=list(detector.preprocess.size),
        roi=_name(description.roi),
        alpha=description.alpha,
        promise=description.promise,
        calibration=description.calibration,
        image_stats=description.image_stats,
        versions=versions(),
        commit=commit(),
        seed=description.seed,
        sha256=sha256,
        golden=golden,
    )


def _without_folders(value: Any) -> Any:
    """An option's value with every absolute path in it cut down to its name."""
    if isinstance(value, dict):
        return {key: _without_folders(inner) for key, inner in value.items()}
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _name(value: str) -> str:
    """Name of a file without its folder; anything that is no path stays as it is."""
    return Path(value).name if value else ""
