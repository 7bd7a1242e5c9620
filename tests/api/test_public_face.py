"""The public face: one import, one call, one stream, one fit."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

import anomaly
from anomaly.commands.main import run
from anomaly.data.image_files import image_files
from anomaly.imaging.image_file import read_image
from tests.plates import TINY, draw_part, draw_scratch

HEAVY = (
    "numpy",
    "torch",
    "onnx",
    "onnxruntime",
    "cv2",
    "pyarrow",
    "scipy",
    "sklearn",
    "pytorch_lightning",
    "timm",
    "jsonargparse",
)


@pytest.fixture(scope="session")
def plate_model(fitted_plate: Path) -> anomaly.Model:
    """The exported plate model, loaded through the public face."""
    return anomaly.load(fitted_plate / "model.onnx", device="cpu")


@pytest.fixture(scope="session")
def scratched() -> np.ndarray:
    """A plate with a scratch, (H, W, 3) uint8 RGB."""
    return draw_scratch(draw_part(2000), 0)[0]


def test_public_names_equal_the_list() -> None:
    assert set(anomaly.__all__) == {
        "AnomalyError", "CalibrationError", "DataError", "Fitted", "ImageError", "Model", "ModelError", "OutputError",
        "ParityError", "ProviderError", "Result", "TrainingError", "Unsupported", "UsageError", "WeightsError", "__version__",
        "fit", "load",
    }  # fmt: skip
    assert dir(anomaly) == sorted(anomaly.__all__)
    for name in anomaly.__all__:
        assert getattr(anomaly, name) is not None
    assert (Path(anomaly.__file__).parent / "py.typed").is_file()
    with pytest.raises(AttributeError, match=r"no attribute 'lod'; public names: .*load"):
        anomaly.lod  # noqa: B018


def test_import_loads_no_heavy_package() -> None:
    code = f"import anomaly, sys; print([n for n in {HEAVY!r} if n in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_load_needs_no_torch(fitted_plate: Path) -> None:
    code = "import anomaly, sys; print(anomaly.load(sys.argv[1])); print('torch' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code, str(fitted_plate / "model.onnx")], capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines()[1] == "False"
    assert result.stdout.startswith("Model(autoencoder of plate; false alarms: 9.09% expected, at most ")


def test_every_kind_of_image_gives_the_same_result(
    plate_model: anomaly.Model, scratched: np.ndarray, tmp_path: Path
) -> None:
    path = tmp_path / "part.png"
    Image.fromarray(scratched).save(path)
    kinds: list[Any] = [
        path, str(path), path.read_bytes(), io.BytesIO(path.read_bytes()), scratched, Image.fromarray(scratched),
        Image.open(path), scratched.astype(np.uint16),
    ]  # fmt: skip
    results = [plate_model(kind) for kind in kinds]
    assert len({result.score for result in results}) == 1
    result = results[0]
    assert result.verdict == "defect"
    assert result.score is not None
    assert result.score > result.threshold == 1.0
    assert result.p_value == pytest.approx(1 / 11)
    assert result.regions
    assert result.error is None
    assert result.anomaly_map.shape == scratched.shape[:2]
    assert result.overlay().shape == scratched.shape
    assert repr(result).startswith(f"Result({path}: defect, score ")


def test_grey_palette_and_alpha_follow_the_table_of_pixels(plate_model: anomaly.Model, scratched: np.ndarray) -> None:
    grey = cv2.cvtColor(scratched, cv2.COLOR_RGB2GRAY)
    expected = plate_model(np.repeat(grey[..., None], 3, axis=2)).score
    assert plate_model(grey).score == expected
    assert plate_model(Image.fromarray(grey)).score == expected
    transparent = Image.fromarray(np.dstack([scratched, np.full(grey.shape, 9, np.uint8)]))
    assert plate_model(transparent).score == plate_model(scratched).score
    turned = Image.fromarray(np.ascontiguousarray(np.rot90(scratched)))
    turned.getexif()[0x0112] = 6  # the viewer turns it clockwise
    assert plate_model(turned).score == plate_model(scratched).score


def test_stream_keeps_order_and_turns_invalid_images_into_errors(
    plate_model: anomaly.Model, category: Path, tmp_path: Path
) -> None:
    files = image_files(category / "test")
    broken = tmp_path / "broken.png"
    broken.write_bytes(files[0].read_bytes()[:100])
    stream: list[Any] = [files[0], broken, np.zeros((5, 5), np.float32), tmp_path / "none.png", *files[1:], None]
    results = list(plate_model.score(iter(stream), batch_size=4))
    assert [r.status for r in results[:4]] == ["ok", "truncated", "not_an_image", "missing"]
    assert results[-1].error is not None
    assert "NoneType" in results[-1].error
    assert [r.name for r in results if r.error is None] == [str(file) for file in files]
    assert "float32 array; scale it to 0…255" in str(results[2].error)
    assert results[1].score is results[1].verdict is results[1].p_value is None
    assert results[1]._repr_png_() is None
    with pytest.raises(anomaly.ImageError, match=r"broken\.png: not scored"):
        results[1].overlay()


def test_reused_buffer_gives_the_results_of_each_image(plate_model: anomaly.Model, scratched: np.ndarray) -> None:
    good = draw_part(3)

    def camera() -> Any:
        buffer = np.empty_like(good)
        for image in (good, scratched, good):
            buffer[...] = image
            yield buffer

    results = list(plate_model.score(camera()))
    assert [result.verdict for result in results] == ["good", "defect", "good"]
    assert np.array_equal(results[0].image, good)
    assert not results[0].image.flags.writeable


def test_files_that_close_behind_the_stream_are_read_in_time(plate_model: anomaly.Model, category: Path) -> None:
    def opened() -> Any:
        for path in image_files(category / "test" / "good"):
            with path.open("rb") as file:
                yield file

    assert [result.error for result in plate_model.score(opened())] == [None] * 6


def test_images_before_a_failure_of_the_stream_are_scored(plate_model: anomaly.Model) -> None:
    def camera() -> Any:
        yield draw_part(1)
        yield draw_part(2)
        raise ConnectionError("the camera is gone")

    results = []
    with pytest.raises(ConnectionError):
        results.extend(plate_model.score(camera()))
    stream = plate_model.score(camera())
    assert [next(stream).error, next(stream).error] == [None, None]
    with pytest.raises(ConnectionError):
        next(stream)


def test_image_of_deeper_values_than_the_model_knows_is_refused(plate_model: anomaly.Model) -> None:
    with pytest.raises(anomaly.UsageError, match=r"16-bit values up to .*, and the model was fitted on 8-bit images"):
        plate_model(draw_part(1).astype(np.uint16) * 257)


def test_bound_of_pixels_holds_for_arrays_and_pillow_images(fitted_plate: Path) -> None:
    model = anomaly.load(fitted_plate / "model.onnx", device="cpu", max_pixels=1000)
    for image in (draw_part(1), Image.fromarray(draw_part(1))):
        with pytest.raises(anomaly.ImageError, match="6,336 pixels; load the model with max_pixels above 1,000"):
            model(image)


def test_closed_and_animated_pillow_images_are_refused(plate_model: anomaly.Model, tmp_path: Path) -> None:
    path = tmp_path / "two.gif"
    frames = [Image.fromarray(draw_part(n)) for n in range(2)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    with (
        Image.open(path) as animated,
        pytest.raises(anomaly.UsageError, match=r"2 frames; give one frame, image\.copy"),
    ):
        plate_model(animated)
    closed = Image.fromarray(draw_part(1))
    closed.close()
    with pytest.raises(anomaly.ImageError, match="the Pillow image cannot be read"):
        plate_model(closed)


def test_model_travels_to_another_process(plate_model: anomaly.Model, scratched: np.ndarray) -> None:
    copied = pickle.loads(pickle.dumps(plate_model))
    assert copied(scratched).score == plate_model(scratched).score


def test_stream_reads_no_further_than_its_batch(plate_model: anomaly.Model) -> None:
    drawn = []

    def camera() -> Any:
        for n in range(10):
            drawn.append(n)
            yield draw_part(n)

    results = plate_model.score(camera(), batch_size=2)
    assert not drawn, "nothing is read before the first result is requested"
    next(results)
    assert drawn == [0, 1]


def test_results_equal_the_rows_of_the_command(
    plate_model: anomaly.Model, fitted_plate: Path, category: Path, tmp_path: Path
) -> None:
    out = tmp_path / "rows.jsonl"
    images = category / "test" / "scratch"
    assert run(["score", str(fitted_plate / "model.onnx"), str(images), "--out", str(out), "--batch-size", "2"]) == 0
    import json

    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    results = [result.to_dict() for result in plate_model.score(images, batch_size=2)]
    assert results == rows


def test_notebook_shows_the_overlay(plate_model: anomaly.Model, scratched: np.ndarray) -> None:
    png = plate_model(scratched)._repr_png_()
    assert png is not None
    shown = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    assert shown.shape == scratched.shape


@pytest.mark.slow
def test_six_lines_from_images_to_a_verdict(
    category: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    fitted = anomaly.fit(category, detector="autoencoder", options=TINY)
    assert list(tmp_path.iterdir()) == [], "nothing is written into the working folder"
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""
    assert len(fitted.calibration.scores) == 10
    assert fitted.calibration.guarantee.expected_rate == pytest.approx(1 / 11)
    point = fitted.calibration.at(0.2)
    assert (point.expected_rate, point.threshold < 1) == (pytest.approx(2 / 11), True)
    assert fitted.calibration.at(1 / 11).threshold == pytest.approx(1, abs=1e-6)
    with pytest.raises(anomaly.CalibrationError, match=r"of 10 good parts cannot bound false alarms at 0.01"):
        fitted.calibration.at(0.01)
    assert fitted.calibration.operating_points == ()
    assert "split, 10 images" in repr(fitted.calibration)
    assert "autoencoder" in fitted._repr_html_()
    evaluation = fitted.evaluate(str(category))
    assert evaluation.image.auroc.value == 1.0
    model = fitted.export("model.onnx")
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".onnx"] == ["model.onnx"]
    image = read_image(category / "test" / "scratch" / "000.png", white=255, max_pixels=10**6)
    assert model(image).verdict == "defect"
