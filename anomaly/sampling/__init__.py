"""Drawing from generative models: the loops over their functions, and the file that holds them; numpy and ONNX Runtime."""

from __future__ import annotations

import importlib

from anomaly.sampling.process import Process

PROCESSES: dict[str, str] = {
    "decoder": "anomaly.sampling.decoder:DecoderProcess",
    "linear": "anomaly.sampling.decoder:LinearProcess",
    "mixture": "anomaly.sampling.mixture:MixtureProcess",
    "autoregressive": "anomaly.sampling.autoregressive:AutoregressiveProcess",
    "codes": "anomaly.sampling.codes:CodesProcess",
    "diffusion": "anomaly.sampling.diffusion:DiffusionProcess",
    "latent_diffusion": "anomaly.sampling.latent_diffusion:LatentDiffusionProcess",
}
"""Name -> `module:Class`, imported only when asked for"""


def process_class(name: str) -> type[Process]:
    """Find a process by its name."""
    module, _, found = PROCESSES[name].partition(":")
    process: type[Process] = getattr(importlib.import_module(module), found)
    return process
