"""Where an application listens, and its life there until it is told to end."""

from __future__ import annotations

import socket
import sys
from typing import NamedTuple

from starlette.types import ASGIApp

from anomaly.errors import OutputError, UsageError
from anomaly.scoring.folder_watch import stopped_by_signals
from anomaly.service.auth import TOKEN_VARIABLE, is_loopback
from anomaly.service.connections import IDLE_SECONDS, make_server
from anomaly.service.limits import Limits


class Address(NamedTuple):
    """An address to listen on."""

    family: socket.AddressFamily
    host: str
    """as an IP address"""
    port: int
    """0 for a free one"""


def find_address(host: str, port: int, *, token: str, allow_anonymous: bool) -> Address:
    """Find the one address that a host name stands for; none is not every address.

    Args:
        host: name or address.
        port: 0 takes a free one.
        token: that requests have to bring; empty for none.
        allow_anonymous: whether to listen beyond this machine without.

    Raises:
        UsageError: no address, or one beyond this machine without a token.
    """
    if not host or not 0 <= port < 2**16:
        raise UsageError(
            f"{host!r} port {port} is no address to listen on: 127.0.0.1 is this machine, ports are below 65536"
        )
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise UsageError(f"{host!r} is no address to listen on ({error}): 127.0.0.1 is this machine") from error
    family, _, _, _, address = found[0]
    if not (token or is_loopback(str(address[0])) or allow_anonymous):
        raise UsageError(
            f"{host} can be reached from other machines: give --token-file or {TOKEN_VARIABLE}, or --allow-anonymous"
        )
    return Address(family, str(address[0]), port)


def serve_on(address: Address, app: ASGIApp, *, limits: Limits) -> None:
    """Listen, print the address, and answer until Ctrl-C or a request to terminate; what was accepted is answered first.

    Raises:
        OutputError: an address that cannot be listened on.
    """
    family, host, port = address
    server = make_server(app, limits=limits, idle_seconds=IDLE_SECONDS)
    try:
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise OutputError(f"{host} port {port} cannot be listened on ({error}): choose another --port") from error
    shown = f"[{host}]" if ":" in host else host
    print(f"serving on http://{shown}:{listener.getsockname()[1]}", file=sys.stderr, flush=True)
    with stopped_by_signals():  # the server takes them, and hands them on when it has ended
        server.run(sockets=[listener])
