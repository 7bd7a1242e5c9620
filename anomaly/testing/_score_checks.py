"""Checks of a detector's scores and maps: shapes, independence, determinism, calibration and export."""

from __future__ import annotations

import inspect

import numpy as np
import pytorch_lightning as pl
import torch

from anomaly.conformal.calibration import SCALE_MARGIN
from anomaly.detectors.base import Anomaly, Detector
from anomaly.errors import CalibrationError
from anomaly.export.detector import export_graph
from anomaly.inference.difference import relative_difference
from anomaly.inference.scorer import score_bytes
from anomaly.testing.toy_training import NUM_TRAIN, Builder, as_batch, draw_parts, unusual_images

REFUSE = 1e-3
"""Largest difference in calibrated units between a detector and its exported graph (docs/reference/formats.md, tolerances)"""


@torch.no_grad()
def check_forward(builder: Builder[Detector]) -> None:
    """Check that forward gives an `Anomaly` in both modes, for equal and mixed sizes, under every `resize`."""
    require = builder.requires("forward")
    fitted = builder.fitted(NUM_TRAIN)
    has_resize = "resize" in inspect.signature(builder.cls).parameters
    part = draw_parts(3, seed=2)
    for resize in ("stretch", "letterbox") if has_resize else (fitted.preprocess.resize,):
        detector = builder.cls(**(builder.options | ({"resize": resize} if has_resize else {})))
        detector.load_state_dict(fitted.state_dict())
        require(
            detector.preprocess.resize == resize,
            f"option resize={resize!r} gives {detector.preprocess.resize!r}",
            "pass it on: Preprocess(resize=resize, ...)",
        )
        for training in (True, False):
            detector.train(training)
            for image, num in ((part, 3), ([part[0], part[0, 10:, 3:]], 2)):
                result = detector(image)
                where = f"resize={resize!r}, training={training}, {num} images"
                require(
                    isinstance(result, Anomaly),
                    f"forward returns a {type(result).__name__} ({where})",
                    "return an Anomaly",
                )
                expected = {"score": (num,), "anomaly_map": (num, *detector.preprocess.size)}
                for name, shape in expected.items():
                    value = getattr(result, name)
                    require(
                        tuple(value.shape) == shape and value.dtype == torch.float32,
                        f"{name} is {tuple(value.shape)} {value.dtype}, expected {shape} float32 ({where})",
                        "return one score per image and a map at the network's resolution, preprocess.size",
                    )


@torch.no_grad()
def check_own_image(builder: Builder[Detector]) -> None:
    """Check that a score depends only on its own image, not on order, number or content of the others."""
    require = builder.requires("own_image")
    detector = builder.fitted(NUM_TRAIN)
    image = draw_parts(5, seed=3)
    whole = detector(image)
    order = torch.tensor([3, 0, 4, 1, 2])
    noise = torch.randint(0, 256, image.shape, generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    noise[0] = image[0]
    batches = [("in another order", image[order], order)]
    batches += [(f"for image {n} alone", image[n : n + 1], torch.tensor([n])) for n in range(5)]
    batches += [("beside images of noise", noise, torch.tensor([0]))]
    for name, batch, chosen in batches:
        result = detector(batch)
        for part in ("score", "anomaly_map"):
            a, b = getattr(whole, part)[chosen], getattr(result, part)[: len(chosen)]
            require(
                torch.allclose(a, b, rtol=1e-4, atol=1e-5 * float(getattr(whole, part).abs().max())),
                f"{part} of the same image differs by {float((a - b).abs().max()):.3g} {name}",
                "normalise by learned values, never over the batch, and let train() and eval() reach every layer",
            )
    for a, b in zip(detector(list(image)), whole, strict=True):
        require(
            torch.allclose(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max())),
            "a list of images gives other scores than the same images stacked",
            "leave both to self.preprocess",
        )


@torch.no_grad()
def check_deterministic(builder: Builder[Detector]) -> None:
    """Check that the same images have the same scores each time, bit by bit."""
    detector = builder.fitted(NUM_TRAIN)
    image = draw_parts(3, seed=4)
    results = []
    for seed in (1, 2):
        pl.seed_everything(seed, verbose=False)
        results.append(detector(image))
    builder.requires("deterministic")(
        all(torch.equal(a, b) for a, b in zip(*results, strict=True)),
        f"two runs on the same images differ by {float((results[0].score - results[1].score).abs().max()):.3g} in score",
        "draw no random numbers in anomaly(x); draw them once, from a seed, into a buffer",
    )


@torch.no_grad()
def check_calibration(builder: Builder[Detector]) -> None:
    """Check that calibration puts the median of good scores at 0 and the threshold at 1, and keeps the ranks."""
    require = builder.requires("calibration")
    detector = builder.fitted(NUM_TRAIN)
    image = draw_parts(20, seed=1)
    raw = detector(image).score
    batches = [as_batch(part, name="") for part in image.split(6)]  # type: ignore[no-untyped-call]
    scores = detector.calibrate(batches, alpha=0.1, guarantee="expected")
    result = detector(image)
    require(
        np.allclose(scores, result.score.numpy(), atol=1e-3),
        f"the scores of calibrate and of forward differ by {np.abs(scores - result.score.numpy()).max():.3g}",
        "leave forward and calibrate to Detector",
    )
    for name, values in (("score", result.score), ("map's maximum", result.anomaly_map.amax(dim=(1, 2)))):
        ordered = values.double().sort().values
        median, threshold = float(ordered[9] + ordered[10]) / 2, float(ordered[18])  # k = ceil(21 · 0.9) = 19
        require(
            abs(median) < 1e-2 and abs(threshold - 1 / (1 + SCALE_MARGIN)) < 1e-2,
            f"the median of the good {name} is {median:.3g}, expected 0, and its threshold {threshold:.4g}, expected 1",
            "return raw values from anomaly(x) with all their digits: no clamp, no rounding, no large offset",
        )
    require(
        torch.equal(raw.argsort(), result.score.argsort()),
        "calibration changes the ranks of the scores",
        "leave forward and calibrate to Detector",
    )


def check_equal_images(builder: Builder[Detector]) -> None:
    """Check that calibration rejects equal images, because their scores have no spread."""
    equal = draw_parts(1, seed=6).expand(12, -1, -1, -1)
    try:
        builder.fitted(NUM_TRAIN).calibrate([as_batch(equal, name="")], alpha=0.1, guarantee="expected")
    except CalibrationError:
        return
    builder.requires("equal_images")(
        False,
        "12 copies of one image got different scores, and calibration accepted them",
        "let a score depend only on its own image, and on no random number",
    )


@torch.no_grad()
def check_finite(builder: Builder[Detector]) -> None:
    """Check that state, scores and maps are finite, also for unusual images."""
    require = builder.requires("finite")
    detector = builder.fitted(NUM_TRAIN)
    infinite = [key for key, value in detector.state_dict().items() if not torch.isfinite(value).all()]
    require(
        not infinite,
        f"after training {len(infinite)} tensors of the state are not finite, first {infinite[:1]}",
        "log every term of the loss, which stops the training at the first value that is not finite",
    )
    for name, image in (*unusual_images(), ("good", draw_parts(3, seed=8).numpy())):
        result = detector(torch.from_numpy(image))
        require(
            all(bool(torch.isfinite(value).all()) for value in result),
            f"score or map of {name!r} images is not finite",
            "keep divisors and arguments of logarithms at 1e-6 or more",
        )


@torch.no_grad()
def check_export(builder: Builder[Detector]) -> None:
    """Check that the detector can be exported, and that the graph agrees with it for every number and size of images."""
    require = builder.requires("export")
    detector = builder.calibrated()
    graph = export_graph(detector).SerializeToString()
    for name, image in (*unusual_images(), ("good", draw_parts(3, seed=9).numpy())):
        trained, exported = detector(torch.from_numpy(image)), score_bytes(graph, image)
        for part in Anomaly._fields:
            a, b = getattr(trained, part).numpy(), getattr(exported, part)
            require(a.shape == b.shape, f"{part} of {name!r} images has shape {b.shape}", f"expected {a.shape}")
            worst = float(np.nan_to_num(relative_difference(a, b), nan=np.inf).max())
            require(
                worst <= REFUSE,
                f"the graph's {part} of {name!r} images differs by {worst:.3g} in calibrated units",
                f"allowed is {REFUSE:g}: avoid branches on values, means over C, H and W at once, constants below 1e-6",
            )
