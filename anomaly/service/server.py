"""The listening address of a service, and its run until it is stopped."""

from __future__ import annotations

import logging
import socket
from typing import NamedTuple

from starlette.types import ASGIApp

from anomaly.errors import OutputError, UsageError
from anomaly.scoring.folder_watch import stop_on_signals
from anomaly.service.auth import TOKEN_VARIABLE, is_loopback
from anomaly.service.connections import IDLE_SECONDS, make_server
from anomaly.service.limits import Limits

_log = logging.getLogger(__name__)


class Address(NamedTuple):
    """A listening address."""

    family: socket.AddressFamily
    host: str
    """IP address"""
    port: int
    """0 for any free port"""


def find_address(host: str, port: int, *, token: str | None, allow_anonymous: bool) -> Address:
    """Resolve a host name to one address; an empty name is refused.

    Args:
        host: name or IP address.
        port: port number; 0 takes a free port.
        token: required token; None without a token.
        allow_anonymous: whether other machines may send requests without a token.

    Raises:
        UsageError: an invalid address, or one that other machines can reach without a token.
    """
    if not host or not 0 <= port < 2**16:
        raise UsageError(
            f"{host!r} port {port} is not a valid listening address: 127.0.0.1 is this machine, ports are below 65536"
        )
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise UsageError(f"{host!r} is not a valid listening address ({error}): 127.0.0.1 is this machine") from error
    family, _, _, _, address = found[0]
    if not (token is not None or is_loopback(str(address[0])) or allow_anonymous):
        raise UsageError(
            f"other machines can reach {host}: give --token-file or {TOKEN_VARIABLE}, or --allow-anonymous"
        )
    return Address(family, str(address[0]), port)


def run_server(address: Address, app: ASGIApp, *, limits: Limits) -> None:
    """Listen, log the address, and answer requests until SIGINT or SIGTERM; accepted requests are still answered.

    Args:
        address: listening address.
        app: application.
        limits: limits of a request.

    Raises:
        OutputError: the address is not available.
    """
    family, host, port = address
    server = make_server(app, limits=limits, idle_seconds=IDLE_SECONDS)
    try:
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise OutputError(f"cannot listen on {host} port {port} ({error}): choose another --port") from error
    url_host = f"[{host}]" if ":" in host else host
    _log.info("serving on http://%s:%d", url_host, listener.getsockname()[1])
    with stop_on_signals():  # uvicorn raises the signals again after its own shutdown
        server.run(sockets=[listener])
