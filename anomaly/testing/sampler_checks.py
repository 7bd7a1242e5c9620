"""`check_sampler`: checks of the contract of a sampler, for samplers of any package."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import onnxruntime
import pytorch_lightning as pl
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from anomaly.detectors.base import Detector
from anomaly.errors import Unsupported
from anomaly.export.sampler import function_graphs
from anomaly.samplers.base import Sampler
from anomaly.testing._sampler_inputs import (
    FUNCTIONS,
    LOOPS,
    difference_of,
    draw_samples,
    example_mask,
    function_inputs,
    good_images,
    sampling_options,
    tolerance_of,
    use_ability,
)
from anomaly.testing._score_checks import (
    check_calibration,
    check_deterministic,
    check_equal_images,
    check_finite,
    check_own_image,
)
from anomaly.testing._training_checks import check_constructor, check_defect, check_same_seed
from anomaly.testing.checks import run_checks
from anomaly.testing.toy_training import (
    NUM_FEW,
    NUM_TRAIN,
    Builder,
    ContractError,
    draw_parts,
    region_of_interest,
)


@torch.no_grad()
def check_functions(builder: Builder[Sampler]) -> None:
    """Check that each function gives one finite result per image, independent of the other images of the batch."""
    require = builder.requires("functions")
    sampler = builder.fitted(NUM_TRAIN)
    examples = sampler.functions()
    require(
        bool(examples), "functions() is empty", "name the methods that the sampling loop calls, with example inputs"
    )
    for name, inputs in function_inputs(sampler):
        output = sampler.run_function(name, *inputs)
        require(
            len(output) == len(inputs[0]),
            f"{name} gives {output.shape} for {len(inputs[0])} images",
            "keep the images along the first axis",
        )
        require(
            bool(np.isfinite(output).all()),
            f"{name} gives values that are not finite",
            "bound the logarithms and divisors of the function",
        )
        alone = sampler.run_function(name, *(value[1:2] for value in inputs))
        require(
            difference_of(output[1:2], alone) <= tolerance_of(output),
            f"{name} of one image alone differs from {name} of the same image in a batch",
            "normalise by learned values, never over the batch",
        )
    if "decode" in examples:
        shape = sampler.decode(examples["decode"][0].to(sampler.device)).shape
        require(
            tuple(shape) == (2, 3, *sampler.preprocess.size),
            f"decode gives {tuple(shape)}, expected {(2, 3, *sampler.preprocess.size)}",
            "decode to images of the network's size",
        )


def check_sample(builder: Builder[Sampler]) -> None:
    """Check that the sampling loop draws images in [0, 1] that depend on the seed alone."""
    require = builder.requires("sample")
    sampler = builder.fitted(NUM_TRAIN)
    one, two, other = (draw_samples(sampler, seed=seed) for seed in (1, 1, 2))
    expected = (2, 3, *sampler.preprocess.size)
    require(
        one.shape == expected and one.dtype == np.float32,
        f"samples are {one.shape} {one.dtype}, expected {expected} float32",
        "draw images of the network's size",
    )
    require(
        bool(np.isfinite(one).all()) and one.min() >= 0 and one.max() <= 1,
        f"samples range from {one.min():.3g} to {one.max():.3g}",
        "decode to [0, 1], or clip in the sampling loop",
    )
    require(
        np.array_equal(one, two),
        "equal seeds draw different images",
        "draw nothing in the functions; the sampling loop draws from its `rng`",
    )
    require(
        not np.array_equal(one, other) and not np.array_equal(one[0], one[1]),
        "all samples are equal",
        "let decode depend on the latent",
    )


@torch.no_grad()
def check_abilities(builder: Builder[Sampler]) -> None:
    """Check that every ability works, or that `unsupported` names it with a reason."""
    require = builder.requires("abilities")
    sampler = builder.fitted(NUM_TRAIN)
    unknown = [name for name in sampler.unsupported if name not in (*FUNCTIONS, *LOOPS)]
    require(
        not unknown,
        f"`unsupported` names {', '.join(unknown)}",
        f"the abilities are {', '.join((*FUNCTIONS, *LOOPS))}",
    )
    for name in (*FUNCTIONS, *LOOPS):
        is_supported = sampler.supports(name)
        require(
            is_supported or bool(sampler.unsupported[name].strip()),
            f"`unsupported` gives no reason for {name}",
            "write the reason as a clause for an error message",
        )
        try:
            use_ability(sampler, name)
        except Unsupported as error:
            require(not is_supported, f"{name} is refused: {error}", f"write it, or name it in `unsupported`: {name!r}")
        else:
            require(is_supported, f"{name} works, but `unsupported` names it", "remove it from `unsupported`")
    if sampler.supports("inpaint"):
        x, mask = good_images(sampler, 2), example_mask(sampler, 2)
        drawn = sampler.sampling_loop().inpaint(
            x, mask, rng=np.random.default_rng(0), options=sampling_options(sampler)
        )
        known = np.broadcast_to(~mask[:, None], x.shape)
        require(
            drawn.shape == x.shape and np.array_equal(drawn[known], x[known]),
            "inpaint changes known pixels",
            "restore the known pixels at the end of the sampling loop",
        )


@torch.no_grad()
def check_density(builder: Builder[Sampler]) -> None:
    """Check that `density` describes `log_prob`, and that the log-densities are finite, one per image."""
    require = builder.requires("density")
    sampler = builder.fitted(NUM_TRAIN)
    has_density = sampler.supports("log_prob")
    require(
        has_density == (sampler.density != "none"),
        f"density is {sampler.density!r}, but log_prob is {'supported' if has_density else 'unsupported'}",
        "set `density` to 'exact', 'bound' or 'none'",
    )
    if not has_density:
        return
    x = sampler.preprocess(draw_parts(3, seed=5))
    log_prob = sampler.log_prob(x)
    require(
        tuple(log_prob.shape) == (3,) and bool(torch.isfinite(log_prob).all()),
        f"log_prob gives {tuple(log_prob.shape)} values, finite: {bool(torch.isfinite(log_prob).all())}",
        "sum over the values of an image, one finite number per image",
    )
    inverted = sampler.log_prob(1 - x)
    require(
        float(log_prob.min()) > float(inverted.max()),
        f"good images have the log-density {float(log_prob.min()):.4g}, inverted ones {float(inverted.max()):.4g}",
        "higher is more probable: check the sign, or train longer by its options",
    )


def check_sampler_learning(builder: Builder[Sampler]) -> None:
    """Check that training determines the samples."""
    one, two = (draw_samples(builder.fitted(num), seed=1) for num in (NUM_TRAIN, NUM_FEW))
    builder.requires("learning")(
        not np.array_equal(one, two),
        "after training on two different sets of images, it draws the same images",
        "let the functions use the results of training_step",
    )


@torch.no_grad()
def check_sampler_state(builder: Builder[Sampler]) -> None:
    """Check that a saved and loaded state dict determines all samples, anomaly maps and settings."""
    require = builder.requires("state")
    sampler = builder.train(draw_parts(NUM_FEW, seed=NUM_FEW), roi=region_of_interest())
    pl.seed_everything(99, verbose=False)
    other = builder.cls(**builder.options).eval()
    state = {key: value.contiguous() for key, value in sampler.state_dict().items()}
    other.load_state_dict(load_tensors(save_tensors(state)))
    remedy = "register learned and random values as parameters or by register_buffer"
    require(
        sampler.info() == other.info(), "another sampler with the same state has other settings of the loop", remedy
    )
    require(
        np.array_equal(draw_samples(sampler, seed=1), draw_samples(other, seed=1)),
        "another sampler with the same state draws other images",
        remedy,
    )
    if sampler.supports("anomaly_map"):
        x = sampler.preprocess(draw_parts(3, seed=7))
        require(
            torch.equal(sampler.smoothed_map(x), other.smoothed_map(x)),
            "another sampler with the same state gives another anomaly map",
            remedy,
        )


def check_sampler_region(builder: Builder[Sampler]) -> None:
    """Check that pixels outside the region of interest do not change the training."""
    require = builder.requires("region_of_interest")
    mask, good = region_of_interest(), draw_parts(NUM_FEW, seed=NUM_FEW)
    noise = torch.randint(0, 256, good.shape, generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    one, two = (builder.train(image, roi=mask) for image in (good, torch.where(mask[None, ..., None], good, noise)))
    states = one.state_dict(), two.state_dict()
    other = [key for key, value in states[0].items() if not torch.equal(value, states[1][key])]
    require(
        not other,
        f"pixels outside the region change the training: {len(other)} tensors, first {other[:1]}",
        "read images only through self.preprocessed(batch)",
    )


def check_sampler_export(builder: Builder[Sampler]) -> None:
    """Check that each function's graph in ONNX Runtime gives the results of the trained function."""
    require = builder.requires("export")
    sampler = builder.fitted(NUM_TRAIN)
    graphs = function_graphs(sampler)
    for name, inputs in function_inputs(sampler):
        session = onnxruntime.InferenceSession(graphs[name].SerializeToString(), providers=["CPUExecutionProvider"])
        names = [node.name for node in session.get_inputs()]
        trained = sampler.run_function(name, *inputs)
        exported = np.asarray(session.run([name], dict(zip(names, inputs, strict=True)))[0])
        difference = difference_of(trained, exported)
        require(
            difference <= tolerance_of(trained),
            f"the graph's {name} differs by {difference:.3g}",
            f"at most {tolerance_of(trained):g} passes: avoid branches on values and constants below 1e-6",
        )


def check_detector_form(builder: Builder[Sampler]) -> None:
    """Check that `as_detector` keeps the contract of a detector; a sampler without an anomaly map refuses it."""
    require = builder.requires("detector_form")
    if not builder.cls.supports("anomaly_map"):
        try:
            builder.build().as_detector()
        except Unsupported:
            return
        require(False, "as_detector works without an anomaly map", "do not override as_detector")
    form = _FormBuilder(builder)
    for check in (
        check_own_image,
        check_deterministic,
        check_calibration,
        check_equal_images,
        check_finite,
        check_defect,
    ):
        try:
            check(form)
        except ContractError as error:
            raise ContractError(f"{builder.cls.__name__} fails 'detector_form': {error}") from error


SAMPLER_CHECKS: dict[str, Callable[[Builder[Any]], None]] = {
    "constructor": check_constructor,
    "same_seed": check_same_seed,
    "functions": check_functions,
    "sample": check_sample,
    "abilities": check_abilities,
    "density": check_density,
    "learning": check_sampler_learning,
    "state": check_sampler_state,
    "region_of_interest": check_sampler_region,
    "export": check_sampler_export,
    "detector_form": check_detector_form,
}
"""Name -> check"""


def check_sampler(
    cls: type[Sampler], *, options: dict[str, Any], checks: Iterable[str] = tuple(SAMPLER_CHECKS)
) -> None:
    """Run the checks of the contract on a sampler class, and report all failures together.

    Args:
        cls: sampler class.
        options: constructor arguments for a training of about two seconds. With an anomaly map, the detector form then
            detects a large red patch.
        checks: names from `SAMPLER_CHECKS`; all of them by default.

    Raises:
        ContractError: some checks failed; the message has one paragraph per failure.
        UsageError: unknown name of a check.
    """
    run_checks(Builder(cls, options), SAMPLER_CHECKS, checks)


class _FormBuilder(Builder[Detector]):
    """Builds the detector form of the sampler under check, from the sampler's own trainings."""

    def __init__(self, builder: Builder[Sampler]) -> None:
        super().__init__(Detector, builder.options)
        self._sampler_builder = builder

    def build(self) -> Detector:
        return self._sampler_builder.build().as_detector()

    def train(self, image: Tensor, *, roi: Tensor | None) -> Detector:
        return self._sampler_builder.train(image, roi=roi).as_detector().eval()

    def fitted(self, num_images: int) -> Detector:
        return self._sampler_builder.fitted(num_images).as_detector().eval()
