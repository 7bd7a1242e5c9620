"""The verb `serve`: models behind HTTP, for this machine alone unless it is told otherwise."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from dataclasses import replace
from typing import Any, Literal

from anomaly.errors import UsageError
from anomaly.imaging.header import Frame
from anomaly.inference.session import Device
from anomaly.scoring.pipeline import Settings
from anomaly.service.app import Service, create_app
from anomaly.service.auth import Guard, is_loopback, read_token
from anomaly.service.limits import Limits
from anomaly.service.model_repository import Models, find_places
from anomaly.service.server import find_address, serve_on
from anomaly.system.processors import num_cpus

GPU_BATCH = 8


def serve(
    models: list[str],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    token_file: str = "",
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
) -> int:
    """Serve models over HTTP until Ctrl-C or a request to terminate; what was accepted by then is answered.

    Args:
        models: .onnx files, NAME=FILE, or folders of NAME.onnx and NAME/VERSION/model.onnx.
        host: address to listen on; this machine alone by default.
        port: to listen on; 0 takes a free one, which is printed.
        token_file: file with the bearer token that requests have to bring; else the environment's ANOMALY_TOKEN.
        allow_anonymous: listen beyond this machine without a token.
        device: auto, cpu, cuda or tensorrt.
        num_threads: of one inference on the CPU; 0 takes all this process may use.
        threshold: of the verdict in calibrated units; by default the model's own, 1.
        batch_size: images per inference at most, as `anomaly bench` finds it best; by default 1 on the CPU, where most
            networks gain nothing by more, and 8 elsewhere.
        max_delay_ms: milliseconds that an image may wait for others while nothing is inferred.
        max_queue: images that may wait for a model; more is answered 503.
        max_requests: requests at once; more is answered 503.
        max_body_mib: MiB of one request, compressed or not.
        max_memory_mib: MiB of bodies and decoded images that all requests hold together; more is answered 503.
        max_pixels: largest width × height that is decoded.
        frame: of files with several frames or pages: `only` refuses them, `first` takes the first.
        timeout: seconds that a request may take to arrive, and again to be answered.

    Returns:
        0 after the end that was asked for.

    Raises:
        UsageError: a listening address beyond this machine without a token, a model or an option that is none.
        ModelError: a file that cannot be loaded.
        OutputError: an address that cannot be listened on.
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
        raise UsageError(f"max_delay_ms is {max_delay_ms}: give 0 or more, and less than the time-out")
    token = read_token(token_file)
    address = find_address(host, port, token=token, allow_anonymous=allow_anonymous)
    loaded = Models(find_places(models), device=device, num_threads=num_threads)
    for served in loaded.all():
        place, scorer = served.place, served.scorer
        told = f"{place.name} version {place.version}: provider {scorer.provider}; model {scorer.sha256[:16]}"
        print(told, file=sys.stderr)
    if batch_size == "device" and all(served.scorer.device != "cpu" for served in loaded.all()):
        settings = replace(settings, batch_size=GPU_BATCH)
    service = Service(loaded, limits=limits, settings=settings, max_delay=max_delay_ms / 1e3)
    guard = Guard(token=token, loopback=is_loopback(address.host))
    serve_on(address, create_app(service, guard=guard, log=_write_line), limits=limits)
    return 0


def _write_line(entry: dict[str, Any]) -> None:
    with suppress(OSError):  # nobody reads any more: requests are answered all the same
        print(json.dumps(entry), file=sys.stderr)
