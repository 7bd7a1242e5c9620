"""The verb `serve`: models over HTTP, with the log of all requests on standard error."""

from __future__ import annotations

import logging
from functools import wraps
from typing import Any

from anomaly.commands._service_log import service_log
from anomaly.service.serve import serve as run_service


@wraps(run_service)
def serve(*arguments: Any, **options: Any) -> None:
    """Serve models and print the log."""
    with service_log(requests=logging.INFO):
        run_service(*arguments, **options)
