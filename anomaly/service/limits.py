"""Limits of a request: its size, the memory of all requests, and the time to answer."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from anomaly.errors import RequestError, UsageError

BYTES_PER_PIXEL = 3
"""Memory of an 8-bit image; a 16-bit image takes twice as much while it is decoded"""
MAX_JSON = 2**24
"""Bytes of JSON in a request: parsing blocks the interpreter, so large tensors must be sent as bytes"""
BYTES_PER_JSON_BYTE = 24
"""Largest memory of parsed JSON per byte of text: an empty object in a list"""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of the service.

    Raises:
        UsageError: a limit below 1, or a memory limit below the need of one request.
    """

    max_body: int
    """bytes of a request, compressed or not"""
    max_pixels: int
    """width × height of an image"""
    max_images: int
    """images in the queue, and therefore in one request"""
    max_requests: int
    """concurrent requests"""
    max_memory: int
    """bytes of bodies and decoded images of all requests together"""
    timeout: float
    """seconds for a request to arrive, and again for its answer"""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise UsageError(f"{name} is {value}: give a number above 0")
        parsed = BYTES_PER_JSON_BYTE * min(MAX_JSON, self.max_body)
        # three bodies: the compressed body, the decompressed body and the image file in it
        needed = 3 * self.max_body + max(2 * BYTES_PER_PIXEL * self.max_pixels, parsed)
        if self.max_memory < needed:
            raise UsageError(
                f"{self.max_memory >> 20} MiB cannot hold one request of {self.max_body >> 20} MiB and"
                f" {self.max_pixels:,} pixels: raise --max-memory-mib to {(needed >> 20) + 1}, or lower --max-body-mib"
                " or --max-pixels"
            )


class Reservation:
    """Memory of one request within the budget."""

    def __init__(self, budget: MemoryBudget) -> None:
        self._budget = budget
        self.num_bytes = 0

    def add(self, num_bytes: int) -> None:
        """Reserve more bytes.

        Raises:
            RequestError: 503, other requests hold too much memory.
        """
        self._budget.add(num_bytes)
        self.num_bytes += num_bytes


class MemoryBudget:
    """Memory of all requests together; used from the event loop and from threads.

    Args:
        max_bytes: upper limit.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self.num_bytes = 0

    def add(self, num_bytes: int) -> None:
        """Reserve bytes; a negative number releases them.

        Raises:
            RequestError: 503, the sum would exceed the limit.
        """
        with self._lock:
            if num_bytes > 0 and self.num_bytes + num_bytes > self._max_bytes:
                raise RequestError(503, "the memory of the service is full: try again later")
            self.num_bytes += num_bytes

    @contextmanager
    def reservation(self) -> Iterator[Reservation]:
        """Open the reservation of one request and release it at the end."""
        reserved = Reservation(self)
        try:
            yield reserved
        finally:
            self.add(-reserved.num_bytes)
