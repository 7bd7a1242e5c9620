"""Drawing from generative models: the loops over their functions, and the file that holds them; numpy and ONNX Runtime."""

from __future__ import annotations

import importlib

from anomaly.generation.base import Process

PROCESSES: dict[str, str] = {
    "decoder": "anomaly.generation.decoder:DecoderProcess",
    "linear": "anomaly.generation.decoder:LinearProcess",
    "mixture": "anomaly.generation.mixture:MixtureProcess",
    "autoregressive": "anomaly.generation.autoregressive:AutoregressiveProcess",
    "codes": "anomaly.generation.codes:CodesProcess",
    "diffusion": "anomaly.generation.diffusion:DiffusionProcess",
    "latent_diffusion": "anomaly.generation.latent_diffusion:LatentDiffusionProcess",
}
"""Name -> `module:Class`, imported only when asked for"""


def process_class(name: str) -> type[Process]:
    """Find a process by its name."""
    module, _, found = PROCESSES[name].partition(":")
    process: type[Process] = getattr(importlib.import_module(module), found)
    return process
