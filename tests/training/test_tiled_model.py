"""Tiled models of large images from fit to score: calibration, export, verification, scoring, and recalibration."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from anomaly.commands.fit import fit
from anomaly.commands.score import score
from anomaly.errors import ModelError
from anomaly.evaluation.evaluate import evaluate
from anomaly.export.model_file import export_model
from anomaly.export.parity import verify
from anomaly.imaging.image_file import read_image, write_png
from anomaly.inference.artifact import CONTRACT, load_graph, read_metadata, stored_values
from anomaly.inference.scorer import OnnxScorer
from anomaly.inference.tiles import Tiling, score_tiled, seam
from anomaly.recalibration.recalibrate import recalibrate
from anomaly.training.fit import fit_model
from anomaly.training.fitted_model import load_fitted_model
from anomaly.training.tiling import window_scorer
from anomaly.training.torch_scorer import TorchScorer
from tests.detectors.tiny_detectors import OPTIONS
from tests.plates import TINY

pytestmark = pytest.mark.slow

NUM, SHAPES = 22, ((150, 190), (161, 203))
SEAMLESS = TINY | {"standardise": False, "epochs": 1, "width": 4}


def draw_web(seed: int) -> NDArray[np.uint8]:
    """A woven web of one of two sizes; no stride divides them."""
    height, width = SHAPES[seed % 2]
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width].astype(np.float64)
    web = 120 + 25 * np.sin(x / 2 + rng.uniform(0, 6)) + 25 * np.sin(y / 3) + rng.normal(0, 3, (height, width))
    web += cv2.resize(rng.uniform(-15, 15, (4, 5)), (width, height))  # no two are similar
    return np.repeat(np.clip(np.rint(web), 0, 255).astype(np.uint8)[..., None], 3, axis=2)


@pytest.fixture(scope="module")
def webs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "web"
    folder.mkdir()
    for n in range(NUM):
        write_png(folder / f"{n:02d}.png", draw_web(n))
    return folder


@pytest.fixture(scope="module")
def seamless_run(webs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fitted model with seamless tiles, and its model.onnx; read only."""
    out = tmp_path_factory.mktemp("runs") / "web"
    fit(webs, out=out, detector="autoencoder", model=SEAMLESS, alpha=0.3, tile="64,96", device="cpu")
    export_model(out)
    return out


def read_images(run: Path, part: str) -> list[NDArray[np.uint8]]:
    paths = json.loads((run / "detector.json").read_text(encoding="utf-8"))[part]
    return [read_image(path, white=255, max_pixels=10**6) for path in paths]


def test_whole_calibration_images_are_scored_through_the_tiles(seamless_run: Path) -> None:
    trained = TorchScorer(seamless_run)
    tiling = trained.description.tiling
    assert tiling is not None
    assert (tiling.mode, tiling.step, tiling.stride) == ("seamless", [64, 96], 32)
    assert min(tiling.halo) >= 32
    images = read_images(seamless_run, "calibration_images")
    scored = [trained.score(image[None]) for image in images]
    stored = trained.description.calibration.scores
    assert np.sort([float(s.score[0]) for s in scored]) == pytest.approx(stored, abs=1e-4)
    for image, (total, anomaly_map) in zip(images, scored, strict=True):
        assert anomaly_map.shape == (1, *image.shape[:2])
        assert total[0] == anomaly_map.max()
    whole = tiling.with_tile(height=192, width=224)  # one window for the whole image
    in_one = score_tiled(window_scorer(trained.detector), images[0][None], tiling=whole)[1]
    # rounding, relative to the small spread of few similar images
    assert np.abs(in_one - scored[0].anomaly_map).max() < 1e-5 * max(
        1.0, 1e-2 / float(trained.detector.calibration.scale_map)
    )
    card = json.loads((seamless_run / "run.json").read_text(encoding="utf-8"))
    assert card["result"]["tiling"]["step"] == [64, 96]
    assert 0 <= card["result"]["tiling"]["largest_difference"] < 1e-3


def test_file_holds_the_tiling(seamless_run: Path, tmp_path: Path) -> None:
    file = seamless_run / "model.onnx"
    scorer = OnnxScorer(file, device="cpu", num_threads=1)
    assert scorer.metadata.tiling == TorchScorer(seamless_run).description.tiling
    assert (scorer.metadata.contract, scorer.metadata.resize) == (CONTRACT, "native")
    assert scorer.metadata.tiling is not None
    assert seam(scorer.score_windows, read_images(seamless_run, "train")[0], tiling=scorer.metadata.tiling) < 1e-5
    certificate = verify(seamless_run)
    assert certificate["seam"] < 1e-5
    assert certificate["num_flips"] == 0


def test_file_of_whole_images_has_no_tiling_and_another_contract_is_refused(model: Path) -> None:
    graph = load_graph(model)
    assert read_metadata(graph, name="m").contract == CONTRACT
    assert read_metadata(graph, name="m").tiling is None
    others = [p for p in graph.metadata_props if p.key != "anomaly.tiling"]  # an optional field
    del graph.metadata_props[:]
    graph.metadata_props.extend(others)
    assert "tiling" not in stored_values(graph, name="m")
    assert read_metadata(graph, name="m").tiling is None
    for prop in graph.metadata_props:
        if prop.key == "anomaly.contract":
            prop.value = "2"
    with pytest.raises(ModelError, match=f"contract 2.* contract {CONTRACT}: export it again"):
        read_metadata(graph, name="m")


def test_line_scan_is_scored_with_regions_and_overlay_where_the_defect_is(
    seamless_run: Path, webs: Path, tmp_path: Path
) -> None:
    good = np.concatenate([draw_web(n)[:150, :190] for n in range(2, 8, 2)], axis=1)
    image = np.tile(good, (1, 3, 1))  # 150 × 1710
    cv2.circle(image, (1500, 70), 9, (255, 30, 30), -1)
    write_png(tmp_path / "scan.png", image)
    code = score(
        seamless_run / "model.onnx", str(tmp_path / "scan.png"), out=tmp_path / "rows.csv", device="cpu",
        overlays=tmp_path / "drawn",
    )  # fmt: skip
    assert code == 0
    with (tmp_path / "rows.csv").open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["verdict"], row["width"], row["height"]) == ("defect", "1710", "150")
    strongest = json.loads(row["regions"])[0]
    assert strongest["peak"] == pytest.approx(float(row["score"]), rel=1e-5)
    assert 1480 <= strongest["x"] <= 1515
    assert 50 <= strongest["y"] <= 85
    (drawn,) = (tmp_path / "drawn").iterdir()
    assert read_image(drawn, white=255, max_pixels=10**6).shape == image.shape


def test_evaluation_uses_the_stitched_maps(seamless_run: Path, tmp_path: Path) -> None:
    for part in ("train/good", "test/good", "test/knot", "ground_truth/knot"):
        (tmp_path / part).mkdir(parents=True)
    write_png(tmp_path / "train/good/0.png", draw_web(50))
    for n in range(4):
        image, mask = draw_web(60 + n), np.zeros(SHAPES[n % 2], dtype=np.uint8)
        write_png(tmp_path / f"test/good/{n}.png", draw_web(70 + n))
        cv2.circle(mask, (40 + 30 * n, 90), 8, 255, -1)
        image[mask > 0] = (250, 30, 30)
        write_png(tmp_path / f"test/knot/{n}.png", image)
        write_png(tmp_path / f"ground_truth/knot/{n}_mask.png", mask)
    figures = evaluate(seamless_run / "model.onnx", tmp_path, device="cpu").to_dict()
    assert figures["image"]["auroc"]["value"] == 1.0
    assert figures["pixel"]["auroc"]["value"] > 0.95


def test_file_is_recalibrated_through_the_tiles(seamless_run: Path, tmp_path: Path) -> None:
    good = tmp_path / "good"
    good.mkdir()
    for n in range(NUM):
        write_png(good / f"{n}.png", draw_web(1000 + n))
    file = recalibrate(seamless_run / "model.onnx", good=good, out=tmp_path / "new.onnx", alpha=0.2).path
    scorer = OnnxScorer(file, device="cpu", num_threads=1)
    again = np.sort([float(scorer.score(draw_web(1000 + n)[None]).score[0]) for n in range(NUM)])
    assert again == pytest.approx(scorer.calibration.scores, abs=1e-3)
    assert (again > 1).sum() <= 4


def test_overlapping_windows_work_from_fit_to_score(webs: Path, tmp_path: Path) -> None:
    model = OPTIONS["ganomaly"] | {"epochs": 1}
    run = fit_model(
        webs, out=tmp_path / "run", detector="ganomaly", options=model, alpha=0.3, windows=48, device="cpu"
    ).folder
    trained = TorchScorer(run)
    assert trained.description.tiling == Tiling("windows", window=[64, 64], step=[48, 48], stride=1)
    scorer = OnnxScorer(export_model(run), device="cpu", num_threads=1)
    for image in read_images(run, "calibration_images")[:2]:
        a, b = trained.score(image[None]), scorer.score(image[None])
        assert a.anomaly_map.shape == (1, *image.shape[:2])
        assert np.abs(a.score - b.score).max() < 1e-3
        windows = np.stack([image[:64, :64], image[-64:, -64:]])
        corners = scorer.score_windows(windows)
        assert a.score[0] >= corners.score.max() - 1e-3
        assert (b.anomaly_map[0, :64, :64] >= corners.anomaly_map[0] - 1e-3).all()


def test_fitted_model_without_tiling_field_loads(fitted_plate: Path, tmp_path: Path) -> None:
    fitted = load_fitted_model(fitted_plate)
    detector, description = fitted.detector, fitted.description
    assert description.tiling is None
    assert detector.preprocess.resize == "stretch"
    older = dataclasses.asdict(description)
    del older["tiling"]
    (tmp_path / "detector.json").write_text(json.dumps(older), encoding="utf-8")
    (tmp_path / "detector.safetensors").write_bytes((fitted_plate / "detector.safetensors").read_bytes())
    assert load_fitted_model(tmp_path).description == description
