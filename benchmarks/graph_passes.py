"""Our graph passes beside those of libraries: speed, size, flipped verdicts and AUROC of drawn defects, on one FastFlow.

    ANOMALY_WEIGHTS=FOLDER python -m benchmarks.graph_passes DATA/bottle --out benchmarks/results/graph_passes.json

* fp16: `anomaly.export.passes.half` beside onnxconverter-common's `convert_float_to_float16` with an `op_block_list`.
* int8: `anomaly.export.passes.int8` beside ONNX Runtime's `quantize_static` (per channel, QDQ, MinMax), once with
  `DedicatedQDQPair`. The chosen convolutions and the calibration images are the same.

Every file is calibrated through its own graph and compared with the fp32 file, as `anomaly export` does. All files then score
one image in turn, round by round, on one thread. Times are processor times; figures are medians over rounds, ratios are
medians of the rounds' ratios to fp32. Needs onnxconverter-common.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxconverter_common import float16
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

from anomaly.export.acceptance import draw_defects
from anomaly.export.detector import export_graph, learned_tensors
from anomaly.export.model_file import export_model
from anomaly.export.passes.half import to_half
from anomaly.export.passes.int8 import quantise
from anomaly.export.passes.int8_selection import choose
from anomaly.export.reduced_precision import NUM_TRAINING_IMAGES, SEED, read_images, write_candidate
from anomaly.inference.artifact import INPUT, IR_VERSION, Precision, load_graph
from anomaly.inference.session import open_session
from anomaly.system.run_card import RunCard
from anomaly.training.fit import fit_model
from benchmarks.export_precision import processor_ms

SINGLE = ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum", "Div", "Sub", "Sqrt", "Reciprocal", "Log")
"""Operators of preprocessing, score and calibration, which need single precision"""
REPORTED = ("num_flips", "num_good", "num_drawn_defects", "auroc_before", "auroc_after", "score")
Image = NDArray[np.uint8]


class Images(CalibrationDataReader):  # type: ignore[misc]
    """The calibration images of `quantize_static`."""

    def __init__(self, images: Iterable[Image]) -> None:
        self._inputs = iter([{INPUT: image[None]} for image in images])

    def get_next(self) -> dict[str, Image] | None:
        """Next input of the graph."""
        return next(self._inputs, None)


def static_int8(
    graph: onnx.ModelProto, convolutions: list[str], images: list[Image], *, dedicated: bool
) -> onnx.ModelProto:
    """Quantise convolutions, and the ReLU after each of them, with ONNX Runtime."""
    names = [node.name for node in graph.graph.node if node.output[0] in convolutions]
    for output in convolutions:
        readers = [node for node in graph.graph.node if output in node.input]
        names += [node.name for node in readers if len(readers) == 1 and node.op_type == "Relu"]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "int8.onnx"
        quantize_static(
            graph, file, Images(images), quant_format=QuantFormat.QDQ, per_channel=True, activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8, nodes_to_quantize=names, calibrate_method=CalibrationMethod.MinMax,
            extra_options={"DedicatedQDQPair": dedicated},
        )  # fmt: skip
        converted = onnx.load(file)
    used = {node.domain for node in converted.graph.node}
    kept = [one for one in converted.opset_import if one.domain in used]
    del converted.opset_import[:]
    converted.opset_import.extend(kept)
    converted.ir_version = IR_VERSION
    return converted


def common_fp16(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Convert to half precision with onnxconverter-common; a `Cast` in its `op_block_list` would loop without end."""
    return float16.convert_float_to_float16(
        graph, keep_io_types=True, op_block_list=[*float16.DEFAULT_OP_BLOCK_LIST, *SINGLE],
        node_block_list=[node.name for node in graph.graph.node if node.op_type == "Cast"],
    )  # fmt: skip


def main() -> None:
    """Fit, export in every form, compare, time, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--note", default="", help="other load on the machine")
    options = parser.parse_args()
    config = {
        "category": options.data.name,
        "epochs": options.epochs,
        "seed": 0,
        "rounds": options.rounds,
        "threads": 1,
    }
    card = RunCard("benchmarks/graph_passes.py", config=config)
    card.facts["note"] = options.note
    result: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        fitted = fit_model(
            options.data, out=folder / "fitted", detector="fastflow", options={"epochs": options.epochs}, seed=0,
            precision="fastest",
        )  # fmt: skip
        detector, description = fitted.detector, fitted.description
        assert detector is not None
        files = {"fp32": export_model(fitted, folder / "fp32.onnx")}
        learned, dynamic = learned_tensors(detector), export_graph(detector)
        step = max(1, len(description.train) // NUM_TRAINING_IMAGES)
        good = read_images(description.train[::step][:NUM_TRAINING_IMAGES], description)
        defects = [image for _, image in draw_defects(good, num_each=1, seed=SEED + 1)]
        choice = choose(dynamic, learned=learned, good=good, defects=defects, report=lambda done, total: None)
        chosen, images = choice.convolutions, [*good, *defects]
        passes: dict[str, tuple[Precision, Callable[[onnx.ModelProto], onnx.ModelProto]]] = {
            "fp16, ours": ("fp16", lambda graph: to_half(graph, learned=learned)),
            "fp16, onnxconverter-common": ("fp16", common_fp16),
            "int8, ours": ("int8", lambda graph: quantise(graph, chosen, ranges=choice.ranges)),
            "int8, quantize_static": ("int8", lambda graph: static_int8(graph, chosen, images, dedicated=False)),
            "int8, quantize_static, dedicated pairs": (
                "int8",
                lambda graph: static_int8(graph, chosen, images, dedicated=True),
            ),
        }
        result["fp32"] = {"bytes": files["fp32"].stat().st_size}
        for name, (precision, convert) in passes.items():
            graph = load_graph(files["fp32"])
            del graph.metadata_props[:]
            files[name] = folder / f"{name}.onnx"
            comparison = write_candidate(
                files["fp32"], convert(graph), description=description, precision=precision, out=files[name]
            )
            result[name] = {key: comparison[key] for key in REPORTED} | {"bytes": files[name].stat().st_size}
            if precision == "int8":
                result[name] |= {"num_int8": len(chosen), "num_convolutions": choice.num_candidates}
        sessions = {
            name: open_session(
                file.read_bytes(), name=name, device="cpu", num_threads=1,
                precision="int8" if "int8" in name else "fp32", is_fixed=False,
            )[0]
            for name, file in files.items()
        }  # fmt: skip
    for name, line in processor_ms(sessions, good[0][None], rounds=options.rounds).items():
        result[name] |= line
    card.facts["result"] = result
    card.write(options.out)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
