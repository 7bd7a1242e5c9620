"""The contract of a detector as checks that anybody can run on a class of their own.

    check_detector(MyDetector, options={"size": 64, "epochs": 2})

Every check trains by a real trainer, on small made-up parts in memory, on the CPU, so it does not matter whether the
detector optimises automatically, by hand or not at all.
"""

from __future__ import annotations

import inspect
import json
import traceback
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from anomaly.conformal.calibration import SCALE_MARGIN
from anomaly.detectors.base import Anomaly, Detector
from anomaly.errors import CalibrationError, UsageError
from anomaly.export.detector import export_graph
from anomaly.inference.scorer import relative_difference, score_bytes
from anomaly.system.suggestions import nearest
from anomaly.testing.toy_training import (
    NUM_FEW,
    NUM_TRAIN,
    Builder,
    ContractError,
    as_batch,
    draw_defects,
    draw_parts,
    region_of_interest,
    unusual_images,
)

REFUSE = 1e-3
"""Difference in calibrated units above which an exported graph is another detector (FORMATS, tolerances)"""


def check_constructor(builder: Builder) -> None:
    """Check that the constructor's keyword arguments are the whole configuration, as a JSON file can hold it."""
    require = builder.requires("constructor")
    parameters = inspect.signature(builder.cls).parameters
    other = [name for name, p in parameters.items() if p.kind is not inspect.Parameter.KEYWORD_ONLY]
    require(not other, f"argument {', '.join(other)} is not keyword-only", "write `self, *, name: type = value`")
    detector = builder.build()
    require(
        set(detector.hparams) == set(parameters),
        f"it keeps {sorted(detector.hparams)} of {sorted(parameters)}",
        "call self.save_hyperparameters() in the constructor",
    )
    try:
        options = json.loads(json.dumps(dict(detector.hparams)))
    except TypeError as error:
        raise ContractError(
            f"{builder.cls.__name__} fails 'constructor': {error}; take numbers, strings, booleans and lists of them"
        ) from error
    again = builder.cls(**options)
    shapes = [{key: value.shape for key, value in d.state_dict().items()} for d in (detector, again)]
    require(
        shapes[0] == shapes[1],
        "built again from the options it kept, it has another state",
        "let every size follow from the constructor's arguments",
    )
    for name in ("epochs", "batch_size"):
        require(
            name not in parameters or getattr(detector, name) == detector.hparams[name],
            f"option {name} is {detector.hparams.get(name)}, but the detector trains with {getattr(detector, name)}",
            f"pass it on: super().__init__(..., {name}={name})",
        )


@torch.no_grad()
def check_forward(builder: Builder) -> None:
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
            f"option resize={resize!r} leaves {detector.preprocess.resize!r}",
            "pass it on: Preprocess(resize=resize, ...)",
        )
        for training in (True, False):
            detector.train(training)
            for image, num in ((part, 3), ([part[0], part[0, 10:, 3:]], 2)):
                said = detector(image)
                where = f"resize={resize!r}, training={training}, {num} images"
                require(
                    isinstance(said, Anomaly),
                    f"forward gives a {type(said).__name__} ({where})",
                    "give an Anomaly",
                )
                wanted = {"score": (num,), "anomaly_map": (num, *detector.preprocess.size)}
                for name, shape in wanted.items():
                    value = getattr(said, name)
                    require(
                        tuple(value.shape) == shape and value.dtype == torch.float32,
                        f"{name} is {tuple(value.shape)} {value.dtype}, wanted {shape} float32 ({where})",
                        "give one score an image and a map at the network's resolution, preprocess.size",
                    )


@torch.no_grad()
def check_own_image(builder: Builder) -> None:
    """Check that a score depends on its own image only: not on the order, the number or the looks of the others."""
    require = builder.requires("own_image")
    detector = builder.fitted(NUM_TRAIN)
    image = draw_parts(5, seed=3)
    whole = detector(image)
    order = torch.tensor([3, 0, 4, 1, 2])
    noise = torch.randint(0, 256, image.shape, generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    noise[0] = image[0]
    others = [("in another order", image[order], order)]
    others += [(f"image {n} alone", image[n : n + 1], torch.tensor([n])) for n in range(5)]
    others += [("beside images of noise", noise, torch.tensor([0]))]
    for name, shown, chosen in others:
        said = detector(shown)
        for part in ("score", "anomaly_map"):
            a, b = getattr(whole, part)[chosen], getattr(said, part)[: len(chosen)]
            require(
                torch.allclose(a, b, rtol=1e-4, atol=1e-5 * float(getattr(whole, part).abs().max())),
                f"{part} of the same image differs by {float((a - b).abs().max()):.3g} {name}",
                "normalise by what was learned, never over the batch, and let train() and eval() reach every layer",
            )
    for a, b in zip(detector(list(image)), whole, strict=True):
        require(
            torch.allclose(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max())),
            "a list of images is scored otherwise than the same images stacked",
            "leave both to self.preprocess",
        )


@torch.no_grad()
def check_deterministic(builder: Builder) -> None:
    """Check that the same images are scored alike each time, bit by bit."""
    detector = builder.fitted(NUM_TRAIN)
    image = draw_parts(3, seed=4)
    said = []
    for seed in (1, 2):
        pl.seed_everything(seed, verbose=False)
        said.append(detector(image))
    builder.requires("deterministic")(
        all(torch.equal(a, b) for a, b in zip(*said, strict=True)),
        f"two runs on the same images differ by {float((said[0].score - said[1].score).abs().max()):.3g} in score",
        "draw nothing in anomaly(x); what has to be random is drawn once, from a seed, into a buffer",
    )


def check_same_seed(builder: Builder) -> None:
    """Check that two trainings from the same seed give the same state, bit by bit."""
    image = draw_parts(NUM_FEW, seed=NUM_FEW)
    first, second = builder.fitted(NUM_FEW).state_dict(), builder.train(image, roi=None).state_dict()
    other = [key for key, value in first.items() if key not in second or not torch.equal(value, second[key])]
    builder.requires("same_seed")(
        not other,
        f"trained twice from one seed, {len(other)} tensors differ, first {other[:1]}",
        "draw from torch's generator or one of your own with a `seed` option, and iterate over nothing unordered",
    )


@torch.no_grad()
def check_learning(builder: Builder) -> None:
    """Check that training decides the score, and reaches every trainable parameter."""
    require = builder.requires("learning")
    detector, other = builder.fitted(NUM_TRAIN), builder.fitted(NUM_FEW)
    image = draw_parts(3, seed=5)
    require(
        not torch.equal(detector(image).score, other(image).score),
        "trained on two different sets of images, it gives the same scores",
        "let anomaly(x) use what training_step learned",
    )
    before = {name: p for name, p in builder.build().named_parameters() if p.requires_grad}
    after = dict(detector.named_parameters())
    if detector.automatic_optimization:
        lacking = [name for name in before if name not in builder.with_gradient]
        require(
            not lacking,
            f"{len(lacking)} trainable parameters never got a gradient, first {lacking[:1]}",
            "use them in the loss, or freeze them by requires_grad_(False)",
        )
    same = [name for name, p in before.items() if torch.equal(p, after[name])]
    require(
        not same,
        f"{len(same)} trainable parameters are as before the training, first {same[:1]}",
        "give them to an optimiser, or freeze them by requires_grad_(False)",
    )


@torch.no_grad()
def check_calibration(builder: Builder) -> None:
    """Check that calibration puts the median of good scores at 0 and the threshold at 1, and leaves the ranks."""
    require = builder.requires("calibration")
    detector = builder.fitted(NUM_TRAIN)
    image = draw_parts(20, seed=1)
    raw = detector(image).score
    batches = [as_batch(part, name="") for part in image.split(6)]  # type: ignore[no-untyped-call]
    given = detector.calibrate(batches, alpha=0.1, guarantee="expected")
    said = detector(image)
    require(
        np.allclose(given, said.score.numpy(), atol=1e-3),
        f"calibrate gives scores that forward does not repeat ({np.abs(given - said.score.numpy()).max():.3g} apart)",
        "leave forward and calibrate to Detector",
    )
    for name, values in (("score", said.score), ("map's maximum", said.anomaly_map.amax(dim=(1, 2)))):
        ordered = values.double().sort().values
        median, threshold = float(ordered[9] + ordered[10]) / 2, float(ordered[18])  # k = ceil(21 · 0.9) = 19
        require(
            abs(median) < 1e-2 and abs(threshold - 1 / (1 + SCALE_MARGIN)) < 1e-2,
            f"the median of the good {name} is {median:.3g}, wanted 0, and the threshold's image is at {threshold:.4g}, wanted 1",
            "return raw values from anomaly(x) that keep their digits: no clamp, no rounding, no large offset",
        )
    require(
        torch.equal(raw.argsort(), said.score.argsort()),
        "calibration changes the ranks of the scores",
        "leave forward and calibrate to Detector",
    )


def check_equal_images(builder: Builder) -> None:
    """Check that equal images, whose scores have no spread, are refused by calibration."""
    equal = draw_parts(1, seed=6).expand(12, -1, -1, -1)
    try:
        builder.fitted(NUM_TRAIN).calibrate([as_batch(equal, name="")], alpha=0.1, guarantee="expected")
    except CalibrationError:
        return
    builder.requires("equal_images")(
        False,
        "12 copies of one image got different scores, so that they could calibrate",
        "let a score depend on its own image only, and on nothing random",
    )


@torch.no_grad()
def check_state(builder: Builder) -> None:
    """Check that the state dict, written and read again, holds all that decides a score: learned, region, calibration."""
    require = builder.requires("state")
    detector = builder.train(draw_parts(NUM_FEW, seed=NUM_FEW), roi=region_of_interest())
    detector.calibrate([as_batch(draw_parts(12, seed=1), name="")], alpha=0.2, guarantee="expected")
    options = builder.options | ({"weights": "none"} if "weights" in detector.hparams else {})  # the state brings them
    pl.seed_everything(99, verbose=False)
    other = builder.cls(**options).eval()
    state = {key: value.contiguous() for key, value in detector.state_dict().items()}
    other.load_state_dict(load_tensors(save_tensors(state)))
    image = draw_parts(3, seed=7)
    for name, a, b in zip(Anomaly._fields, detector(image), other(image), strict=True):
        require(
            torch.equal(a, b),
            f"another detector with the same state gives another {name}, {float((a - b).abs().max()):.3g} apart",
            "register what was learned or drawn as a parameter or by register_buffer",
        )


@torch.no_grad()
def check_region_of_interest(builder: Builder) -> None:
    """Check that pixels outside the region of interest neither train nor score, and have the map's minimum."""
    require = builder.requires("region_of_interest")
    mask, good = region_of_interest(), draw_parts(NUM_FEW, seed=NUM_FEW)
    noise = torch.randint(0, 256, good.shape, generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    one, two = (builder.train(image, roi=mask) for image in (good, torch.where(mask[None, ..., None], good, noise)))
    whole = builder.fitted(NUM_FEW).state_dict()
    states = one.state_dict(), two.state_dict()
    other = [key for key, value in states[0].items() if not torch.equal(value, states[1][key])]
    require(
        not other,
        f"what lies outside the region changes what is learned: {len(other)} tensors, first {other[:1]}",
        "read images through self.preprocessed(batch) alone",
    )
    learned = [key for key in whole if not key.startswith(("preprocess.", "calibration."))]
    require(
        any(whole[key].shape != states[0][key].shape or not torch.equal(whole[key], states[0][key]) for key in learned),
        "the region makes no difference to what is learned",
        "take the loss inside self.preprocess.roi only",
    )
    defect = draw_defects(good)
    said = [one(image) for image in (defect, torch.where(mask[None, ..., None], defect, noise))]
    require(
        all(torch.equal(a, b) for a, b in zip(*said, strict=True)),
        "what lies outside the region changes score or map",
        "score x, the network's input, alone",
    )
    outside = said[0].anomaly_map[:, ~one.preprocess.roi]
    require(
        torch.equal(outside, said[0].anomaly_map.amin(dim=(1, 2))[:, None].expand_as(outside)),
        "the map outside the region is not its minimum",
        "return self.inside_roi(anomaly_map) and take the score from that",
    )


@torch.no_grad()
def check_finite(builder: Builder) -> None:
    """Check that state, scores and maps are finite numbers, on unusual images too."""
    require = builder.requires("finite")
    detector = builder.fitted(NUM_TRAIN)
    unsound = [key for key, value in detector.state_dict().items() if not torch.isfinite(value).all()]
    require(
        not unsound,
        f"after training {len(unsound)} tensors of the state are no finite numbers, first {unsound[:1]}",
        "log every term of the loss, which stops at the first that is no number",
    )
    for name, image in (*unusual_images(), ("good", draw_parts(3, seed=8).numpy())):
        said = detector(torch.from_numpy(image))
        require(
            all(bool(torch.isfinite(value).all()) for value in said),
            f"score or map of images of kind {name!r} is no finite number",
            "bound divisors and arguments of logarithms from below by 1e-6 or more",
        )


@torch.no_grad()
def check_defect(builder: Builder) -> None:
    """Check that after a short fit clear defects score above good images that were not trained on."""
    detector = builder.fitted(NUM_TRAIN)
    good = draw_parts(8, seed=500)
    highest, lowest = float(detector(good).score.max()), float(detector(draw_defects(good)).score.min())
    builder.requires("defect")(
        lowest > highest,
        f"a large red patch scores {lowest:.4g}, a good image {highest:.4g}",
        "higher is more anomalous: see to the sign, or let it train longer by its options",
    )


@torch.no_grad()
def check_export(builder: Builder) -> None:
    """Check that the detector exports, and that the graph agrees with it for every number and size of images."""
    require = builder.requires("export")
    detector = builder.calibrated()
    graph = export_graph(detector).SerializeToString()
    for name, image in (*unusual_images(), ("good", draw_parts(3, seed=9).numpy())):
        trained, exported = detector(torch.from_numpy(image)), score_bytes(graph, image)
        for part in Anomaly._fields:
            a, b = getattr(trained, part).numpy(), getattr(exported, part)
            require(a.shape == b.shape, f"{part} of {name!r} has shape {b.shape}", f"it is {a.shape} here")
            worst = float(np.nan_to_num(relative_difference(a, b), nan=np.inf).max())
            require(
                worst <= REFUSE,
                f"the graph's {part} of images of kind {name!r} differs by {worst:.3g} in calibrated units",
                f"at most {REFUSE:g} passes: avoid branches on values, means over C, H and W at once, constants below 1e-6",
            )


CHECKS: dict[str, Callable[[Builder], None]] = {
    "constructor": check_constructor,
    "forward": check_forward,
    "own_image": check_own_image,
    "deterministic": check_deterministic,
    "same_seed": check_same_seed,
    "learning": check_learning,
    "calibration": check_calibration,
    "equal_images": check_equal_images,
    "state": check_state,
    "region_of_interest": check_region_of_interest,
    "finite": check_finite,
    "defect": check_defect,
    "export": check_export,
}
"""Name -> check"""


def check_detector(cls: type[Detector], *, options: dict[str, Any], checks: Iterable[str] = tuple(CHECKS)) -> None:
    """Run the checks of the contract on a detector class, and report all that fail together.

    Args:
        cls: the class.
        options: of its constructor, small ones with which it trains in a second or two and finds a large red patch.
        checks: names from `CHECKS`; all of them by default.

    Raises:
        ContractError: some checks failed; the text has a paragraph for each.
        UsageError: no check of that name.
    """
    builder = Builder(cls, options)
    failures: list[Exception] = []
    for name in checks:
        if name not in CHECKS:
            raise UsageError(f"no check {name!r}; nearest: {nearest(name, CHECKS)!r}; all: {', '.join(CHECKS)}")
        try:
            CHECKS[name](builder)
        except ContractError as error:
            failures.append(error)
        except Exception as error:  # whatever a detector raises is what the check met
            place = traceback.extract_tb(error.__traceback__)[-1]
            told = f"{type(error).__name__}: {error} ({place.filename}:{place.lineno})"
            failures.append(ContractError(f"{cls.__name__} fails {name!r}: it raised {told}; repair it there"))
            failures[-1].__cause__ = error
    if failures:
        text = "\n\n".join(str(failure) for failure in failures)
        raise ContractError(f"{len(failures)} checks failed:\n\n{text}") from failures[0]
