"""Invalid input at the public face: the project's own error names the argument, the value met and the way out."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import anomaly


@pytest.fixture(scope="session")
def plate_model(fitted_plate: Path) -> anomaly.Model:
    """The exported plate model, loaded through the public face."""
    return anomaly.load(fitted_plate / "model.onnx", device="cpu")


def closed_stream() -> io.BytesIO:
    stream = io.BytesIO(b"")
    stream.close()
    return stream


def text_file(folder: Path) -> Path:
    file = folder / "text.onnx"
    file.write_text("not a model", encoding="utf-8")
    return file


LOAD: list[tuple[str, Callable[[Path], Any], type[Exception], str]] = [
    ("wrong type", lambda _: 7, anomaly.UsageError, r"path is int 7: give a path as str"),
    ("empty", lambda _: "", anomaly.UsageError, r"path is empty; give a path"),
    ("missing file", lambda folder: folder / "none.onnx", anomaly.ModelError, r"none\.onnx.*anomaly export"),
    ("folder", lambda folder: folder, anomaly.ModelError, r"folder"),
    ("other file", text_file, anomaly.ModelError, r"text\.onnx.*ONNX"),
]


@pytest.mark.parametrize(("case", "make", "error", "message"), LOAD, ids=[case[0] for case in LOAD])
def test_load_refuses(
    case: str, make: Callable[[Path], Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        anomaly.load(make(tmp_path), device="cpu")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"device": "gpu"}, r"device.*'gpu'.*cpu"),
        ({"num_threads": -1}, r"num_threads.*-1"),
        ({"device": 3}, r"device.*3"),
    ],
)
def test_load_refuses_options(arguments: dict[str, Any], message: str, fitted_plate: Path) -> None:
    with pytest.raises(anomaly.UsageError, match=message):
        anomaly.load(fitted_plate / "model.onnx", **arguments)


IMAGES: list[tuple[str, Callable[[Path], Any], type[Exception], str]] = [
    ("wrong type", lambda _: 7, anomaly.UsageError, r"image: an object of type int; give a path, bytes"),
    ("none", lambda _: None, anomaly.UsageError, r"image: an object of type NoneType; give a path"),
    ("list", lambda _: [[0, 1]], anomaly.UsageError, r"image: an object of type list; give a path"),
    ("missing file", lambda folder: folder / "none.png", anomaly.ImageError, r"none\.png: the file does not exist"),
    ("folder", lambda folder: folder, anomaly.ImageError, r"folder; give the path of an image file"),
    ("no image", lambda _: b"abc", anomaly.ImageError, r"image: "),
    ("empty bytes", lambda _: b"", anomaly.ImageError, r"image: "),
    (
        "closed stream",
        lambda _: closed_stream(),
        anomaly.ImageError,
        r"the stream cannot be read \(.*closed.*open it again",
    ),
    (
        "text stream",
        lambda _: io.StringIO("x"),
        anomaly.UsageError,
        r"image: a stream of text; open the file in binary mode",
    ),
    ("float", lambda _: np.zeros((8, 8, 3)), anomaly.UsageError, r"image: a float64 array; scale it to 0…255"),
    ("int64", lambda _: np.zeros((8, 8, 3), np.int64), anomaly.UsageError, r"image: a int64 array; give \(H, W\)"),
    ("bool", lambda _: np.zeros((8, 8), bool), anomaly.UsageError, r"image: a bool array; give"),
    (
        "alpha",
        lambda _: np.zeros((8, 8, 4), np.uint8),
        anomaly.UsageError,
        r"8×8×4 .*drop the alpha channel",
    ),
    ("two channels", lambda _: np.zeros((8, 8, 2), np.uint8), anomaly.UsageError, r"array of 8×8×2; give"),
    ("channels first", lambda _: np.zeros((3, 8, 8), np.uint8), anomaly.UsageError, r"array of 3×8×8; give"),
    ("batch", lambda _: np.zeros((2, 8, 8, 3), np.uint8), anomaly.UsageError, r"array of 2×8×8×3; give"),
    ("no dimension", lambda _: np.array(7, np.uint8), anomaly.UsageError, r"array of no dimension; give"),
    ("0×0", lambda _: np.zeros((0, 0, 3), np.uint8), anomaly.UsageError, r"empty array of 0×0×3"),
    ("0 rows", lambda _: np.zeros((0, 9), np.uint8), anomaly.UsageError, r"empty array of 0×9"),
]


@pytest.mark.parametrize(("case", "make", "error", "message"), IMAGES, ids=[case[0] for case in IMAGES])
def test_model_refuses(
    case: str,
    make: Callable[[Path], Any],
    error: type[Exception],
    message: str,
    plate_model: anomaly.Model,
    tmp_path: Path,
) -> None:
    with pytest.raises(error, match=message):
        plate_model(make(tmp_path))


@pytest.mark.parametrize(("case", "make", "error", "message"), IMAGES, ids=[case[0] for case in IMAGES])
def test_stream_continues_after(
    case: str,
    make: Callable[[Path], Any],
    error: type[Exception],
    message: str,
    plate_model: anomaly.Model,
    tmp_path: Path,
) -> None:
    bad, good = plate_model.score([make(tmp_path), np.zeros((72, 88, 3), np.uint8)])
    assert bad.error
    assert bad.status != "ok"
    assert bad.score is None
    assert good.error is None


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (7, r"images: an object of type int; give a list, a generator or a folder"),
        (None, r"images: an object of type NoneType"),
        (b"abc", r"images: a single bytes; call model\(image\)"),
        ("part.png", r"images: part.png does not exist; give a folder"),
        (np.zeros((8, 8, 3), np.uint8), r"images: a single ndarray; call model\(image\)"),
        (closed_stream(), r"images: a single BytesIO; call model\(image\)"),
    ],
)
def test_stream_refuses(images: Any, message: str, plate_model: anomaly.Model) -> None:
    with pytest.raises(anomaly.UsageError, match=message):
        plate_model.score(images)


@pytest.mark.parametrize("batch_size", [0, -1, 1.5, "8", None])
def test_stream_refuses_a_batch_size(batch_size: Any, plate_model: anomaly.Model) -> None:
    with pytest.raises(anomaly.UsageError, match=r"batch_size.*: give (a whole number|1 or more)"):
        plate_model.score([], batch_size=batch_size)


def test_empty_stream_gives_nothing(plate_model: anomaly.Model) -> None:
    assert list(plate_model.score([])) == []


FIT: list[tuple[str, Callable[[Path], Any], dict[str, Any], type[Exception], str]] = [
    ("wrong type", lambda _: 7, {}, anomaly.UsageError, r"data is int 7: give a path"),
    ("missing folder", lambda folder: folder / "none", {}, anomaly.DataError, r"none"),
    ("file", text_file, {}, anomaly.DataError, r"text\.onnx"),
    ("empty folder", lambda folder: folder, {}, anomaly.DataError, r"."),
    (
        "unknown detector",
        lambda folder: folder,
        {"detector": "fastflw"},
        anomaly.UsageError,
        r"'fastflw'; nearest",
    ),
    (
        "unknown option",
        lambda folder: folder,
        {"options": {"epochz": 1}},
        anomaly.UsageError,
        r"no option 'epochz'; nearest: 'epochs'",
    ),
    ("bad alpha", lambda folder: folder, {"alpha": 2.0}, anomaly.AnomalyError, r"alpha"),
    ("out", lambda folder: folder, {"out": 7}, anomaly.UsageError, r"out is int 7"),
]


@pytest.mark.parametrize(("case", "make", "options", "error", "message"), FIT, ids=[case[0] for case in FIT])
def test_fit_refuses(
    case: str, make: Callable[[Path], Any], options: dict[str, Any], error: type[Exception], message: str, tmp_path: Path,
    plain: Path,
) -> None:  # fmt: skip
    data = plain if case.startswith(("unknown", "bad", "out")) else make(tmp_path)
    with pytest.raises(error, match=message):
        anomaly.fit(data, **({"detector": "autoencoder"} | options))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"guarantee": "bounds"}, r"guarantee is str 'bounds': give one of 'expected', 'bound'"),
        ({"precision": "fp16"}, r"precision is str 'fp16': give one of 'fastest', 'fp32', 'bf16'"),
        ({"device": "gpu"}, r"device is str 'gpu': give one of 'auto', 'cpu', 'cuda'"),
        ({"seed": -1}, r"seed -1: give 0 to"),
        ({"seed": "x"}, r"seed is str 'x': give a whole number"),
        ({"alpha": "0.1"}, r"alpha is str '0.1': give a number or None"),
        ({"detector": 3}, r"detector is int 3: give a text"),
        ({"options": [1]}, r"options is list \[1\]: give a dict"),
        ({"options": {1: 2}}, r"options is dict \{1: 2\}: give a dict"),
        ({"options": {"epochs": "x"}}, r"epochs is str 'x': give a whole number"),
        ({"options": {"epochs": 1.5}}, r"epochs is float 1.5: give a whole number"),
        ({"options": {"epochs": None}}, r"epochs is NoneType None: give a whole number"),
        ({"options": {"epochs": 0}}, r"epochs 0: give 1 or more"),
        ({"options": {"batch_size": 0}}, r"batch_size 0: give 1 or more"),
        ({"options": {"resize": "foo"}}, r"resize is str 'foo': give one of 'stretch', 'letterbox'"),
        ({"options": {"learning_rate": float("nan")}}, r"learning_rate is float nan: give a number"),
        ({"options": {"learning_rate": -1}}, r"learning_rate -1: give a number above 0"),
        ({"roi": (0, 0, 5, 5)}, r"roi is tuple \(0, 0, 5, 5\): give a text or a path or None"),
        ({"tile": 64}, r"tile is int 64: give a text or None"),
        ({"windows": "x"}, r"windows is str 'x': give a whole number or None"),
        ({"white": 1.5}, r"white is float 1.5: give a whole number or None"),
        ({"max_pixels": None}, r"max_pixels is NoneType None: give a whole number"),
        ({"out": "a\0"}, r"out is 'a\\x00': give a path without null characters"),
    ],
)
def test_fit_refuses_an_argument_before_it_reads_an_image(
    arguments: dict[str, Any], message: str, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(anomaly.UsageError, match=message):
        anomaly.fit(plain, **({"detector": "autoencoder"} | arguments))


def test_sampler_that_cannot_score_is_refused_before_the_training(plain: Path, tmp_path: Path) -> None:
    with pytest.raises(anomaly.Unsupported, match="gan: this sampler draws images and cannot score them"):
        anomaly.fit(plain, detector="gan", out=tmp_path / "gan")
    assert not (tmp_path / "gan").exists()


def test_path_that_no_system_takes_is_refused() -> None:
    for path in ("a" * 5000, "a\0.onnx"):
        with pytest.raises(anomaly.UsageError, match="give a path without null characters, at most 4096 bytes long"):
            anomaly.load(path)
