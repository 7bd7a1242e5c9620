"""Access control: a bearer token for services that other machines can reach, and no requests from foreign web pages.

A page in a browser on this machine can send requests to loopback. It sends them from its own `Origin`, or through a name
that it resolves to this machine (DNS rebinding). Without a token, the `Host` of a request must therefore be this machine.
In every case the `Origin` of a request must equal its `Host`.
"""

from __future__ import annotations

import hmac
import ipaddress
import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from anomaly.errors import RequestError, UsageError
from anomaly.service.static_files import PAGE, REVIEW_PAGE

TOKEN_VARIABLE = "ANOMALY_TOKEN"
MIN_TOKEN = 16
HEALTH_PATHS = frozenset({"/v2/health/live", "/v2/health/ready"})
"""Health checks, answered under overload too"""
OPEN_PATHS = HEALTH_PATHS | frozenset(PAGE) | frozenset(REVIEW_PAGE)
"""Paths without access control: health checks and the static files of the pages"""


def read_token(file: str | Path | None) -> str | None:
    """Read the token from a file, or from the environment if no file is given.

    Args:
        file: file with the token; None takes the environment.

    Returns:
        The token; None without a token.

    Raises:
        UsageError: an unreadable file, or a token that is too short or not printable ASCII.
    """
    if file is not None:
        try:
            token = Path(file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--token-file {file} cannot be read ({error}): write the token into it") from error
        source = f"--token-file {file}"
    else:
        token, source = os.environ.get(TOKEN_VARIABLE, "").strip(), TOKEN_VARIABLE
        if not token:
            return None
    if len(token) < MIN_TOKEN or not (token.isascii() and token.isprintable() and " " not in token):
        raise UsageError(
            f"the token in {source} has {len(token)} characters: use at least {MIN_TOKEN} printable ASCII characters"
            " without spaces"
        )
    return token


def is_loopback(address: str) -> bool:
    """Whether an IP address is reachable from this machine only."""
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


class Guard:
    """Access control by the headers of a request.

    Args:
        token: required token; None without a token.
        loopback: whether the service listens on this machine only.
    """

    def __init__(self, *, token: str | None, loopback: bool) -> None:
        self._token = None if token is None else token.encode()
        self._check_host = loopback and token is None

    def check(self, path: str, headers: Mapping[str, str]) -> None:
        """Check a request.

        Raises:
            RequestError: 421 foreign host name, 403 foreign origin, 401 missing or wrong token.
        """
        host = headers.get("host", "")
        if self._check_host and not _is_this_machine(host):
            raise RequestError(421, "this service answers localhost only: use 127.0.0.1, or start it with a token")
        origin = headers.get("origin")
        if origin is not None and _netloc(origin) != host.lower():
            raise RequestError(403, "requests from pages of other sites are refused: open this service's own page")
        if self._token is not None and path not in OPEN_PATHS:
            scheme, _, token = headers.get("authorization", "").partition(" ")
            is_right = hmac.compare_digest(token.strip().encode("utf-8", "replace"), self._token)
            if scheme.lower() != "bearer" or not is_right:
                raise RequestError(401, "this service requires a token: send `Authorization: Bearer TOKEN`")


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _is_this_machine(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or is_loopback(name)
    except ValueError:  # not an address, or an empty host
        return False
