"""The body of a request, read and decompressed within limits of size, time and memory."""

from __future__ import annotations

import asyncio
import time
import zlib

from starlette.requests import ClientDisconnect, Request

from anomaly.errors import RequestError
from anomaly.service.limits import Limits, Reservation

_ENCODINGS = {"": 0, "identity": 0, "gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
"""Content-Encoding -> `wbits` of zlib, 0 for no compression; `deflate` is the zlib format (RFC 9110, §8.4.1.2)"""


async def read_body(request: Request, *, limits: Limits, reserved: Reservation) -> bytes:
    """Read the whole body as sent.

    Args:
        request: HTTP request.
        limits: limits of size and time.
        reserved: memory of the request, to which the body is added.

    Raises:
        RequestError: 413 too large, 408 too slow, 503 no memory.
        ClientDisconnect: the client disconnected.
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
        reserved.add(len(part))
        parts.append(part)
        more = message.get("more_body", False)
    return b"".join(parts)


def decompress_body(body: bytes, *, encoding: str, limits: Limits, reserved: Reservation) -> bytes:
    """Decompress a body.

    Args:
        body: body as sent.
        encoding: Content-Encoding: empty, `identity`, `gzip` or `deflate`.
        limits: limits of a request; `max_body` applies to the decompressed body too.
        reserved: memory of the request, to which the decompressed body is added.

    Raises:
        RequestError: 415 unknown encoding, 400 damaged data, 413 too large after decompression, 503 no memory.
    """
    name = encoding.strip().lower()
    if name not in _ENCODINGS:
        raise RequestError(415, "unsupported Content-Encoding: send identity, gzip or deflate")
    if not _ENCODINGS[name]:
        return body
    stream = zlib.decompressobj(_ENCODINGS[name])
    try:
        plain = stream.decompress(body, limits.max_body + 1)
    except zlib.error as error:
        raise RequestError(400, f"the body is not valid {name} data ({error}): compress it again") from error
    if len(plain) > limits.max_body:
        raise _too_large(limits.max_body)
    if not stream.eof or stream.unused_data:
        raise RequestError(
            400, f"the body is not one complete {name} stream: truncated or with trailing bytes; compress it again"
        )
    reserved.add(len(plain))
    return plain


def _too_large(max_body: int) -> RequestError:
    return RequestError(413, f"the body has more than {max_body:,} bytes: send fewer or smaller images")
