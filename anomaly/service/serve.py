"""The verb `serve`: models behind HTTP, for this machine alone unless it is told otherwise."""

from __future__ import annotations

import json
import socket
import sys
from contextlib import suppress
from dataclasses import replace
from typing import Any, Literal

from anomaly.errors import OutputError, UsageError
from anomaly.image_header import Frame
from anomaly.scoring.pipeline import Settings
from anomaly.scoring.processors import num_cpus
from anomaly.scoring.session import Device
from anomaly.scoring.watch import stopped_by_signals
from anomaly.service.app import Service, create_app
from anomaly.service.connection import IDLE_SECONDS, make_server
from anomaly.service.limits import Limits
from anomaly.service.models import Models, find_places
from anomaly.service.security import TOKEN_VARIABLE, Guard, is_loopback, read_token

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
    limit: float | Literal["model"] = "model",
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
        limit: of the verdict in calibrated units; by default the model's own, 1.
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
        limit=1.0 if limit == "model" else limit,
        batch_size=1 if batch_size == "device" else batch_size,
        max_pixels=max_pixels,
        num_threads=num_cpus(),
        frame=frame,
    )
    if not 0 <= max_delay_ms <= 1e3 * timeout:
        raise UsageError(f"max_delay_ms is {max_delay_ms}: give 0 or more, and less than the time-out")
    token = read_token(token_file)
    family, address = _resolve(host, port)
    if not (token or is_loopback(address) or allow_anonymous):
        raise UsageError(
            f"{host} can be reached from other machines: give --token-file or {TOKEN_VARIABLE}, or --allow-anonymous"
        )
    loaded = Models(find_places(models), device=device, num_threads=num_threads)
    for served in loaded.all():
        place, scorer = served.place, served.scorer
        told = f"{place.name} version {place.version}: provider {scorer.provider}; model {scorer.sha256[:16]}"
        print(told, file=sys.stderr)
    if batch_size == "device" and all(served.scorer.device != "cpu" for served in loaded.all()):
        settings = replace(settings, batch_size=GPU_BATCH)
    service = Service(loaded, limits=limits, settings=settings, max_delay=max_delay_ms / 1e3)
    app = create_app(service, guard=Guard(token=token, loopback=is_loopback(address)), log=_write_line)
    server = make_server(app, limits=limits, idle_seconds=IDLE_SECONDS)
    listener = _listen(family, address, port)
    shown = f"[{address}]" if ":" in address else address
    print(f"serving on http://{shown}:{listener.getsockname()[1]}", file=sys.stderr, flush=True)
    with stopped_by_signals():  # the server takes them, and hands them on when it has ended
        server.run(sockets=[listener])
    return 0


def _resolve(host: str, port: int) -> tuple[socket.AddressFamily, str]:
    """Find the one address that a host name stands for; none is not every address."""
    if not host or not 0 <= port < 2**16:
        raise UsageError(
            f"{host!r} port {port} is no address to listen on: 127.0.0.1 is this machine, ports are below 65536"
        )
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise UsageError(f"{host!r} is no address to listen on ({error}): 127.0.0.1 is this machine") from error
    family, _, _, _, address = found[0]
    return family, str(address[0])


def _listen(family: socket.AddressFamily, address: str, port: int) -> socket.socket:
    try:
        return socket.create_server((address, port), family=family, backlog=2048)
    except OSError as error:
        raise OutputError(f"{address} port {port} cannot be listened on ({error}): choose another --port") from error


def _write_line(entry: dict[str, Any]) -> None:
    with suppress(OSError):  # nobody reads any more: requests are answered all the same
        print(json.dumps(entry), file=sys.stderr)
