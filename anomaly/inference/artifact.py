"""The file that crosses from training to the factory: one `.onnx` with its metadata.

The graph takes `image` uint8 RGB (n, h, w, 3) and returns `score` (n,) and `anomaly_map` (n, h', w'), calibrated.
Beside it the file carries what a later reader needs as JSON strings under the prefix `anomaly.`; the fields are those
of `Metadata`.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from numpy.typing import NDArray

from anomaly.errors import ImageError, ModelError
from anomaly.imaging.overlay import Resize
from anomaly.inference.tiles import Tiling
from anomaly.system.files import atomic_write

CONTRACT = 3
"""Version of inputs, outputs and metadata; files of another version are refused"""
OPSET = 18
IR_VERSION = 8
"""The lowest that opset 18 allows; ONNX Runtime reads it from 1.14 on"""
PREFIX = "anomaly."
Precision = Literal["fp32", "fp16", "int8"]
Brightness = Literal["kept", "levelled"]
GOLDEN_TOLERANCE = 1e-3
"""Of the golden image where a file stores no other, in calibrated units, `|a - b| / max(1, |a|)`"""
GOLDEN_SIDE = 96
INPUT = "image"
OUTPUTS = ("score", "anomaly_map")
CALIBRATION_TENSORS = {
    name: f"calibration.{name}" for name in ("offset_score", "scale_score", "offset_map", "scale_map")
}


@dataclass(frozen=True)
class CalibrationRecord:
    """What the calibration images said."""

    num_images: int
    num_part_groups: int
    scores: list[float]
    """calibrated, ascending"""
    date: str
    source: str
    """`calibration` of the training folder, or the name of a later calibration's folder, pattern or list"""
    excluded: list[str]


@dataclass(frozen=True)
class LabelledRecord:
    """Good images that a person labelled in finished runs: they count for the threshold beside the calibration images, not among them."""

    sha256: list[str]
    """of each image file"""
    scores: list[float]
    """calibrated, in the same order"""
    peaks: list[float]
    """maxima of the maps, calibrated, in the same order"""
    map_threshold: float
    """calibrated: the threshold of the map by the calibration images alone, 1 where labelled ones did not move it"""


@dataclass(frozen=True)
class Golden:
    """One small image and what the graph says of it: loading scores it again and refuses on mismatch."""

    png: str
    """base64"""
    score: float
    map_maximum: float
    tolerance: dict[str, float] = field(default_factory=dict)
    """execution provider -> what the two may differ by there; `GOLDEN_TOLERANCE` for others"""


@dataclass(frozen=True)
class Metadata:
    """All that travels in the file beside the graph."""

    contract: int
    kind: str
    """`detector` or `sampler`"""
    detector: str
    category: str
    config: dict[str, Any]
    resize: Resize
    white: int
    """stored value of a 16-bit image that becomes 255"""
    size: list[int]
    """height and width of the network's input"""
    roi: str
    """what was asked for, empty for the whole image"""
    alpha: float
    guarantee: str
    calibration: CalibrationRecord
    image_stats: dict[str, dict[str, Any]]
    """of the calibration images: mean, deviation and values of brightness, contrast, sharpness and colour"""
    versions: dict[str, str]
    commit: str
    seed: int
    sha256: str
    """of the graph's bytes without metadata"""
    golden: Golden
    precision: Precision = "fp32"
    fixed: list[int] = field(default_factory=list)
    """images at a time, height and width of a graph that takes no others; empty for any"""
    tiling: Tiling | None = None
    """how a host walks over an image whose windows the graph takes; none where it takes whole images"""
    labelled: LabelledRecord | None = None
    """what else set the threshold; none where the calibration images alone did"""
    brightness: Brightness = "kept"
    """whether the graph brings each image to the training images' mean grey level"""

    def check_size(self, image: NDArray[np.uint8], *, name: str) -> None:
        """Refuse images (..., H, W, 3) that a fixed model does not take.

        Raises:
            ImageError: their size is another; `unsupported_pixels`.
        """
        if self.fixed and image.shape[-3:-1] != tuple(self.fixed[1:]):
            _, height, width = self.fixed
            raise ImageError(
                "unsupported_pixels",
                f"{name}: {image.shape[-2]}×{image.shape[-3]} pixels, and this model is fixed to {width}×{height}:"
                " give images of that size, or export the model without --fixed",
            )


def golden_png(image: NDArray[np.uint8]) -> str:
    """Reduce an image, (H, W, 3) uint8 RGB, to at most `GOLDEN_SIDE` pixels a side and encode it as base64 of a PNG."""
    scale = min(1.0, GOLDEN_SIDE / max(image.shape[:2]))
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    data = cv2.imencode(".png", cv2.cvtColor(small, cv2.COLOR_RGB2BGR))[1]
    return base64.b64encode(data.tobytes()).decode()


def golden_image(golden: Golden) -> NDArray[np.uint8]:
    """Decode the golden image to (H, W, 3) uint8 RGB.

    Raises:
        ModelError: it cannot be decoded.
    """
    try:
        stored = cv2.imdecode(np.frombuffer(base64.b64decode(golden.png), dtype=np.uint8), cv2.IMREAD_COLOR)
    except (ValueError, cv2.error):  # not base64, or nothing in it
        stored = None
    if stored is None:
        raise ModelError("the golden image in the model's metadata is damaged: export the model again")
    return np.ascontiguousarray(stored[..., ::-1]).astype(np.uint8, copy=False)


def golden_batch(golden: Golden, *, fixed: Sequence[int]) -> NDArray[np.uint8]:
    """Give the golden image as a graph takes it, (n, H, W, 3): a fixed graph's is enlarged by nearest neighbour and repeated.

    Raises:
        ModelError: it cannot be decoded.
    """
    image = golden_image(golden)
    if not fixed:
        return image[None]
    num, height, width = fixed
    enlarged = cv2.resize(image, (width, height), interpolation=cv2.INTER_NEAREST)
    return np.repeat(np.asarray(enlarged, dtype=np.uint8)[None], num, axis=0)


def load_graph(path: Path) -> onnx.ModelProto:
    """Parse a model file.

    Raises:
        ModelError: missing, not ONNX, or with tensors in other files.
    """
    if not path.is_file():
        raise ModelError(f"no model at {path}: name an .onnx file made by `anomaly export` or `anomaly demo`")
    try:
        model = onnx.load_from_string(path.read_bytes())
    except (DecodeError, ValueError) as error:
        raise ModelError(f"{path} is no ONNX file or is cut short ({error}): export or copy it again") from error
    if not model.graph.node:
        raise ModelError(f"{path} holds no graph: export or copy it again")
    if any(t.data_location == onnx.TensorProto.EXTERNAL for t in model.graph.initializer):
        raise ModelError(f"{path} keeps tensors in other files, which can be lost: export it as one file")
    return model


def graph_sha256(model: onnx.ModelProto) -> str:
    """Hash the graph's bytes without metadata, hexadecimal."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.metadata_props[:]
    return hashlib.sha256(bare.SerializeToString(deterministic=True)).hexdigest()


def read_metadata(model: onnx.ModelProto, *, name: str) -> Metadata:
    """Read and check the metadata of a parsed file.

    Args:
        model: the parsed file.
        name: of the file, for messages.

    Raises:
        ModelError: a foreign file, another contract, or a graph that is not the one hashed at export.
    """
    values = stored_values(model, name=name)
    try:
        if values["kind"] != "detector":
            raise ModelError(
                f"{name} is a {values['kind']}: `anomaly sample` draws from it;"
                " what scores is the model.onnx that `anomaly export` writes beside it"
            )
        values["calibration"] = CalibrationRecord(**values["calibration"])
        values["golden"] = Golden(**values["golden"])
        values["tiling"] = Tiling(**values["tiling"]) if values.get("tiling") else None
        values["labelled"] = LabelledRecord(**values["labelled"]) if values.get("labelled") else None
        optional = {one.name for one in fields(Metadata) if (one.default, one.default_factory) != (MISSING, MISSING)}
        # what an older file lacks has its default
        chosen = [one.name for one in fields(Metadata) if one.name in values or one.name not in optional]
        metadata = Metadata(**{name: values[name] for name in chosen})
    except (KeyError, TypeError) as error:
        raise ModelError(f"{name} has damaged metadata ({error!r}): export it again") from error
    check_graph(model, metadata.sha256, name=name)
    return metadata


def stored_values(model: onnx.ModelProto, *, name: str) -> dict[str, Any]:
    """Read what a parsed file of this contract carries beside its graph.

    Raises:
        ModelError: a foreign file, another contract, or values that are no JSON.
    """
    found = {p.key.removeprefix(PREFIX): p.value for p in model.metadata_props if p.key.startswith(PREFIX)}
    if "contract" not in found:
        raise ModelError(
            f"{name} was not exported by this package (no {PREFIX}contract): export it with `anomaly export`"
        )
    try:
        values = {key: json.loads(value) for key, value in found.items()}
    except json.JSONDecodeError as error:
        raise ModelError(f"{name} has damaged metadata ({error!r}): export it again") from error
    if values["contract"] != CONTRACT:
        raise ModelError(
            f"{name} follows contract {values['contract']}; this version reads contract {CONTRACT}: export it again"
        )
    return values


def check_graph(model: onnx.ModelProto, sha256: str, *, name: str) -> None:
    """Refuse a graph that is not the one hashed at export.

    Raises:
        ModelError: its hash is another.
    """
    actual = graph_sha256(model)
    if actual != sha256:
        raise ModelError(
            f"{name} is not the graph that was exported: its hash is {actual[:16]}…,"
            f" recorded is {sha256[:16]}…; copy it again from its source"
        )


def write_model(path: Path, model: onnx.ModelProto, metadata: Any) -> None:
    """Write graph and metadata as one file, whole or not at all.

    Args:
        path: of the file.
        model: the graph; what metadata it carries is replaced.
        metadata: a dataclass of JSON values, such as `Metadata`.

    Raises:
        OutputError: the place cannot be written.
    """
    del model.metadata_props[:]
    for key, value in asdict(metadata).items():
        model.metadata_props.add(key=f"{PREFIX}{key}", value=json.dumps(value, ensure_ascii=False, sort_keys=True))
    with atomic_write(path) as partial:
        partial.write_bytes(model.SerializeToString(deterministic=True))


def calibration_tensors(model: onnx.ModelProto) -> dict[str, float]:
    """Read offset and scale of score and map from the graph's initialisers.

    Raises:
        ModelError: one of them is not in the graph.
    """
    found = {t.name: t for t in model.graph.initializer}
    lacking = [name for name in CALIBRATION_TENSORS.values() if name not in found]
    if lacking:
        raise ModelError(f"the graph has no tensor {lacking[0]!r}, so it cannot be calibrated again: export it again")
    return {
        key: float(onnx.numpy_helper.to_array(found[name]).reshape(())) for key, name in CALIBRATION_TENSORS.items()
    }


def set_calibration_tensors(model: onnx.ModelProto, values: dict[str, float]) -> None:
    """Write offset and scale of score and map into the graph's initialisers, in place."""
    for tensor in model.graph.initializer:
        for key, name in CALIBRATION_TENSORS.items():
            if tensor.name == name:
                new = onnx.numpy_helper.from_array(np.array(values[key], dtype=np.float32), name)
                tensor.CopyFrom(new)
