"""Inputs, abilities and comparisons for the checks of a sampler."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from anomaly.generation.base import Options
from anomaly.generation.onnx_sampler import draw_input
from anomaly.inference.difference import relative_difference
from anomaly.samplers.base import Sampler
from anomaly.testing.toy_training import draw_parts

REFUSE = 1e-3
"""Largest relative difference between a trained function and its graph, and between batches"""
MOST_CODES = 0.01
"""Largest share of different integer outputs"""
FUNCTIONS = ("encode", "decode", "log_prob", "anomaly_map")
LOOPS = ("sample", "reconstruct", "interpolate", "inpaint", "attribute")


def sampling_options(sampler: Sampler) -> Options:
    """Return options with few denoising steps for a diffusion model, else the defaults."""
    return Options(steps=3) if "steps" in sampler.sampling_loop().known_options else Options()


def draw_samples(sampler: Sampler, *, seed: int) -> NDArray[np.float32]:
    """Draw two images (2, 3, h, w)."""
    return sampler.sampling_loop().sample(2, rng=np.random.default_rng(seed), options=sampling_options(sampler))


@torch.no_grad()
def good_images(sampler: Sampler, num: int) -> NDArray[np.float32]:
    """Draw good images at the network's size, (num, 3, h, w)."""
    return np.asarray(sampler.preprocess(draw_parts(num, seed=5)).numpy())


def example_mask(sampler: Sampler, num: int) -> NDArray[np.bool_]:
    """Return masks (num, h, w) of a rectangle."""
    height, width = sampler.preprocess.size
    mask = np.zeros((num, height, width), dtype=bool)
    mask[:, height // 4 : height // 2, width // 4 : width // 2] = True
    return mask


def function_inputs(sampler: Sampler) -> Iterator[tuple[str, list[NDArray[Any]]]]:
    """Yield each function's name and inputs for three images: good images for x, else random values."""
    x, rng = good_images(sampler, 3), np.random.default_rng(0)
    for name, example in sampler.functions().items():
        inputs: list[NDArray[Any]] = []
        for argument, part in zip(sampler.input_names(name), example, strict=True):
            if argument == "x" and part.shape[1:] == x.shape[1:]:
                inputs.append(x)
            else:
                largest = None if part.is_floating_point() else int(part.max())
                inputs.append(draw_input(argument, (3, *part.shape[1:]), largest=largest, rng=rng))
        yield name, inputs


def use_ability(sampler: Sampler, ability: str) -> None:
    """Use an ability on good images."""
    x, options, rng, loop = (
        good_images(sampler, 3),
        sampling_options(sampler),
        np.random.default_rng(0),
        sampler.sampling_loop(),
    )
    if ability == "decode":
        functions = sampler.functions()
        sampler.decode(functions["decode"][0] if "decode" in functions else torch.zeros(2, *sampler.latent_shape))
    elif ability in FUNCTIONS:
        getattr(sampler, ability)(torch.from_numpy(x))
    elif ability == "sample":
        loop.sample(1, rng=rng, options=options)
    elif ability == "reconstruct":
        loop.reconstruct(x, rng=rng, options=options)
    elif ability == "interpolate":
        loop.interpolate(x[0], x[1], num=3, options=options)
    elif ability == "inpaint":
        loop.inpaint(x, example_mask(sampler, 3), rng=rng, options=options)
    else:
        loop.attribute(x[:1], x[:2], x[2:], strength=1.0, options=options)


def difference_of(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Return the largest relative difference, or the share of different integers."""
    if np.issubdtype(a.dtype, np.integer):
        return float((a != b).mean())
    return float(np.nan_to_num(relative_difference(a, b), nan=np.inf).max())


def tolerance_of(output: NDArray[Any]) -> float:
    """Return the largest accepted `difference_of`."""
    return MOST_CODES if np.issubdtype(output.dtype, np.integer) else REFUSE
