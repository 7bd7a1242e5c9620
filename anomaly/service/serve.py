"""Serve models over HTTP."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Literal

from anomaly.errors import UsageError
from anomaly.imaging.header import Frame
from anomaly.inference.session import Device
from anomaly.scoring.settings import Settings
from anomaly.service.access_log import log_request
from anomaly.service.app import create_app
from anomaly.service.auth import Guard, is_loopback, read_token
from anomaly.service.limits import Limits
from anomaly.service.model_repository import ModelRepository, find_model_files
from anomaly.service.scoring_service import ScoringService
from anomaly.service.server import find_address, run_server
from anomaly.system.processors import num_cpus

GPU_BATCH_SIZE = 8
_log = logging.getLogger(__name__)


def serve(
    models: list[str | Path],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    token_file: str | Path | None = None,
    allow_anonymous: bool = False,
    device: Device = "auto",
    num_threads: int = 0,
    threshold: float | Literal["model"] = "model",
    batch_size: int | Literal["device"] = "device",
    max_delay_ms: float = 0.0,
    max_queue: int = 64,
    max_requests: int = 128,
    max_body_mib: int = 64,
    max_memory_mib: int = 1024,
    max_pixels: int = 25_000_000,
    frame: Frame = "only",
    timeout: float = 30.0,
) -> None:
    """Serve models over HTTP until SIGINT (Ctrl-C) or SIGTERM; accepted requests are still answered.

    Args:
        models: .onnx files, NAME=FILE, or folders of NAME.onnx and NAME/VERSION/model.onnx.
        host: listening address; by default this machine only.
        port: listening port; 0 takes a free port, shown in the log.
        token_file: file with the bearer token that requests must bring; by default the environment variable
            ANOMALY_TOKEN.
        allow_anonymous: accept requests of other machines without a token.
        device: inference device: auto, cpu, cuda or tensorrt.
        num_threads: threads of one inference on the CPU; 0 takes all processors.
        threshold: threshold of the verdict in calibrated units; by default the model's own, 1.
        batch_size: largest number of images per inference; `anomaly profile` finds the best. By default 1 on the CPU,
            where larger batches are rarely faster, and 8 on other devices.
        max_delay_ms: longest wait of an image for others while no inference runs, in milliseconds.
        max_queue: largest number of waiting images; further requests are answered with 503.
        max_requests: largest number of concurrent requests; further requests are answered with 503.
        max_body_mib: largest request in MiB, compressed or not.
        max_memory_mib: largest memory of all bodies and decoded images in MiB; further requests are answered with 503.
        max_pixels: largest width × height of an image.
        frame: rule for files with several frames or pages: `only` refuses them, `first` takes the first frame.
        timeout: longest time for a request to arrive, and again for its response, in seconds.

    Raises:
        UsageError: an invalid option, or a listening address that other machines can reach without a token.
        ModelError: a model file cannot be loaded.
        OutputError: the listening address is not available.
    """
    limits = Limits(
        max_body=max_body_mib << 20,
        max_pixels=max_pixels,
        max_images=max_queue,
        max_requests=max_requests,
        max_memory=max_memory_mib << 20,
        timeout=timeout,
    )
    settings = Settings(
        threshold=1.0 if threshold == "model" else threshold,
        batch_size=1 if batch_size == "device" else batch_size,
        max_pixels=max_pixels,
        num_threads=num_cpus(),
        frame=frame,
    )
    if not 0 <= max_delay_ms <= 1e3 * timeout:
        raise UsageError(f"max_delay_ms is {max_delay_ms}: give 0 to {1e3 * timeout:g}, the timeout")
    token = read_token(token_file)
    address = find_address(host, port, token=token, allow_anonymous=allow_anonymous)
    repository = ModelRepository(find_model_files(models), device=device, num_threads=num_threads)
    for served in repository.all():
        file, scorer = served.file, served.scorer
        _log.info("%s version %d: provider %s; model %s", file.name, file.version, scorer.provider, scorer.sha256[:16])
    if batch_size == "device" and all(served.scorer.device != "cpu" for served in repository.all()):
        settings = replace(settings, batch_size=GPU_BATCH_SIZE)
    service = ScoringService(repository, limits=limits, settings=settings, max_delay=max_delay_ms / 1e3)
    guard = Guard(token=token, loopback=is_loopback(address.host))
    run_server(address, create_app(service, guard=guard, log=log_request), limits=limits)
