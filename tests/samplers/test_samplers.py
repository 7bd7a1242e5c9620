"""Every registered sampler from fit to export, with equal samples of the trained model and its file; the verb `sample`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from numpy.typing import NDArray

from anomaly.commands.fit import fit
from anomaly.commands.main import run
from anomaly.commands.parser import parse
from anomaly.errors import ModelError, Unsupported, UsageError
from anomaly.export.model_file import export_model
from anomaly.export.parity import compare_files, verify
from anomaly.generation.artifact import read_sampler
from anomaly.generation.base import Options, SamplingLoop
from anomaly.generation.onnx_sampler import OnnxSampler
from anomaly.generation.sample import check_options, resized_mask
from anomaly.imaging.image_file import read_image
from anomaly.inference.scorer import OnnxScorer
from anomaly.samplers import SAMPLERS
from anomaly.samplers.base import Sampler
from anomaly.training.fit import fit_model
from anomaly.training.fitted_model import build_sampler, load_fitted_model
from tests.samplers.tiny_samplers import OPTIONS

pytestmark = pytest.mark.slow

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "samplers"
FEW_STEPS = Options(steps=3)


@dataclass(frozen=True)
class FittedSampler:
    """A fitted and exported sampler."""

    folder: Path
    trained: Sampler
    scores: bool
    exported: OnnxSampler

    def options(self) -> Options:
        return FEW_STEPS if "steps" in self.exported.sampling_loop().known_options else Options()


@pytest.fixture(scope="module", params=list(SAMPLERS))
def fitted(request: pytest.FixtureRequest, category: Path, tmp_path_factory: pytest.TempPathFactory) -> FittedSampler:
    name = request.param
    out = fit_model(
        category, out=tmp_path_factory.mktemp("samplers") / name, detector=name, options=OPTIONS[name]
    ).folder
    export_model(out)
    loaded = load_fitted_model(out)
    assert isinstance(loaded.model, Sampler)
    exported = OnnxSampler(out / "sampler.onnx", device="cpu", num_threads=1)
    return FittedSampler(out, loaded.model, loaded.detector is not None, exported)


def read_some(fitted: FittedSampler, category: Path, num: int) -> NDArray[np.float32]:
    paths = sorted((category / "train/good").iterdir())[:num]
    return np.concatenate([fitted.exported.prepare(read_image(p, white=255, max_pixels=10**6)[None]) for p in paths])


def test_registry_has_options_and_a_configuration_for_every_family() -> None:
    assert list(OPTIONS) == list(SAMPLERS)
    assert {path.stem for path in CONFIGS.glob("*.yaml")} >= set(SAMPLERS)


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_configuration_builds(name: str) -> None:
    options = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))
    assert options["detector"] == name
    build_sampler(name, options["model"])
    values = parse("fit", fit, ["folder", "--out", "x", "--config", str(CONFIGS / f"{name}.yaml")])
    assert values["model"].keys() >= options["model"].keys()


def test_file_and_trained_sampler_draw_equal_images(fitted: FittedSampler) -> None:
    options = fitted.options()
    drawn = fitted.exported.sampling_loop().sample(3, rng=np.random.default_rng(5), options=options)
    again = fitted.exported.sampling_loop().sample(3, rng=np.random.default_rng(5), options=options)
    trained = fitted.trained.sampling_loop().sample(3, rng=np.random.default_rng(5), options=options)
    other = fitted.exported.sampling_loop().sample(3, rng=np.random.default_rng(6), options=options)
    height, width = fitted.trained.preprocess.size
    assert drawn.shape == (3, 3, height, width)
    assert drawn.dtype == np.float32
    assert drawn.min() >= 0
    assert drawn.max() <= 1
    assert np.array_equal(drawn, again)
    assert not np.array_equal(drawn, other)
    assert not np.array_equal(drawn[0], drawn[1])
    assert np.abs(drawn - trained).max() < 1e-3


def test_functions_agree_and_are_certified(fitted: FittedSampler) -> None:
    verify(fitted.folder)
    drawing, *scoring = compare_files(fitted.folder)
    assert set(drawing.values["functions"]) == set(fitted.trained.functions())
    assert max(drawing.values["functions"].values()) <= 1e-4
    assert (fitted.folder / "model.onnx").exists() == fitted.scores
    assert len(scoring) == fitted.scores


def test_detector_form_is_scored_like_any_detector(fitted: FittedSampler, category: Path, tmp_path: Path) -> None:
    model, sampler = fitted.folder / "model.onnx", fitted.folder / "sampler.onnx"
    if fitted.scores:
        rows = tmp_path / "rows.csv"
        assert run(["score", str(model), str(category / "test"), "--out", str(rows)]) == 0
        assert OnnxScorer(model, device="cpu", num_threads=1).metadata.kind == "detector"
        with pytest.raises(ModelError, match="which scores and does not draw"):
            read_sampler(model)
    else:
        assert not model.exists()
        with pytest.raises(Unsupported, match="has no detector form: "):
            fitted.trained.as_detector()
        with pytest.raises(ModelError, match="no model at"):
            OnnxScorer(model, device="cpu", num_threads=1)
    with pytest.raises(ModelError, match="is a sampler: `anomaly sample` draws from it"):
        OnnxScorer(sampler, device="cpu", num_threads=1)


def test_abilities_work_or_are_refused_with_the_reason(fitted: FittedSampler, category: Path) -> None:
    x = read_some(fitted, category, 4)
    mask = np.zeros((2, *x.shape[2:]), dtype=bool)
    mask[:, 4:9, 3:8] = True
    loop, options = fitted.exported.sampling_loop(), fitted.options()

    def draw(ability: str, loop: SamplingLoop) -> NDArray[np.float32]:
        rng = np.random.default_rng(0)
        if ability == "reconstruct":
            return loop.reconstruct(x, rng=rng, options=options)
        if ability == "interpolate":
            return loop.interpolate(x[0], x[1], num=4, options=options)
        if ability == "inpaint":
            return loop.inpaint(x[:2], mask, rng=rng, options=options)
        return loop.attribute(x[:3], x[:2], x[2:], strength=0.5, options=options)

    for ability in ("reconstruct", "interpolate", "inpaint", "attribute"):
        if ability in fitted.trained.unsupported:
            with pytest.raises(Unsupported, match=f"does not support {ability}: ") as error:
                draw(ability, loop)
            assert fitted.trained.unsupported[ability] in str(error.value)
            continue
        drawn = draw(ability, loop)
        assert drawn.dtype == np.float32
        assert np.isfinite(drawn).all()
        assert drawn.min() >= 0
        assert drawn.max() <= 1
        assert np.abs(drawn - draw(ability, fitted.trained.sampling_loop())).max() < 1e-3, ability
        if ability == "inpaint":
            known = np.broadcast_to(~mask[:, None], drawn.shape)
            assert np.array_equal(drawn[known], x[:2][known])
        if ability == "interpolate":
            assert len(drawn) == 4
            with pytest.raises(UsageError):
                loop.interpolate(x[0], x[1][:, :-1], num=4, options=options)
        if ability == "attribute":
            with pytest.raises(UsageError):
                loop.attribute(x[:1], x[:0], x[2:], strength=0.5, options=options)


def test_damaged_function_is_refused(fitted: FittedSampler, tmp_path: Path) -> None:
    data = bytearray((fitted.folder / "sampler.onnx").read_bytes())
    at = len(data) // 3
    data[at : at + 64] = bytes(64)
    (tmp_path / "sampler.onnx").write_bytes(data)
    with pytest.raises(ModelError):
        OnnxSampler(tmp_path / "sampler.onnx", device="cpu", num_threads=1).sampling_loop().sample(
            1, rng=np.random.default_rng(0), options=fitted.options()
        )


def test_unknown_sampling_options_are_refused(fitted: FittedSampler) -> None:
    loop = fitted.exported.sampling_loop()
    for name, moved in (("steps", 7), ("eta", 0.5), ("temperature", 0.5), ("strength", 0.3), ("label", 1)):
        options = Options(**{name: moved})
        if name in loop.known_options:
            check_options(loop, options)
        else:
            with pytest.raises(UsageError, match=f"does not read --{name}: omit it; options that it reads: "):
                check_options(loop, options)


def test_model_draws_defects_into_masks_or_is_refused(
    fitted: FittedSampler, category: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "made"
    command = ["synthesize", str(category), "--out", str(out), "--num", "3", "--kinds", "[]", "--steps", "3"]
    code = run([*command, "--model", str(fitted.folder / "sampler.onnx"), "--min-size", "0.3", "--max-size", "0.5"])
    if fitted.trained.loop != "latent_diffusion":
        assert code == 2
        assert "draws no defect into a mask" in capsys.readouterr().err
        return
    assert code == 0
    drawn = sorted((out / "test" / "diffusion").iterdir())
    assert len(drawn) == 3
    sources = {path.name: cv2.imread(str(path)) for path in (out / "test" / "good").iterdir()}
    for path in drawn:
        mask = cv2.imread(str(out / "ground_truth" / "diffusion" / f"{path.stem}_mask.png"), cv2.IMREAD_GRAYSCALE) > 0
        image = cv2.imread(str(path))
        assert mask.any()
        assert any(np.array_equal(image[~mask], good[~mask]) for good in sources.values())


# verb


@pytest.fixture(scope="module")
def vae(category: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = fit_model(
        category, out=tmp_path_factory.mktemp("verb") / "vae", detector="vae", options=OPTIONS["vae"]
    ).folder
    export_model(out)
    return out / "sampler.onnx"


def drawn_by(vae: Path, out: Path, *options: str) -> list[NDArray[Any]]:
    assert run(["sample", str(vae), "--out", str(out), *options]) == 0
    assert (out / "contact_sheet.png").is_file()
    assert json.loads((out / "run.json").read_text(encoding="utf-8"))["verb"] == "sample"
    return [cv2.imread(str(path)) for path in sorted(out.glob("[0-9]*.png"))]


def test_verb_draws_equal_images_for_equal_seeds(vae: Path, tmp_path: Path) -> None:
    a = drawn_by(vae, tmp_path / "a", "--num", "5", "--seed", "3", "--batch-size", "2")
    b = drawn_by(vae, tmp_path / "b", "--num", "5", "--seed", "3", "--batch-size", "2")
    c = drawn_by(vae, tmp_path / "c", "--num", "5", "--seed", "4", "--batch-size", "2")
    assert len(a) == 5
    assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
    assert not all(np.array_equal(x, y) for x, y in zip(a, c, strict=True))
    assert b"tEXtComment\0synthetic image" in (tmp_path / "a" / "0000.png").read_bytes()


def test_verb_reconstructs_interpolates_inpaints_and_changes_attributes(
    vae: Path, category: Path, tmp_path: Path
) -> None:
    good, scratch = category / "test/good", category / "test/scratch"
    assert len(drawn_by(vae, tmp_path / "r", "--reconstruct", str(good), "--batch-size", "4")) == 6
    walk = ("--interpolate", str(good / "000.png"), str(good / "001.png"), "--num", "7")
    assert len(drawn_by(vae, tmp_path / "i", *walk)) == 7
    mask = category / "ground_truth/scratch/000_mask.png"
    hole = ("--inpaint", str(scratch / "000.png"), "--mask", str(mask), "--num", "2")
    assert len(drawn_by(vae, tmp_path / "p", *hole)) == 2
    move = ("--attribute", str(scratch), str(good), "--strength", "1.5", "--num", "3")
    assert len(drawn_by(vae, tmp_path / "m", *move)) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--num", "0"], "0 images in batches of 16: give at least 1"),
        (["--steps", "5"], "Vae does not read --steps"),
        (["--inpaint", "a.png"], "belong together"),
        (["--reconstruct", "a", "--inpaint", "b", "--mask", "c"], "--reconstruct and --inpaint together"),
        (["--interpolate", "a.png"], "--interpolate takes 2 values"),
        (["--temperature", "-1"], "temperature -1"),
    ],
)
def test_verb_refuses_invalid_options(
    vae: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert run(["sample", str(vae), "--out", str(tmp_path / "x"), *options]) == 2
    assert message in capsys.readouterr().err


def test_verb_refuses_images_and_masks_of_different_sizes(
    vae: Path, category: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = category / "test/good/000.png"
    small = tmp_path / "small.png"
    cv2.imwrite(str(small), cv2.imread(str(good))[:-8])
    out = ["--out", str(tmp_path / "x")]
    assert run(["sample", str(vae), *out, "--interpolate", str(good), str(small)]) == 2
    assert "is 88×72" in capsys.readouterr().err
    assert run(["sample", str(vae), *out, "--inpaint", str(good), "--mask", str(small)]) == 2
    assert "draw it at the image's size" in capsys.readouterr().err
    assert run(["sample", str(vae), *out, "--reconstruct", str(tmp_path / "nothing")]) == 1
    with pytest.raises(UsageError, match="no unknown pixel"):
        resized_mask(np.zeros((72, 88), dtype=bool), np.zeros((72, 88, 3), dtype=np.uint8), size=(16, 16))


def test_mask_marks_every_pixel_with_an_unknown_part() -> None:
    mask = np.zeros((64, 64), dtype=bool)
    mask[31, 33] = True
    small = resized_mask(mask, np.zeros((64, 64, 3), dtype=np.uint8), size=(16, 16))
    assert small.sum() == 1
    assert small[7, 8]


def test_category_of_one_image_is_refused(tmp_path: Path, category: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "one").mkdir()
    image = sorted((category / "train/good").iterdir())[0]
    (tmp_path / "one" / image.name).write_bytes(image.read_bytes())
    assert run(["fit", str(tmp_path / "one"), "--out", str(tmp_path / "run"), "--detector", "vae"]) == 1
    assert "1 good images" in capsys.readouterr().err
