"""Checks of a detector's configuration, training and state."""

from __future__ import annotations

import inspect
import json
from typing import Any

import pytorch_lightning as pl
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from anomaly.detectors.base import Anomaly, Detector
from anomaly.testing.toy_training import (
    NUM_FEW,
    NUM_TRAIN,
    Builder,
    ContractError,
    as_batch,
    draw_defects,
    draw_parts,
    region_of_interest,
)


def check_constructor(builder: Builder[Any]) -> None:
    """Check that the constructor's keyword arguments are the whole configuration, and that they are JSON values."""
    require = builder.requires("constructor")
    parameters = inspect.signature(builder.cls).parameters
    other = [name for name, p in parameters.items() if p.kind is not inspect.Parameter.KEYWORD_ONLY]
    require(not other, f"argument {', '.join(other)} is not keyword-only", "write `self, *, name: type = value`")
    detector = builder.build()
    require(
        set(detector.hparams) == set(parameters),
        f"it saves {sorted(detector.hparams)} of {sorted(parameters)}",
        "call self.save_hyperparameters() in the constructor",
    )
    try:
        options = json.loads(json.dumps(dict(detector.hparams)))
    except TypeError as error:
        raise ContractError(
            f"{builder.cls.__name__} fails 'constructor': {error}; use numbers, strings, booleans and lists of them"
        ) from error
    again = builder.cls(**options)
    shapes = [{key: value.shape for key, value in d.state_dict().items()} for d in (detector, again)]
    require(
        shapes[0] == shapes[1],
        "a second detector from its saved options has other shapes in its state",
        "derive every size from the constructor's arguments",
    )
    for name in ("epochs", "batch_size"):
        require(
            name not in parameters or getattr(detector, name) == detector.hparams[name],
            f"option {name} is {detector.hparams.get(name)}, but the detector trains with {getattr(detector, name)}",
            f"pass it on: super().__init__(..., {name}={name})",
        )


def check_same_seed(builder: Builder[Any]) -> None:
    """Check that two trainings with the same seed give the same state, bit by bit."""
    image = draw_parts(NUM_FEW, seed=NUM_FEW)
    first, second = builder.fitted(NUM_FEW).state_dict(), builder.train(image, roi=None).state_dict()
    other = [key for key, value in first.items() if key not in second or not torch.equal(value, second[key])]
    builder.requires("same_seed")(
        not other,
        f"after two trainings with one seed, {len(other)} tensors differ, first {other[:1]}",
        "draw from torch's generator or from a generator with a `seed` option, and iterate in a fixed order",
    )


@torch.no_grad()
def check_learning(builder: Builder[Detector]) -> None:
    """Check that training determines the score, and that it changes every trainable parameter."""
    require = builder.requires("learning")
    detector, other = builder.fitted(NUM_TRAIN), builder.fitted(NUM_FEW)
    image = draw_parts(3, seed=5)
    require(
        not torch.equal(detector(image).score, other(image).score),
        "after training on two different sets of images, it gives the same scores",
        "let anomaly(x) use the results of training_step",
    )
    before = {name: p for name, p in builder.build().named_parameters() if p.requires_grad}
    after = dict(detector.named_parameters())
    if detector.automatic_optimization:
        unused = [name for name in before if name not in builder.with_gradient]
        require(
            not unused,
            f"{len(unused)} trainable parameters never got a gradient, first {unused[:1]}",
            "use them in the loss, or freeze them by requires_grad_(False)",
        )
    same = [name for name, p in before.items() if torch.equal(p, after[name])]
    require(
        not same,
        f"{len(same)} trainable parameters did not change in training, first {same[:1]}",
        "give them to an optimiser, or freeze them by requires_grad_(False)",
    )


@torch.no_grad()
def check_state(builder: Builder[Detector]) -> None:
    """Check that a saved and loaded state dict determines all scores: parameters, region and calibration."""
    require = builder.requires("state")
    detector = builder.train(draw_parts(NUM_FEW, seed=NUM_FEW), roi=region_of_interest())
    detector.calibrate([as_batch(draw_parts(12, seed=1), name="")], alpha=0.2, guarantee="expected")
    options = builder.options | ({"weights": "none"} if "weights" in detector.hparams else {})  # the state has them
    pl.seed_everything(99, verbose=False)
    other = builder.cls(**options).eval()
    state = {key: value.contiguous() for key, value in detector.state_dict().items()}
    other.load_state_dict(load_tensors(save_tensors(state)))
    image = draw_parts(3, seed=7)
    for name, a, b in zip(Anomaly._fields, detector(image), other(image), strict=True):
        require(
            torch.equal(a, b),
            f"another detector with the same state gives another {name}, {float((a - b).abs().max()):.3g} apart",
            "register learned and random values as parameters or by register_buffer",
        )


@torch.no_grad()
def check_region_of_interest(builder: Builder[Detector]) -> None:
    """Check that pixels outside the region of interest change neither training nor scores, and have the map's minimum."""
    require = builder.requires("region_of_interest")
    mask, good = region_of_interest(), draw_parts(NUM_FEW, seed=NUM_FEW)
    noise = torch.randint(0, 256, good.shape, generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    one, two = (builder.train(image, roi=mask) for image in (good, torch.where(mask[None, ..., None], good, noise)))
    whole = builder.fitted(NUM_FEW).state_dict()
    states = one.state_dict(), two.state_dict()
    other = [key for key, value in states[0].items() if not torch.equal(value, states[1][key])]
    require(
        not other,
        f"pixels outside the region change the training: {len(other)} tensors, first {other[:1]}",
        "read images only through self.preprocessed(batch)",
    )
    learned = [key for key in whole if not key.startswith(("preprocess.", "calibration."))]
    require(
        any(whole[key].shape != states[0][key].shape or not torch.equal(whole[key], states[0][key]) for key in learned),
        "the region does not change the training",
        "compute the loss only inside self.preprocess.roi",
    )
    defect = draw_defects(good)
    results = [one(image) for image in (defect, torch.where(mask[None, ..., None], defect, noise))]
    require(
        all(torch.equal(a, b) for a, b in zip(*results, strict=True)),
        "pixels outside the region change score or map",
        "compute scores only from x, the network's input",
    )
    outside = results[0].anomaly_map[:, ~one.preprocess.roi]
    require(
        torch.equal(outside, results[0].anomaly_map.amin(dim=(1, 2))[:, None].expand_as(outside)),
        "the map outside the region is not its minimum",
        "return self.inside_roi(anomaly_map) and compute the score from it",
    )


@torch.no_grad()
def check_defect(builder: Builder[Detector]) -> None:
    """Check that after a short training clear defects score higher than good images outside the training set."""
    detector = builder.fitted(NUM_TRAIN)
    good = draw_parts(8, seed=500)
    highest, lowest = float(detector(good).score.max()), float(detector(draw_defects(good)).score.min())
    builder.requires("defect")(
        lowest > highest,
        f"a large red patch scores {lowest:.4g}, a good image {highest:.4g}",
        "higher is more anomalous: check the sign, or train longer by its options",
    )
