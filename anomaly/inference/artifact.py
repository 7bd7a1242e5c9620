"""The model file: one `.onnx` with its metadata.

The graph takes `image` uint8 RGB (n, h, w, 3) and returns `score` (n,) and `anomaly_map` (n, h', w'), both calibrated.
The metadata are JSON strings with the prefix `anomaly.`; their fields are those of `Metadata`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from numpy.typing import NDArray

from anomaly.conformal.calibration import CalibrationScores, OperatingPoint
from anomaly.conformal.guarantee import Construction, Guarantee, GuaranteeKind
from anomaly.errors import CalibrationError, ImageError, ModelError
from anomaly.imaging.overlay import Resize
from anomaly.inference.bank_record import BankRecord, read_bank_record
from anomaly.inference.golden import Golden
from anomaly.inference.tiles import Tiling
from anomaly.system.files import as_path, atomic_write

CONTRACT = 3
"""Version of inputs, outputs and metadata; a file of another version is refused"""
OPSET = 18
IR_VERSION = 8
"""Lowest version for opset 18; ONNX Runtime 1.14 and later read it"""
PREFIX = "anomaly."
Precision = Literal["fp32", "fp16", "int8"]
Brightness = Literal["kept", "levelled"]
HASH_LENGTH = 16
"""Hexadecimal digits in the stored hash of a training image"""
INPUT = "image"
OUTPUTS = ("score", "anomaly_map")
CALIBRATION_TENSORS = {
    name: f"calibration.{name}" for name in ("offset_score", "scale_score", "offset_map", "scale_map")
}


@dataclass(frozen=True)
class CalibrationRecord:
    """Scores and origin of the calibration images."""

    num_images: int
    num_part_groups: int
    scores: list[float]
    """calibrated scores, ascending"""
    date: str
    source: str
    """`calibration` for the training folder; else the folder, pattern or list of a later calibration"""
    excluded: list[str]
    construction: Construction = "split"
    """origin of the scores"""
    exact: bool = True
    """whether a theorem gives the expected rate; False for an approximate construction"""
    group_sizes: list[int] = field(default_factory=list)
    """images in the part group of each score; empty where every image is a part of its own"""

    def ranked(self) -> CalibrationScores:
        """Return the scores with their part groups, for thresholds and p-values."""
        return CalibrationScores(
            np.asarray(self.scores, dtype=np.float64), self.group_sizes, self.construction, self.exact
        )


_CALIBRATION_DEFAULTS: dict[str, Any] = {"construction": "split", "exact": True, "group_sizes": []}


@dataclass(frozen=True)
class LabelledRecord:
    """Images that a person labelled good in finished runs. They can raise the threshold; the guarantee does not count them."""

    sha256: list[str]
    """hashes of the image files"""
    scores: list[float]
    """calibrated scores, in the order of the hashes"""
    peaks: list[float]
    """maxima of the calibrated maps, in the order of the hashes"""
    map_threshold: float
    """calibrated threshold of the map on the calibration images alone; 1 if the labelled images did not raise it"""


@dataclass(frozen=True)
class Metadata:
    """Content of the file beside the graph."""

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
    roi: str | None
    """region of interest: x,y,w,h or the name of a mask file; None for the whole image"""
    alpha: float
    guarantee: str
    calibration: CalibrationRecord
    image_stats: dict[str, dict[str, Any]]
    """mean, deviation and values of brightness, contrast, sharpness and colour of the calibration images"""
    versions: dict[str, str]
    commit: str | None
    """commit of the exporting checkout; None outside a checkout"""
    seed: int
    sha256: str
    """hash of the graph's bytes without metadata"""
    golden: Golden
    precision: Precision = "fp32"
    fixed: list[int] = field(default_factory=list)
    """images per inference, height and width of a graph with fixed shapes; empty for any shape"""
    tiling: Tiling | None = None
    """windows of a graph for parts of large images; None for a graph of whole images"""
    labelled: LabelledRecord | None = None
    """labelled images that count for the threshold; None without such images"""
    brightness: Brightness = "kept"
    """`levelled`: the graph scales each image to the mean grey level of the training images"""
    training_hashes: list[str] = field(default_factory=list)
    """first `HASH_LENGTH` digits of the SHA-256 of each training image file; empty in files of earlier versions"""
    bank: BankRecord | None = None
    """bank of patches, its images in the order of `training_hashes`; None for a detector without a bank"""

    @property
    def certified(self) -> Guarantee:
        """Guarantee of the file's own threshold."""
        return self.calibration.ranked().guarantee(alpha=self.alpha, guarantee=self._kind)

    @property
    def operating_points(self) -> tuple[OperatingPoint, ...]:
        """Thresholds at 1, 2 and 5 %, those that the calibration supports."""
        labelled = np.array(self.labelled.scores) if self.labelled else None
        return self.calibration.ranked().operating_points(guarantee=self._kind, labelled=labelled)

    @property
    def _kind(self) -> GuaranteeKind:
        return "bound" if self.guarantee == "bound" else "expected"

    def check_size(self, image: NDArray[np.uint8], *, name: str) -> None:
        """Refuse images of another size than that of a fixed model.

        Args:
            image: (..., H, W, 3) uint8 RGB.
            name: name of the images, for messages.

        Raises:
            ImageError: `unsupported_pixels`, another size.
        """
        if self.fixed and image.shape[-3:-1] != tuple(self.fixed[1:]):
            _, height, width = self.fixed
            raise ImageError(
                "unsupported_pixels",
                f"{name}: {image.shape[-2]}×{image.shape[-3]} pixels, and this model is fixed to {width}×{height}:"
                " give images of that size, or export the model without --fixed",
            )


def load_graph(path: str | Path) -> onnx.ModelProto:
    """Parse a model file.

    Raises:
        ModelError: the file is missing, unreadable, not ONNX, or has tensors in other files.
        UsageError: `path` is neither a string nor a path.
    """
    return parse_graph(read_model_file(path), name=str(path))


def read_model_file(path: str | Path) -> bytes:
    """Read the bytes of a model file.

    Raises:
        ModelError: the file is missing or cannot be read, or the path is a folder.
        UsageError: `path` is neither a string nor a path.
    """
    file = as_path(path, name="path")
    try:
        return file.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        if isinstance(error, FileNotFoundError):
            reason = "the file does not exist"
        elif file.is_dir():
            reason = "this is a folder"
        else:
            reason = str(error)
        raise ModelError(
            f"no model at {path} ({reason}): give an .onnx file made by `anomaly export` or `anomaly demo`"
        ) from error


def parse_graph(data: bytes, *, name: str) -> onnx.ModelProto:
    """Parse the bytes of a model file.

    Args:
        data: content of the file.
        name: name of the file, for messages.

    Raises:
        ModelError: the content is not ONNX, or has tensors in other files.
    """
    try:
        model = onnx.load_from_string(data)
    except (DecodeError, ValueError) as error:
        raise ModelError(f"{name} is not an ONNX file or is cut short ({error}): export or copy it again") from error
    if not model.graph.node:
        raise ModelError(f"{name} holds no graph: export or copy it again")
    if any(t.data_location == onnx.TensorProto.EXTERNAL for t in model.graph.initializer):
        raise ModelError(f"{name} keeps tensors in other files, which can get lost: export it as one file")
    return model


def graph_sha256(model: onnx.ModelProto) -> str:
    """Hash the graph's bytes without metadata; SHA-256 in hexadecimal."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.metadata_props[:]
    return hashlib.sha256(bare.SerializeToString(deterministic=True)).hexdigest()


def read_metadata(model: onnx.ModelProto, *, name: str) -> Metadata:
    """Read and check the metadata of a parsed file.

    Args:
        model: parsed file.
        name: name of the file, for messages.

    Raises:
        ModelError: a foreign file, another contract, or a graph changed since the export.
    """
    values = stored_values(model, name=name)
    try:
        if values["kind"] != "detector":
            raise ModelError(
                f"{name} is a {values['kind']}: `anomaly sample` draws from it;"
                " to score images, give the model.onnx that `anomaly export` writes beside it"
            )
        values["calibration"] = CalibrationRecord(**values["calibration"])
        values["golden"] = Golden(**values["golden"])
        values["tiling"] = Tiling(**values["tiling"]) if values.get("tiling") else None
        values["labelled"] = LabelledRecord(**values["labelled"]) if values.get("labelled") else None
        values["bank"] = read_bank_record(values["bank"]) if values.get("bank") else None
        optional = {one.name for one in fields(Metadata) if (one.default, one.default_factory) != (MISSING, MISSING)}
        # a field missing in an older file has its default
        chosen = [one.name for one in fields(Metadata) if one.name in values or one.name not in optional]
        metadata = Metadata(**{name: values[name] for name in chosen})
        metadata.calibration.ranked()
    except (CalibrationError, KeyError, TypeError) as error:
        raise ModelError(f"{name} has damaged metadata ({error!r}): export it again") from error
    check_graph(model, metadata.sha256, name=name)
    return metadata


def stored_values(model: onnx.ModelProto, *, name: str) -> dict[str, Any]:
    """Read the metadata of a parsed file as JSON values.

    Args:
        model: parsed file.
        name: name of the file, for messages.

    Raises:
        ModelError: a foreign file, another contract, or values that are not JSON.
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
    """Refuse a graph changed since the export.

    Args:
        model: parsed file.
        sha256: hash recorded at the export.
        name: name of the file, for messages.

    Raises:
        ModelError: the graph has another hash.
    """
    actual = graph_sha256(model)
    if actual != sha256:
        raise ModelError(
            f"{name} is not the exported graph: its hash is {actual[:16]}…,"
            f" the recorded hash is {sha256[:16]}…; copy it again from its source"
        )


def write_model(path: str | Path, model: onnx.ModelProto, metadata: Any) -> None:
    """Write graph and metadata as one file, whole or not at all.

    Args:
        path: file to write.
        model: graph; its metadata are replaced.
        metadata: dataclass of JSON values, such as `Metadata`.

    Raises:
        OutputError: the file cannot be written.
    """
    del model.metadata_props[:]
    for key, value in _stored_fields(metadata).items():
        model.metadata_props.add(key=f"{PREFIX}{key}", value=json.dumps(value, ensure_ascii=False, sort_keys=True))
    with atomic_write(path) as partial:
        partial.write_bytes(model.SerializeToString(deterministic=True))


def _stored_fields(metadata: Any) -> dict[str, Any]:
    """Fields to write; earlier versions can read a file whose calibration has the default construction and no groups."""
    values = asdict(metadata)
    if isinstance(calibration := values.get("calibration"), dict):
        values["calibration"] = {
            name: value for name, value in calibration.items() if value != _CALIBRATION_DEFAULTS.get(name)
        }
    return values


def calibration_tensors(model: onnx.ModelProto) -> dict[str, float]:
    """Read offset and scale of score and map from the graph's initialisers.

    Returns:
        Key of `CALIBRATION_TENSORS` -> value.

    Raises:
        ModelError: a tensor is missing.
    """
    found = {t.name: t for t in model.graph.initializer}
    missing = [name for name in CALIBRATION_TENSORS.values() if name not in found]
    if missing:
        raise ModelError(f"the graph has no tensor {missing[0]!r} and cannot be calibrated again: export it again")
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
