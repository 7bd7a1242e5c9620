"""The body of a request, read within its limits: never more bytes, slower or better packed than allowed."""

from __future__ import annotations

import asyncio
import time
import zlib

from starlette.requests import ClientDisconnect, Request

from anomaly.errors import RequestError
from anomaly.service.limits import Holding, Limits

_ENCODINGS = {"": 0, "identity": 0, "gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
"""Content-Encoding -> `wbits` of zlib, 0 for none; `deflate` is the zlib format (RFC 9110, §8.4.1.2)"""


async def read_body(request: Request, *, limits: Limits, held: Holding) -> bytes:
    """Read the whole body as it was sent.

    Raises:
        RequestError: 413 too large, 408 too slow, 503 no memory just now.
        ClientDisconnect: the client went away.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > limits.max_body:
        raise _too_large(limits.max_body)
    deadline = time.monotonic() + limits.timeout
    parts: list[bytes] = []
    num_bytes, more = 0, True
    while more:
        try:
            message = await asyncio.wait_for(request.receive(), max(0.0, deadline - time.monotonic()))
        except asyncio.TimeoutError as error:
            raise RequestError(
                408, f"the request did not arrive within {limits.timeout:g} s: send it faster"
            ) from error
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        part = message.get("body", b"")
        num_bytes += len(part)
        if num_bytes > limits.max_body:
            raise _too_large(limits.max_body)
        held.take(len(part))
        parts.append(part)
        more = message.get("more_body", False)
    return b"".join(parts)


def unpacked(body: bytes, *, encoding: str, limits: Limits, held: Holding) -> bytes:
    """Undo the compression of a body.

    Args:
        body: as it was sent.
        encoding: the value of its Content-Encoding: none, `identity`, `gzip` or `deflate`.
        limits: of which `max_body` bounds what comes out too.
        held: grows by what comes out.

    Raises:
        RequestError: 415 another encoding, 400 damaged, 413 too large when unpacked, 503 no memory just now.
    """
    name = encoding.strip().lower()
    if name not in _ENCODINGS:
        raise RequestError(415, "this Content-Encoding is not known here: send identity, gzip or deflate")
    if not _ENCODINGS[name]:
        return body
    stream = zlib.decompressobj(_ENCODINGS[name])
    try:
        plain = stream.decompress(body, limits.max_body + 1)
    except zlib.error as error:
        raise RequestError(400, f"the body is no {name}: {error}") from error
    if len(plain) > limits.max_body:
        raise _too_large(limits.max_body)
    if not stream.eof or stream.unused_data:
        raise RequestError(400, f"the body is not one whole {name} stream: it is cut short, or more follows it")
    held.take(len(plain))
    return plain


def _too_large(max_body: int) -> RequestError:
    return RequestError(413, f"the body has more than {max_body:,} bytes: send fewer or smaller images")
