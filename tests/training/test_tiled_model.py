"""Models of large images from fit to score: which detectors can, what is refused and why, and what is calibrated."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from test_detectors import OPTIONS

from anomaly.commands.score import score
from anomaly.detectors.base import Detector
from anomaly.detectors.tiling_support import Seamless
from anomaly.errors import ModelError, TrainingError, UsageError
from anomaly.evaluation.evaluate import evaluate
from anomaly.export.model_file import export_model
from anomaly.export.parity import verify
from anomaly.imaging.image_file import read_image, write_png
from anomaly.inference.artifact import CONTRACT, load_graph, read_metadata, stored_values
from anomaly.inference.scorer import OnnxScorer
from anomaly.inference.tiles import Tiling, score_tiled, seam
from anomaly.recalibration.recalibrate import calibrate
from anomaly.training.crops import NUM_OPEN, CropOrder, Crops
from anomaly.training.fit import fit
from anomaly.training.fitted_model import build_detector, load
from anomaly.training.tiling import check_seam, choose_tiling, window_scorer
from anomaly.training.torch_scorer import TorchScorer
from tests.plates import TINY

NUM, SHAPES = 22, ((150, 190), (161, 203))
SEAMLESS = TINY | {"standardise": False, "epochs": 1, "width": 4}


def draw_web(seed: int) -> NDArray[np.uint8]:
    """A woven web, of one of two sizes that no stride divides."""
    height, width = SHAPES[seed % 2]
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width].astype(np.float64)
    web = 120 + 25 * np.sin(x / 2 + rng.uniform(0, 6)) + 25 * np.sin(y / 3) + rng.normal(0, 3, (height, width))
    web += cv2.resize(rng.uniform(-15, 15, (4, 5)), (width, height))  # no two look alike
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
    """Read only."""
    out = tmp_path_factory.mktemp("runs") / "web"
    run = fit(webs, out=out, detector="autoencoder", model=SEAMLESS, alpha=0.3, tile="64,96", device="cpu")
    export_model(run)
    return run


def read_images(run: Path, part: str) -> list[NDArray[np.uint8]]:
    paths = json.loads((run / "detector.json").read_text(encoding="utf-8"))[part]
    return [read_image(path, white=255, max_pixels=10**6) for path in paths]


def test_calibration_images_images_are_calibrated_whole_through_the_tiles(seamless_run: Path) -> None:
    trained = TorchScorer(seamless_run)
    tiling = trained.description.tiling
    assert tiling is not None
    assert (tiling.mode, tiling.step, tiling.stride) == ("seamless", [64, 96], 32)
    assert min(tiling.halo) >= 32
    images = read_images(seamless_run, "calibration_images")
    said = [trained.score(image[None]) for image in images]
    kept = trained.description.calibration.scores
    assert np.sort([float(s.score[0]) for s in said]) == pytest.approx(kept, abs=1e-4)
    for image, (total, anomaly_map) in zip(images, said, strict=True):
        assert anomaly_map.shape == (1, *image.shape[:2])
        assert total[0] == anomaly_map.max()
    whole = tiling.with_tile(height=192, width=224)  # one window for the whole image
    in_one = score_tiled(window_scorer(trained.detector), images[0][None], tiling=whole)[1]
    # rounding, in units of a map's spread over so few, so like images
    assert np.abs(in_one - said[0].anomaly_map).max() < 1e-5 * max(
        1.0, 1e-2 / float(trained.detector.calibration.scale_map)
    )
    card = json.loads((seamless_run / "run.json").read_text(encoding="utf-8"))
    assert card["result"]["tiling"]["step"] == [64, 96]
    assert 0 <= card["result"]["tiling"]["largest_difference"] < 1e-3


def test_file_carries_the_walk_and_a_contract_that_older_readers_refuse(seamless_run: Path, tmp_path: Path) -> None:
    file = seamless_run / "model.onnx"
    scorer = OnnxScorer(file, device="cpu", num_threads=1)
    assert scorer.metadata.tiling == TorchScorer(seamless_run).description.tiling
    assert (scorer.metadata.contract, scorer.metadata.resize) == (CONTRACT, "native")
    assert scorer.metadata.tiling is not None
    assert seam(scorer.score_windows, images(seamless_run, "train")[0], tiling=scorer.metadata.tiling) < 1e-5
    certificate = verify(seamless_run)
    assert certificate["seam"] < 1e-5
    assert certificate["num_flips"] == 0


def test_a_file_of_whole_images_has_no_walk_and_its_old_contract(model: Path) -> None:
    graph = load_graph(model)
    assert read_metadata(graph, name="m").contract == 1
    assert read_metadata(graph, name="m").tiling is None
    kept = [p for p in graph.metadata_props if p.key != "anomaly.tiling"]  # as files were before there were tiles
    del graph.metadata_props[:]
    graph.metadata_props.extend(kept)
    assert "tiling" not in stored_values(graph, name="m")
    assert read_metadata(graph, name="m").tiling is None
    for prop in graph.metadata_props:
        if prop.key == "anomaly.contract":
            prop.value = "2"
    with pytest.raises(ModelError, match="follows contract 2, this version reads 1, of windows 2"):
        read_metadata(graph, name="m")


def test_line_scan_is_scored_with_regions_and_overlay_where_the_defect_is(
    seamless_run: Path, webs: Path, tmp_path: Path
) -> None:
    good = np.concatenate([draw_web(n)[:150, :190] for n in range(2, 8, 2)], axis=1)
    image = np.tile(good, (1, 3, 1))  # 150 × 1710
    cv2.circle(image, (1500, 70), 9, (255, 30, 30), -1)
    write_png(tmp_path / "scan.png", image)
    code = score(
        seamless_run / "model.onnx", str(tmp_path / "scan.png"), out=str(tmp_path / "rows.csv"), device="cpu",
        overlays=str(tmp_path / "drawn"),
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


def test_figures_are_those_of_the_stitched_maps(seamless_run: Path, tmp_path: Path) -> None:
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


def test_file_is_calibrated_again_through_the_tiles(seamless_run: Path, webs: Path, tmp_path: Path) -> None:
    file = calibrate(seamless_run / "model.onnx", str(webs), out=str(tmp_path / "new.onnx"), alpha=0.2)
    scorer = OnnxScorer(file, device="cpu", num_threads=1)
    again = np.sort([float(scorer.score(draw_web(n)[None]).score[0]) for n in range(NUM)])
    assert again == pytest.approx(scorer.calibration_scores, abs=1e-3)
    assert (again > 1).sum() <= 4


def test_windows_of_a_fixed_network_go_all_the_way(webs: Path, tmp_path: Path) -> None:
    model = OPTIONS["ganomaly"] | {"epochs": 1}
    run = fit(webs, out=tmp_path / "run", detector="ganomaly", model=model, alpha=0.3, windows=48, device="cpu")
    trained = TorchScorer(run)
    assert trained.description.tiling == Tiling("windows", window=[64, 64], step=[48, 48], stride=1)
    scorer = OnnxScorer(export_model(run), device="cpu", num_threads=1)
    for image in images(run, "calibration_images")[:2]:
        a, b = trained.score(image[None]), scorer.score(image[None])
        assert a.anomaly_map.shape == (1, *image.shape[:2])
        assert np.abs(a.score - b.score).max() < 1e-3
        windows = np.stack([image[:64, :64], image[-64:, -64:]])
        corners = scorer.score_windows(windows)
        assert a.score[0] >= corners.score.max() - 1e-3
        assert (b.anomaly_map[0, :64, :64] >= corners.anomaly_map[0] - 1e-3).all()


def build(name: str, **options: Any) -> Detector:
    torch.manual_seed(0)
    return build_detector(name, OPTIONS[name] | options)


DEFAULTS = {"tile": "", "windows": 0, "smallest": (300, 400), "roi": "", "brightness": "kept"}


def ask(detector: Detector, **asked: Any) -> Tiling | None:
    return choose_tiling(detector, **(DEFAULTS | asked))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"tile": "0,64"}, r"stride, 32; e.g. --tile 32,64"),
        ({"tile": "100,64"}, r"stride, 32; e.g. --tile 96,64"),
        ({"tile": "64"}, "give height and width in pixels"),
        ({"tile": "-64,64"}, "give height and width in pixels"),
        ({"tile": "320,64"}, "--tile 320,64 is larger than a image of 300,400"),
        ({"tile": "64,64", "windows": 32}, "at once"),
        ({"windows": 65}, "--windows 65: windows of 64×64 pixels.* e.g. --windows 48"),
        ({"windows": -1}, "--windows -1"),
        ({"tile": "64,64", "roi": "0,0,9,9"}, "cut the images to the region"),
        ({"tile": "64,64", "brightness": "levelled"}, "leave one of the two out"),
        (
            {"windows": 32, "smallest": (60, 400)},
            "crops of 64×64 pixels, .* as small as 400×60: make --model.size smaller",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_the_way_out(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ask(build("autoencoder", standardise=False), **asked)


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("autoencoder", {}, "standardise false"),
        ("autoencoder", {"standardise": False, "network": "strided"}, "one vector of the whole input"),
        ("autoencoder", {"standardise": False, "score": "ssim"}, "mean of the whole input"),
        ("fastflow", {}, "mean and variance of the whole map"),
        ("differnet", {}, "means over the whole input"),
        ("ganomaly", {}, "one code of the whole input"),
        ("fanogan", {}, "one code of the whole input"),
    ],
)
def test_a_detector_without_seamless_tiles_says_why_and_offers_windows(
    name: str, options: dict[str, Any], reason: str
) -> None:
    detector = build(name, **options)
    with pytest.raises(UsageError, match=f"{reason}.*--windows .*no map of the whole image"):
        ask(detector, tile="64,64")
    tiling = ask(detector, windows=detector.preprocess.size[0] // 2)
    assert tiling is not None
    assert tiling.mode == "windows"


@pytest.mark.parametrize("name", ["autoencoder", "riad", "frozen_features"])
def test_a_detector_with_seamless_tiles_keeps_its_word(name: str) -> None:
    detector = build(
        name, **{"autoencoder": {"standardise": False}, "riad": {"regions": (4,)}, "frozen_features": {}}[name]
    ).eval()
    tiling = ask(detector, tile="64,64")
    assert tiling is not None
    if name == "frozen_features":
        detector.model._learn(rows=np.random.default_rng(0).normal(size=(40, len(detector.mean))))
    image = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    assert seam(window_scorer(detector), image, tiling=tiling) < 1e-5


def test_samplers_are_of_whole_images() -> None:
    for name in ("vae", "gmm"):
        with pytest.raises(UsageError, match="a sampler draws and reconstructs whole images"):
            ask(build_detector(name, {"size": 32}), windows=16)


def test_a_class_that_claims_too_much_is_found_out() -> None:
    detector = build("ganomaly")
    detector.tiling = Seamless(stride=16)
    with pytest.raises(UsageError, match="whatever its class says"):
        ask(detector, tile="64,64")
    moved = build("autoencoder", standardise=False).eval()
    moved.preprocess.resize = "native"
    image = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.mul_(3.0)  # so that the deepest level is heard
    with pytest.raises(TrainingError, match="names the stride 32, which its network does not keep"):
        check_seam(moved, image, tiling=Tiling("seamless", window=[128, 128], step=[64, 64], stride=32))


def test_crops_cover_each_image_as_its_area_asks_and_its_border_as_its_middle() -> None:
    shapes = [(64, 64), (100, 300), (64, 1000)]
    order = CropOrder(shapes, size=(64, 64), seed=1)
    seen = [np.zeros(shape) for shape in shapes]
    for epoch in range(200):
        order.set_epoch(epoch)
        crops = list(order)
        assert len(crops) == len(order) == 1 + 2 * 5 + 16
        assert Counter(n for n, *_ in crops) == {0: 1, 1: 10, 2: 16}
        for n, top, left in crops:
            assert 0 <= top <= shapes[n][0] - 64
            assert 0 <= left <= shapes[n][1] - 64
            seen[n][top : top + 64, left : left + 64] += 1
    assert seen[0].min() == 200
    assert seen[2].min() > 0.4 * seen[2].mean()
    again = CropOrder(shapes, size=(64, 64), seed=1)
    again.set_epoch(199)
    assert list(again) == crops
    again.skip(7, epoch=199)
    assert list(again) == crops[7:]
    again.set_epoch(0)
    assert list(again) != crops


def test_crops_are_cut_from_few_images_at_a_time() -> None:
    reads: list[int] = []

    class Images(torch.utils.data.Dataset[tuple[torch.Tensor, str]]):
        def __getitem__(self, index: int) -> tuple[torch.Tensor, str]:
            reads.append(index)
            return torch.full((130, 70, 3), index, dtype=torch.uint8), f"{index}.png"

    num = 3 * NUM_OPEN
    crops = Crops(Images(), size=(64, 32))
    for place in CropOrder([(130, 70)] * num, size=(64, 32), seed=0):
        image, path = crops[place]
        assert image.shape == (64, 32, 3)
        assert (image == place[0]).all()
        assert path == f"{place[0]}.png#{place[1]},{place[2]}"
    assert sorted(reads) == list(range(num))


def test_a_run_folder_of_whole_images_loads_as_before(run_folder: Path, tmp_path: Path) -> None:
    detector, description = load(run_folder)
    assert description.tiling is None
    assert detector.preprocess.resize == "stretch"
    older = dataclasses.asdict(description)
    del older["tiling"]
    (tmp_path / "detector.json").write_text(json.dumps(older), encoding="utf-8")
    (tmp_path / "detector.safetensors").write_bytes((run_folder / "detector.safetensors").read_bytes())
    assert load(tmp_path)[1] == description
