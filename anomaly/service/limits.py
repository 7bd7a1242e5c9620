"""What a request may cost: how much it may send, hold and wait."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from anomaly.errors import RequestError, UsageError

BYTES_A_PIXEL = 3
"""Of an image of 8 bits; one of 16 takes twice as many while it is decoded"""
MAX_JSON = 2**24
"""Bytes of JSON in a request: the interpreter stands still while it is parsed; tensors go as bytes"""
BYTES_A_JSON_BYTE = 24
"""What parsed JSON takes at most for one byte of text: an empty object in a list"""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of the service.

    Raises:
        UsageError: a bound below 1, or memory that one request within the others may exceed.
    """

    max_body: int
    """bytes of a request, compressed or not"""
    max_pixels: int
    """width × height of an image"""
    max_images: int
    """images that wait for a model, and therefore of a request"""
    max_requests: int
    """requests at once"""
    max_memory: int
    """bytes of bodies and decoded images that all requests hold together"""
    timeout: float
    """seconds that a request may take to arrive, and again to be answered"""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise UsageError(f"{name} is {value}: give a number above 0")
        parsed = BYTES_A_JSON_BYTE * min(MAX_JSON, self.max_body)
        needed = 3 * self.max_body + max(2 * BYTES_A_PIXEL * self.max_pixels, parsed)  # as sent, unpacked, and its file
        if self.max_memory < needed:
            raise UsageError(
                f"{self.max_memory >> 20} MiB do not hold one request of {self.max_body >> 20} MiB and {self.max_pixels:,}"
                f" pixels: raise --max-memory-mib to {(needed >> 20) + 1}, or lower --max-body-mib or --max-pixels"
            )


class Holding:
    """Bytes that one request holds."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self.num_bytes = 0

    def take(self, num_bytes: int) -> None:
        """Hold more.

        Raises:
            RequestError: 503, other requests hold too much just now.
        """
        self._memory.add(num_bytes)
        self.num_bytes += num_bytes


class Memory:
    """The bytes that all requests hold together; used from the event loop and from threads.

    Args:
        max_bytes: that they may hold.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self.num_bytes = 0

    def add(self, num_bytes: int) -> None:
        """Count bytes, or give them back where the number is negative.

        Raises:
            RequestError: 503, there would be too many.
        """
        with self._lock:
            if num_bytes > 0 and self.num_bytes + num_bytes > self._max_bytes:
                raise RequestError(503, "the service holds as many images as it has memory for: try again later")
            self.num_bytes += num_bytes

    @contextmanager
    def holding(self) -> Iterator[Holding]:
        """Give what one request holds, and take it back in the end."""
        held = Holding(self)
        try:
            yield held
        finally:
            self.add(-held.num_bytes)
