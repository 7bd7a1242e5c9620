"""Choice of the tiling: supported detectors, refusals with their reason, and the check of the seams."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from anomaly.detectors.base import Detector
from anomaly.detectors.tiling_support import Seamless
from anomaly.errors import TrainingError, UsageError
from anomaly.inference.tiles import Tiling, seam
from anomaly.training.fitted_model import build_detector, build_sampler
from anomaly.training.tiling import check_seam, choose_tiling, window_scorer
from tests.detectors.tiny_detectors import OPTIONS


def build(name: str, **options: Any) -> Detector:
    torch.manual_seed(0)
    return build_detector(name, OPTIONS[name] | options)


DEFAULTS = {"tile": None, "windows": None, "smallest": (300, 400), "roi": None, "brightness": "kept"}


def choose(model: Any, **options: Any) -> Tiling | None:
    return choose_tiling(model, **(DEFAULTS | options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile": "0,64"}, r"stride, 32; e.g. --tile 32,64"),
        ({"tile": "100,64"}, r"stride, 32; e.g. --tile 96,64"),
        ({"tile": "64"}, "give height and width in pixels"),
        ({"tile": "-64,64"}, "give height and width in pixels"),
        ({"tile": "320,64"}, "--tile 320,64 is larger than an image of 300,400"),
        ({"tile": "64,64", "windows": 32}, "together"),
        ({"windows": 65}, "--windows 65: windows of the network's 64×64 pixels.* e.g. --windows 48"),
        ({"windows": -1}, "--windows -1"),
        ({"tile": "64,64", "roi": "0,0,9,9"}, "cut the images to the region"),
        ({"tile": "64,64", "brightness": "levelled"}, "omit one of both"),
        (
            {"windows": 32, "smallest": (60, 400)},
            "crops have 64×64 pixels, but the smallest image has 400×60: make --model.size smaller",
        ),
    ],
)
def test_invalid_options_are_refused_with_the_way_out(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        choose(build("autoencoder", standardise=False), **options)


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("autoencoder", {}, "standardise false"),
        ("autoencoder", {"standardise": False, "network": "strided"}, "one vector of the whole input"),
        ("autoencoder", {"standardise": False, "score": "ssim"}, "mean of the whole input"),
        ("fastflow", {}, "mean and variance of the whole map"),
        ("differnet", {}, "means over the whole input"),
        ("ganomaly", {}, "one code for the whole input"),
        ("fanogan", {}, "one code for the whole input"),
        ("autoencoder", {"standardise": False, "pooling": "top"}, "use pooling maximum"),
        ("riad", {"pooling": "top"}, "use pooling maximum"),
        ("frozen_features", {"margin": 16}, "use margin 0 and pooling maximum"),
        ("frozen_features", {"margin": 16, "pooling": "maximum"}, "use margin 0\\)"),
    ],
)
def test_detector_without_seamless_tiles_gives_the_reason_and_offers_windows(
    name: str, options: dict[str, Any], reason: str
) -> None:
    detector = build(name, **options)
    with pytest.raises(UsageError, match=f"{reason}.*--windows .*a map of the whole image does not exist"):
        choose(detector, tile="64,64")
    tiling = choose(detector, windows=detector.preprocess.size[0] // 2)
    assert tiling is not None
    assert tiling.mode == "windows"


@pytest.mark.parametrize("name", ["autoencoder", "riad", "frozen_features"])
def test_seamless_tiles_give_the_map_of_the_whole_image(name: str) -> None:
    detector = build(
        name,
        **{
            "autoencoder": {"standardise": False},
            "riad": {"regions": (4,)},
            "frozen_features": {"margin": 0, "pooling": "maximum"},
        }[name],
    ).eval()
    tiling = choose(detector, tile="64,64")
    assert tiling is not None
    if name == "frozen_features":
        detector.model._store(rows=np.random.default_rng(0).normal(size=(40, len(detector.mean))))
    image = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    assert seam(window_scorer(detector), image, tiling=tiling) < 1e-5


def test_samplers_refuse_parts_of_images() -> None:
    for name in ("vae", "gmm"):
        with pytest.raises(UsageError, match="a sampler draws and reconstructs whole images"):
            choose(build_sampler(name, {"size": 32}), windows=16)


def test_wrong_declaration_of_a_stride_is_found() -> None:
    detector = build("ganomaly")
    detector.tiling = Seamless(stride=16)
    with pytest.raises(UsageError, match="declares seamless tiles, but has none"):
        choose(detector, tile="64,64")
    shifted = build("autoencoder", standardise=False).eval()
    shifted.preprocess.resize = "native"
    image = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    with torch.no_grad():
        for parameter in shifted.parameters():
            parameter.mul_(3.0)  # raises the influence of the deepest level
    with pytest.raises(TrainingError, match="declares the stride 32, which its network does not keep"):
        check_seam(shifted, image, tiling=Tiling("seamless", window=[128, 128], step=[64, 64], stride=32))
