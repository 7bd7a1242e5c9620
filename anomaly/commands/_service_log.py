"""The log of the verbs that serve, on standard error."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def service_log(*, requests: int) -> Iterator[None]:
    """Print the log of the service to standard error.

    Args:
        requests: lowest level of the access log.
    """
    service, access = logging.getLogger("anomaly.service"), logging.getLogger("anomaly.service.access_log")
    handler = logging.StreamHandler(sys.stderr)
    before = service.level, access.level
    service.addHandler(handler)
    service.setLevel(logging.INFO)
    access.setLevel(requests)
    try:
        yield
    finally:
        service.removeHandler(handler)
        service.setLevel(before[0])
        access.setLevel(before[1])
