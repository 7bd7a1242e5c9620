"""Who may ask: a bearer token where the service can be reached from elsewhere, and no stranger's web page anywhere.

A page that a browser on this machine shows may send requests to loopback, by its own `Origin`, or by a name that it lets
point here (DNS rebinding). Without a token, a request has to name this machine as its `Host`; with or without one, an
`Origin` has to be the `Host` itself.
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
"""Whether the service is up, which is answered also when it has too much to do"""
OPEN_PATHS = HEALTH_PATHS | frozenset(PAGE) | frozenset(REVIEW_PAGE)
"""What anyone may ask: that, and the pages' own files, which hold nothing of models or images"""


def read_token(file: str) -> str:
    """Read the token from a file, or from the environment where no file is named; empty where there is none.

    Raises:
        UsageError: a file that cannot be read, or a token that is short or no printable ASCII.
    """
    if file:
        try:
            token = Path(file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--token-file {file} cannot be read ({error}): write the token into it") from error
        source = f"--token-file {file}"
    else:
        token, source = os.environ.get(TOKEN_VARIABLE, "").strip(), TOKEN_VARIABLE
        if not token:
            return ""
    if len(token) < MIN_TOKEN or not (token.isascii() and token.isprintable() and " " not in token):
        raise UsageError(
            f"the token of {source} has {len(token)} characters: take {MIN_TOKEN} or more of printable ASCII"
        )
    return token


def is_loopback(address: str) -> bool:
    """Whether an IP address can be reached from this machine alone."""
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


class Guard:
    """Decides on a request by its headers.

    Args:
        token: that has to come with it; empty for none.
        loopback: whether the service is bound to this machine alone.
    """

    def __init__(self, *, token: str, loopback: bool) -> None:
        self._token = token.encode()
        self._check_host = loopback and not token

    def check(self, path: str, headers: Mapping[str, str]) -> None:
        """Let a request pass, or not.

        Raises:
            RequestError: 421 for another machine's name, 403 from another site's page, 401 without the token.
        """
        host = headers.get("host", "")
        if self._check_host and not _is_this_machine(host):
            raise RequestError(421, "this service answers to localhost only: ask 127.0.0.1, or start it with a token")
        origin = headers.get("origin")
        if origin is not None and _netloc(origin) != host.lower():
            raise RequestError(403, "a page of another site may not ask this service")
        if self._token and path not in OPEN_PATHS:
            scheme, _, given = headers.get("authorization", "").partition(" ")
            is_right = hmac.compare_digest(given.strip().encode("utf-8", "replace"), self._token)
            if scheme.lower() != "bearer" or not is_right:
                raise RequestError(401, "this service wants its token: send `Authorization: Bearer TOKEN`")


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _is_this_machine(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or is_loopback(name)
    except ValueError:  # no address, or no host at all
        return False
