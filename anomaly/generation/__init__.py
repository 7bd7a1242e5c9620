"""Image generation by exported samplers: the sampling loops and the sampler's file, on numpy and ONNX Runtime."""

from __future__ import annotations

import importlib

from anomaly.generation.base import SamplingLoop

SAMPLING_LOOPS: dict[str, str] = {
    "decoder": "anomaly.generation.decoder:DecoderLoop",
    "linear": "anomaly.generation.linear:LinearLoop",
    "mixture": "anomaly.generation.mixture:MixtureLoop",
    "autoregressive": "anomaly.generation.autoregressive:AutoregressiveLoop",
    "codes": "anomaly.generation.codes:CodesLoop",
    "diffusion": "anomaly.generation.diffusion:DiffusionLoop",
    "latent_diffusion": "anomaly.generation.latent_diffusion:LatentDiffusionLoop",
}
"""Name -> `module:Class`, imported on first use"""


def sampling_loop_class(name: str) -> type[SamplingLoop]:
    """Return the sampling loop of that name."""
    module, _, attribute = SAMPLING_LOOPS[name].partition(":")
    found: type[SamplingLoop] = getattr(importlib.import_module(module), attribute)
    return found
