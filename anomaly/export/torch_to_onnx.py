"""Export of a torch module to a bare ONNX graph of the contract's opset, with torch's exporter."""

from __future__ import annotations

import io
import logging
import warnings
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

import onnx
import torch

from anomaly.errors import ModelError
from anomaly.inference.artifact import IR_VERSION, OPSET


def to_onnx(
    module: torch.nn.Module,
    example: tuple[torch.Tensor, ...],
    *,
    shapes: Any,
    inputs: list[str],
    outputs: list[str],
    reason: str | None = None,
) -> onnx.ModelProto:
    """Export a module as a bare graph of the contract's opset.

    Args:
        module: module in eval mode on the CPU.
        example: example inputs; dynamic axes have sizes other than 0 and 1, and different from each other.
        shapes: dynamic axes of each input, in the form of `torch.export`.
        inputs: names of the inputs.
        outputs: names of the outputs.
        reason: known reason why the module cannot be exported; None if there is none.

    Raises:
        ModelError: the module cannot be exported, with the reason.
    """
    name = type(module).__name__
    output_text = io.StringIO()
    with warnings.catch_warnings(), redirect_stdout(output_text), redirect_stderr(output_text), torch.no_grad():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            program = torch.onnx.export(
                module,
                example,
                dynamo=True,
                opset_version=OPSET,
                external_data=False,
                input_names=inputs,
                output_names=outputs,
                dynamic_shapes=shapes,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise ModelError(
                f"{name} cannot be exported: {reason or first}; evaluate the fitted model in its folder instead"
            ) from error
        finally:
            logging.disable(logging.NOTSET)
    if program is None:
        raise ModelError(f"{name} could not be exported:\n{output_text.getvalue()}")
    return _bare(program.model_proto)


def _bare(model: onnx.ModelProto) -> onnx.ModelProto:
    """Remove debugging facts of the exporter (source lines, paths) and fields missing in the contract's IR version."""
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
